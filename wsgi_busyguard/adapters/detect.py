"""Finds out in which server an app is called, and how that server is read.

No server is imported: what is looked at is the environ, the thread, the frames of the call and
``sys.modules``. Our own adapter is imported when its server is known to be there. The frames of
other threads are not looked at: see :mod:`wsgi_busyguard.adapters.readers.in_flight`.
"""

from __future__ import annotations

import importlib
import inspect
import math
import socket
import sys
import threading
from typing import TYPE_CHECKING, Any, NamedTuple

from .._support.frames import callers
from .._support.log import logger
from .._support.unpatched import is_patched

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from ..load import Adapter

    Environ = Mapping[str, Any]

ONE_EACH = "starts a {} for each connection, so nothing queues in it"
ONE_AT_A_TIME = "runs one request at a time, and the others wait in the kernel"
GUNICORN = "gunicorn --threads={0}"
SYNC = f"{GUNICORN}; or, without slots, -k wsgi_busyguard.adapters.gunicorn.GuardedSync"
BE_THE_QUEUE = "BusyGuard(app, slots=N) makes the guard the queue"
GREENLETS = "-k wsgi_busyguard.adapters.gunicorn.GuardedGevent guards it"
UNPATCHED = "slots= needs gevent.monkey.patch_all(), before anything else"
MORE_PROCESSES = "fork more processes, which all accept from the same socket"
IN_THE_LOOP = (
    "slots= makes no sense on {}, which calls the app in its loop: one who waits at the gate holds"
    " up all others, so leave it out"
)


class Server(NamedTuple):
    """A server as it was found.

    :param name: what people call it.
    :param threads: how many requests may be in the hands of this process's threads at once;
        ``math.inf`` if any number may, ``None`` where nobody knows.
    :param adapter: makes what reads its load, in the process that serves; ``None`` if nothing can.
    :param why: why nothing can; the rest of a sentence about it.
    :param way: what to do then.
    :param counts_checks: whether checks that are being answered are in the load that is read.
    :param blocks: what is wrong with a gate where one who waits at it holds up all others; empty
        where nobody does.
    :param start: how it is started with more threads, ``{0}`` of them; empty where that cannot be.
    :param whole_targets: whether it passes all of an absolute target (RFC 9112, section 3.2.2) as
        PATH_INFO.
    """

    name: str
    threads: float | None = None
    adapter: Callable[[], Adapter] | None = None
    why: str = "has a queue that cannot be read from here"
    way: str = BE_THE_QUEUE
    counts_checks: bool = True
    blocks: str = ""
    start: str = ""
    whole_targets: bool = False


def find(environ: Environ) -> Server | None:
    """Return the server that calls with this environ, in this thread; ``None`` if it is unknown.

    For the first request: it walks the frames (some 50 us), and never raises.
    """
    return _first(lambda look: look(environ), OF_A_CALL)


def find_early() -> Server | None:
    """Return the server that is importing the app; ``None`` if that cannot be known yet."""
    return _first(lambda look: look(), OF_AN_IMPORT)


def held_up(name: str) -> str:
    """Return what is wrong with one who waits in this thread, in which a loop calls the app.

    Empty where that holds up nobody else.

    :param name: what people call the server.
    """
    asyncio: Any = sys.modules.get("asyncio")
    if asyncio is not None and asyncio._get_running_loop() is not None:
        return IN_THE_LOOP.format(name)
    greenlets: Any = sys.modules.get("greenlet")
    current = None if greenlets is None else greenlets.getcurrent()
    # Where threading has been patched, threads are greenlets and their locks let others run.
    if current is None or not current.parent or not inspect.isbuiltin(threading.get_ident):
        return ""
    of_gevent = type(current).__module__.partition(".")[0] == "gevent"
    return UNPATCHED if of_gevent else IN_THE_LOOP.format(name)


def _first(called: Callable[[Any], Server | None], looks: tuple[Any, ...]) -> Server | None:
    for look in looks:
        try:
            server = called(look)
        except Exception:  # a server of tomorrow has other names; guarding must never be the outage
            logger.debug("%r could not look", look, exc_info=True)
            continue
        if server is not None:
            return server
    return None


def _reads(module: str, name: str, *args: Any) -> Callable[[], Adapter]:
    """Return what imports an adapter of ours and makes it."""

    def make() -> Adapter:
        adapter: Adapter = getattr(importlib.import_module(module, __package__), name)(*args)
        return adapter

    return make


def behind_a_guard() -> bool:
    """Return whether the guard that asks, in a call, is called by another guard."""
    calls = [
        frame
        for frame in callers()
        if frame.f_code.co_name == "__call__"
        and frame.f_globals.get("__name__") == "wsgi_busyguard.middleware"
    ]
    return len(calls) > 1


