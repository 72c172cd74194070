"""uWSGI: a guard in each worker, and the adapter."""

from __future__ import annotations

import importlib
import sys
from typing import TYPE_CHECKING, Any

from .._support.log import logger
from .front.prefork import GuardedProcess
from .readers.uwsgi import UwsgiAdapter, server

if TYPE_CHECKING:
    from collections.abc import Callable

    from _typeshed.wsgi import WSGIApplication

    from ..middleware import BusyGuard

# Of the module uwsgi, what uwsgidecorators sets when it is imported.
DECORATOR_HOOKS = ("post_fork_hook", "spooler", "mule_msg_hook")


def guarded_app(app: WSGIApplication, **options: Any) -> BusyGuard:
    """Return ``app`` guarded for uWSGI: every worker posts on the board, and reads the sum there.

    :param options: those of :class:`~wsgi_busyguard.BusyGuard` but ``monitor``. With ``slots`` each
        process is a gate of so many. With ``board`` alone the queue in the kernel is read.
    :raises RuntimeError: outside uWSGI, and where it runs no Python threads.

    Also where the app is made in the master before it forks; the master itself is not counted.
    """
    uwsgi = server()
    if not uwsgi.has_threads:
        raise RuntimeError(
            "the guard needs a thread of its own, and this uWSGI lets none run:"
            " start it with enable-threads = true"
        )
    guarded = GuardedProcess(app, UwsgiAdapter, **options)

    def begin() -> None:
        if uwsgi.worker_id():  # 0 in the master, and in mules and spoolers, which serve nothing
            guarded.begin()

    begin()
    _after_forks(uwsgi, begin)
    return guarded.guard


def _after_forks(uwsgi: Any, begin: Callable[[], object]) -> None:
    """Have ``begin`` called in the processes that uWSGI forks from this one.

    uWSGI has room for one such function, and tells Python's own hooks nothing. uwsgidecorators
    puts there one that calls many, and would put it in the place of ours if it came later. But it
    takes other places, too, so it is not to come here when somebody is there already.
    """
    has_hooks = any(hasattr(uwsgi, hook) for hook in DECORATOR_HOOKS)
    if "uwsgidecorators" in sys.modules or not has_hooks:
        try:
            postfork = importlib.import_module("uwsgidecorators").postfork
        except Exception:  # not installed, or no master
            logger.debug("going on without uwsgidecorators", exc_info=True)
        else:
            postfork(begin)
            return
    before = getattr(uwsgi, "post_fork_hook", None)

    def both() -> None:
        if before is not None:
            before()
        begin()

    uwsgi.post_fork_hook = both
