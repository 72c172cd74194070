"""What a user of the command can put right."""

from __future__ import annotations


class Mistake(Exception):
    """Something the user can put right; told in one line, without a traceback."""