def in_a_test() -> bool:
    """Return whether no server calls in this thread, but Werkzeug's test client, or Flask's."""
    client = calling("werkzeug.test", "open") if "werkzeug.test" in sys.modules else None
    return is_a(client, "werkzeug.test", "Client")


def calling(module: str, *functions: str) -> Any:
    """Return the ``self`` of the nearest of these methods that is under way, of this module."""
    for frame in callers():
        if frame.f_code.co_name in functions:
            where = frame.f_globals.get("__name__", "")
            if where == module or where.startswith(module + "."):
                found = frame.f_locals.get("self")
                if found is not None:
                    return found
    return None


def is_a(thing: object, module: str, name: str) -> bool:
    """Return whether ``thing`` is an instance of a class whose module somebody has imported."""
    kind = getattr(sys.modules.get(module), name, None)
    return isinstance(kind, type) and isinstance(thing, kind)


def _gunicorn(environ: Environ) -> Server | None:
    if not isinstance(environ.get("gunicorn.socket"), socket.socket):
        return None
    worker = calling("gunicorn.workers", "handle_request")
    if not is_a(worker, "gunicorn.workers.base", "Worker"):
        return Server("gunicorn")
    reads = _reads(".readers.gunicorn", "GunicornAdapter", worker)
    if hasattr(worker, "get_thread_pool"):
        return Server("gunicorn gthread", worker.cfg.threads, reads, start=GUNICORN)
    if hasattr(worker, "run_for_one"):
        return Server("gunicorn sync", 1, reads, counts_checks=False, start=SYNC)
    start = "gunicorn --worker-connections={0}"
    return Server("gunicorn", worker.cfg.worker_connections, way=GREENLETS, start=start)


def _waitress(environ: Environ) -> Server | None:
    asks = environ.get("waitress.client_disconnected")
    server = getattr(getattr(asks, "__self__", None), "server", None)
    if not callable(asks) or server is None:
        return None
    dispatcher = server.task_dispatcher
    serving = len(dispatcher.threads) - dispatcher.stop_count
    reads = _reads(".readers.waitress", "WaitressAdapter", server)
    return Server("waitress", serving, reads, start="waitress-serve --threads={0}")


def _cheroot(environ: Environ) -> Server | None:
    thread: Any = threading.current_thread()
    if not is_a(thread, "cheroot.workers.threadpool", "WorkerThread"):
        return None
    pool = thread.server.requests
    serving = len(getattr(pool, "_threads", ())) or pool.min
    reads = _reads(".readers.cheroot", "CherootAdapter", thread.server)
    return Server("cheroot", serving, reads, start="cheroot --threads {0}")


def _uwsgi(environ: Environ) -> Server | None:
    if not isinstance(environ.get("uwsgi.version"), bytes):
        return None
    server = _uwsgi_here()
    # Its cores are threads; or as many requests as one loop has at once, as with --async.
    loops = server is not None and server.threads != 1 and environ.get("wsgi.multithread") is False
    if server is None or not loops or getattr(sys.modules["uwsgi"], "loop", None) == b"gevent":
        return server
    return server._replace(blocks=IN_THE_LOOP.format("uWSGI without threads"))


def _uwsgi_here() -> Server | None:
    uwsgi = sys.modules.get("uwsgi")  # cannot be imported anywhere else
    cores = getattr(uwsgi, "cores", None)
    if not isinstance(cores, int):
        return None
    reads = _reads(".readers.uwsgi", "UwsgiAdapter")
    start = "uwsgi --threads {0}"
    return Server("uWSGI", cores, reads, counts_checks=False, start=start, whole_targets=True)


def _mod_wsgi(environ: Environ) -> Server | None:
    return _mod_wsgi_here() if isinstance(environ.get("mod_wsgi.version"), tuple) else None


def _mod_wsgi_here() -> Server | None:
    # The package of that name on PyPI can be imported outside Apache, but has no threads there.
    per_process = getattr(sys.modules.get("mod_wsgi"), "threads_per_process", None)
    if not isinstance(per_process, int):
        return None
    reads = _reads(".readers.mod_wsgi", "ModWsgiAdapter")
    start = "WSGIDaemonProcess ... threads={0}"
    return Server("mod_wsgi", per_process, reads, counts_checks=False, start=start)


def _paste(environ: Environ) -> Server | None:
    pool = environ.get("paste.httpserver.thread_pool")
    if not is_a(pool, "paste.httpserver", "ThreadPool"):
        return None
    workers: Any = pool
    reads = _reads(".readers.paste", "PasteAdapter", pool)
    return Server("Paste", len(workers.workers), reads, start="threadpool_workers = {0}")


def _twisted(environ: Environ) -> Server | None:
    pool: Any = getattr(calling("twisted.web.wsgi", "run"), "threadpool", None)
    if not is_a(pool, "twisted.python.threadpool", "ThreadPool"):
        return None
    reads = _reads(".readers.twisted", "TwistedAdapter", pool)
    return Server("Twisted", pool.max, reads, start="ThreadPool(maxthreads={0})")


