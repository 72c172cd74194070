"""A function to call later, held so that its object may go meanwhile."""

from __future__ import annotations

import weakref
from functools import partial
from types import MethodType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    Call = Callable[[], object]


def weakly(call: Call, gone: Callable[[object], object] | None = None) -> Callable[[], Call | None]:
    """Return what returns ``call``, and ``None`` when the object of a bound method is gone.

    :param gone: called with something then.

    No :class:`weakref.WeakMethod`, whose own callback may raise at the end of the process.
    """
    if not isinstance(call, MethodType):
        return lambda: call
    return partial(_bound, weakref.ref(call.__self__, gone), call.__func__)


def _bound(reference: weakref.ref[Any], function: Callable[..., object]) -> Call | None:
    owner = reference()
    return None if owner is None else MethodType(function, owner)
