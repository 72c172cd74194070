"""A function of any kind, each call of which is made inside of a context manager."""

from __future__ import annotations

import functools
import inspect
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager


def inside(context: AbstractContextManager[Any], function: Callable[..., Any]) -> Any:
    """Return ``function``, which runs inside of ``context``; it is entered anew for each call.

    A generator function is inside while it is iterated, an async one until it is done.
    """
    wrapper: Any
    if inspect.iscoroutinefunction(function):

        async def wrapper(*args: Any, **kwargs: Any) -> Any:
            with context:
                return await function(*args, **kwargs)

    elif inspect.isgeneratorfunction(function):

        def wrapper(*args: Any, **kwargs: Any) -> Any:
            with context:
                return (yield from function(*args, **kwargs))

    else:

        def wrapper(*args: Any, **kwargs: Any) -> Any:
            with context:
                return function(*args, **kwargs)

    return functools.wraps(function)(wrapper)
