"""The board: shared memory in which the processes of a host post their loads."""

from __future__ import annotations

from .board import Board, BoardFull, Row

__all__ = [
    "Board",
    "BoardFull",
    "Row",
]
