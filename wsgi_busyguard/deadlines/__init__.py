"""When the client of a request gives up, and what the headers of a request tell of that."""

from __future__ import annotations

from .deadline import NotMade, TooLate, call_timeout, carrying, current_deadline, within

__all__ = ["NotMade", "TooLate", "call_timeout", "carrying", "current_deadline", "within"]
