"""``busyguard serve``: a WSGI app behind the guard, on an embedded server or a well-known one."""

from __future__ import annotations

import importlib
import os
import sys
from typing import TYPE_CHECKING, Any

from ..._support.usage_error import Mistake
from ..._support.wsgi_app import wsgi_app
from ...adapters.front.progress import STALL
from ...checkport.ports import address
from ...haproxy.runtime_api import targets
from ...policy import (
    CLIENT_TIMEOUT,
    DAMPED,
    PATIENCE,
    READY_POLICIES,
    known_policy,
    limits,
    seconds,
    whole,
)
from ..mistakes import said_in_one_line
from .gunicorn import serve_gunicorn
from .twisted import serve_twisted
from .waitress import serve_waitress
from .werkzeug import serve_werkzeug

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Mapping

    from _typeshed.wsgi import WSGIApplication


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of ``busyguard serve``."""
    add = parser.add_argument
    add("app", metavar="MODULE:APP", help="the WSGI app, as mysite.wsgi:application")
    add(
        "--server",
        choices=SERVERS,
        default="werkzeug",
        help="what takes the connections (%(default)s)",
    )
    add(
        "--listen",
        metavar="ADDR",
        default="127.0.0.1:8080",
        help="where the app is served (%(default)s)",
    )
    add("--check", metavar="ADDR", help="where checks are answered, outside the worker pool")
    add("--agent", metavar="ADDR", help="where HAProxy's agent-check is answered")
    add(
        "--threads",
        type=int,
        default=10,
        metavar="N",
        help="requests in the app at once (%(default)s)",
    )
    add("--max-queue", type=int, metavar="N", help="requests waiting; 4 a thread if not given")
    add(
        "--max-wait",
        type=float,
        metavar="S",
        help="seconds of waiting; 20%% of the client timeout if not given",
    )
    patient = "seconds after which clients give up (%(default)s)"
    add("--client-timeout", type=float, default=CLIENT_TIMEOUT, metavar="S", help=patient)
    idle = "seconds without progress after which a client that holds a thread is cut off"
    add("--progress-timeout", type=float, default=STALL, metavar="S", help=f"{idle} (%(default)s)")
    policy = "what ready checks follow (%(default)s)"
    add("--ready", choices=READY_POLICIES, default=DAMPED, help=policy)
    bears = "seconds of delay that damped bears (%(default)s)"
    add("--patience", type=float, default=PATIENCE, metavar="S", help=bears)
    add("--board", metavar="FILE", help="where the load is posted, for busyguard agent and others")
    add_push(add)
    exposed = "tell the load in each answer (endpoint-load-metrics), and in those to checks"
    add("--expose-load", action="store_true", help=exposed)
    grace = "seconds to finish at SIGTERM (%(default)s)"
    add("--grace", type=float, default=30.0, metavar="S", help=grace)


def add_push(add: Callable[..., object]) -> None:
    """Declare ``--push``."""
    add(
        "--push",
        action="append",
        default=[],
        metavar="TARGET",
        help="a HAProxy to tell of each change, as unix:PATH#BACKEND/SERVER or"
        " tcp:HOST:PORT#BACKEND/SERVER; once for each",
    )


def run(arguments: argparse.Namespace) -> int:
    """Serve until SIGTERM or Ctrl-C."""
    with said_in_one_line():
        examine(vars(arguments))
        address(arguments.listen)
    return SERVERS[arguments.server](import_app(arguments.app), arguments)


def examine(options: Mapping[str, Any]) -> None:
    """Raise :exc:`ValueError` or :exc:`TypeError` for options that cannot be meant."""
    whole("threads", options["threads"], least=1)
    for name in ("client_timeout", "patience", "grace"):
        seconds(name, options[name])
    seconds("progress_timeout", options.get("progress_timeout", STALL))  # none in twist
    known_policy(options["ready"])
    limits(options["threads"], options["max_queue"], options["max_wait"])
    for name in ("check", "agent"):
        if options[name] is not None:
            address(options[name])
    if options.get("push"):
        targets(options["push"])


def import_app(spec: str) -> WSGIApplication:
    """Return the app that ``MODULE:APP`` names; the folder it is called in is searched first."""
    module_name, _, name = spec.partition(":")
    if not module_name or not name:
        raise Mistake(f"expected MODULE:APP, as mysite.wsgi:application, not {spec!r}")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        found: Any = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name and (module_name + ".").startswith(error.name + "."):
            raise Mistake(f"no module {error.name!r} here or among what is installed") from error
        raise Mistake(f"{module_name} needs a module that is missing: {error.name}") from error
    except (Exception, SystemExit) as error:
        raise Mistake(f"importing {module_name} raised {type(error).__name__}: {error}") from error
    for part in name.split("."):
        try:
            found = getattr(found, part)
        except AttributeError as error:
            raise Mistake(f"{module_name} has no {name!r}") from error
    if not callable(found):
        raise Mistake(f"{spec} is no WSGI app: a {type(found).__name__} cannot be called")
    with said_in_one_line():
        wsgi_app(spec, found)
    return found  # type: ignore[no-any-return]


SERVERS = {
    "werkzeug": serve_werkzeug,
    "twisted": serve_twisted,
    "gunicorn": serve_gunicorn,
    "waitress": serve_waitress,
}
