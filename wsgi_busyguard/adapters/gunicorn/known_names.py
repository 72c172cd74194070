"""What the guarded threaded worker overrides of gunicorn's, and whether it is as it is known."""

from __future__ import annotations

import inspect

# The methods that are overridden, and the parameters with which they are known. All gunicorns from
# 20.1 to 27.0 have them so; where one does not, the guard does not stand in front.
KNOWN_PARAMETERS: dict[str, set[tuple[str, ...]]] = {
    "enqueue_req": {("conn",)},
    "get_thread_pool": {()},
    "handle": {("conn",)},
    "finish_request": {("fs",), ("conn", "fs")},
    "murder_keepalived": {(), ("force",)},
}


def moved(worker_class: type) -> list[str]:
    """Return what is not as it is known in gunicorn's worker class."""
    return [
        name
        for name, ways in KNOWN_PARAMETERS.items()
        if parameters_of(worker_class, name) not in ways
    ]


def parameters_of(worker_class: type, name: str) -> tuple[str, ...] | None:
    """Return the names of a method's parameters; ``None`` if there is no such method."""
    try:
        return tuple(inspect.signature(getattr(worker_class, name)).parameters)[1:]
    except (AttributeError, TypeError, ValueError):
        return None
