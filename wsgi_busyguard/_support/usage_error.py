"""What a user of the command can put right."""

from __future__ import annotations


class UsageError(Exception):
    """Something the user can put right; shown in one line, without a traceback."""