def _pywsgi(environ: Environ) -> Server | None:
    server: Any = getattr(calling("gevent.pywsgi", "run_application", "handle"), "server", None)
    if not is_a(server, "gevent.pywsgi", "WSGIServer"):
        return None
    blocks = "" if is_patched("threading") else UNPATCHED
    size = getattr(server.pool, "size", None)
    if size is None:
        why = ONE_EACH.format("greenlet")
        return Server("gevent.pywsgi", math.inf, why=why, blocks=blocks, whole_targets=True)
    reads = _reads(".readers.gevent_pywsgi", "PywsgiAdapter", server)
    start = "WSGIServer(spawn={0})"
    return Server("gevent.pywsgi", size, reads, blocks=blocks, start=start, whole_targets=True)


def _bjoern(environ: Environ) -> Server | None:
    for frame in callers():
        if frame.f_code.co_name == "server_run" and frame.f_globals.get("__name__") == "bjoern":
            # It goes from body to body as each client takes them, so any number may be under way.
            blocks = IN_THE_LOOP.format("bjoern")
            why, way = ONE_AT_A_TIME, MORE_PROCESSES
            return Server("bjoern", math.inf, why=why, way=way, blocks=blocks)
    return None


def _granian(environ: Environ) -> Server | None:
    """Look at what granian has given to the process that it has made a worker."""
    current = getattr(sys.modules.get("multiprocessing"), "current_process", None)
    process: Any = None if current is None else current()
    runs: Any = getattr(process, "_target", None)
    if getattr(runs, "__name__", "") != "_spawn_wsgi_worker":
        return None
    if not str(getattr(runs, "__module__", "")).startswith("granian.server."):
        return None
    # The function is wrapped in one that takes other things first; at the end they agree.
    names = reversed(inspect.signature(runs).parameters)
    given = dict(zip(names, reversed(process._args), strict=False))
    return Server("granian", given["blocking_threads"], start="granian --blocking-threads {0}")


def _executor(environ: Environ) -> Server | None:
    """Look for a stock ThreadPoolExecutor: ASGI bridges have one, and servers made at home."""
    for frame in callers():
        if frame.f_code.co_name == "_worker":
            executor = frame.f_locals.get("executor_reference", lambda: None)()
            if is_a(executor, "concurrent.futures.thread", "ThreadPoolExecutor"):
                return _of_executor(executor)._replace(whole_targets=True)
    return None


def _of_executor(executor: Any) -> Server:
    if callable(getattr(executor, "read", None)):  # ours, which counts by itself
        return Server(type(executor).__name__, executor._max_workers, lambda: executor)
    reads = _reads(".readers.threadpool", "ThreadPoolAdapter", executor)
    name, threads = type(executor).__name__, executor._max_workers
    start = "max_workers={0}; in a2wsgi workers={0}"
    return Server(name, threads, reads, counts_checks=False, start=start)


def _socketserver(environ: Environ) -> Server | None:
    """Wsgiref, Werkzeug, Django's runserver: whatever is made of the standard library's."""
    server: Any = getattr(calling("socketserver", "__init__"), "server", None)
    if not is_a(server, "socketserver", "BaseServer"):
        return None
    name = environ.get("SERVER_SOFTWARE") or type(server).__name__
    if is_a(server, "socketserver", "ThreadingMixIn"):
        found = Server(name, math.inf, why=ONE_EACH.format("thread"))
    elif is_a(server, "socketserver", "ForkingMixIn"):
        found = Server(name, 1, why=ONE_EACH.format("process"))
    else:
        found = Server(name, 1, why=ONE_AT_A_TIME, way="have it start threads")
    return found._replace(whole_targets=True)


def _importing_gunicorn() -> Server | None:
    """Look for a worker that loads the app, or with --preload the arbiter."""
    for frame in callers():
        if frame.f_globals.get("__name__", "").split(".")[0] == "gunicorn":
            cfg = getattr(frame.f_locals.get("self"), "cfg", None)
            if is_a(cfg, "gunicorn.config", "Config"):
                return _configured(cfg)
    return None


def _configured(cfg: Any) -> Server | None:
    kind = cfg.worker_class
    if kind.__module__ == "gunicorn.workers.gthread":
        return Server("gunicorn gthread", cfg.threads, start=GUNICORN)
    if kind.__module__ == "gunicorn.workers.sync":
        return Server("gunicorn sync", 1, start=SYNC)
    return None  # greenlets, or one of ours, which bounds by itself


OF_A_CALL = (
    *(_gunicorn, _waitress, _cheroot, _uwsgi, _mod_wsgi),
    *(_paste, _twisted, _pywsgi, _bjoern, _granian, _executor, _socketserver),
)
OF_AN_IMPORT = (_importing_gunicorn, _uwsgi_here, _mod_wsgi_here)
