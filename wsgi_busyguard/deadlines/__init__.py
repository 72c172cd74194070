"""When the client of a request gives up, and what the headers of a request tell of that."""

from __future__ import annotations

from .deadline import TooLate, call_timeout, carrying, current_deadline, within

__all__ = [
    "TooLate",
    "call_timeout",
    "carrying",
    "current_deadline",
    "within",
]
