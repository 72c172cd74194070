"""The second listener: checks, the agent protocol and metrics, outside of the worker pool."""

from __future__ import annotations

from .ports import AgentPort, CheckApp, CheckPort

__all__ = [
    "AgentPort",
    "CheckApp",
    "CheckPort",
]
