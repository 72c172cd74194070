"""Health checks and load shedding for WSGI servers.

Wrap any WSGI app: ``application = BusyGuard(application)``. Importing this imports no server and no
framework.
"""

from __future__ import annotations

from .board.board import Board
from .deadlines.deadline import current_deadline
from .deadlines.environ import remaining, under_pressure
from .gate import Gate
from .load import Adapter, Load, State, Transition
from .middleware import BusyGuard
from .monitor import Monitor

__version__ = "1.0.0rc1"

__all__ = [
    "Adapter",
    "Board",
    "BusyGuard",
    "Gate",
    "Load",
    "Monitor",
    "State",
    "Transition",
    "current_deadline",
    "remaining",
    "under_pressure",
]
