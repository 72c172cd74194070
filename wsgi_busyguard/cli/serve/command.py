"""``busyguard serve``: a WSGI app behind the guard, on an embedded server or a well-known one."""

from __future__ import annotations

import importlib
import os
import sys
from typing import TYPE_CHECKING, Any

from ..._support.listener import address
from ..._support.usage_error import UsageError
from ..._support.wsgi_app import wsgi_app
from ...options import OPTIONS, SERVE, GuardOptions, taken_by
from ...policy import seconds, whole
from ..arguments import add_options, read
from ..usage_errors import usage_errors
from .cheroot import serve_cheroot
from .gunicorn import serve_gunicorn
from .twisted import serve_twisted
from .waitress import serve_waitress
from .werkzeug import serve_werkzeug

if TYPE_CHECKING:
    import argparse

    from _typeshed.wsgi import WSGIApplication


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of ``busyguard serve``."""
    add = parser.add_argument
    add("app", metavar="MODULE:APP", help="the WSGI app, such as mysite.wsgi:application")
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
    add(
        "--threads",
        type=int,
        default=10,
        metavar="N",
        help="requests in the app at once (%(default)s)",
    )
    grace = "seconds to finish at SIGTERM (%(default)s)"
    add("--grace", type=float, default=30.0, metavar="S", help=grace)
    taken = taken_by(SERVE)
    add_options(parser, taken)
    # Found, and refused with what to do instead.
    others = (option for option in OPTIONS.values() if option not in taken)
    add_options(parser, others, is_hidden=True)


def run(arguments: argparse.Namespace) -> int:
    """Serve until SIGTERM or Ctrl-C."""
    search_here_first()
    with usage_errors():
        whole("threads", arguments.threads, least=1)
        seconds("grace", arguments.grace)
        address(arguments.listen)
        arguments.given = read(SERVE, vars(arguments))
        arguments.options = GuardOptions(**arguments.given)
    return SERVERS[arguments.server](import_app(arguments.app), arguments)


def search_here_first() -> None:
    """Have modules be found in the folder that this is called in."""
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())


def import_app(spec: str) -> WSGIApplication:
    """Return the app that ``MODULE:APP`` names."""
    module_name, _, name = spec.partition(":")
    if not module_name or not name:
        raise UsageError(f"expected MODULE:APP, such as mysite.wsgi:application, not {spec!r}")
    try:
        found: Any = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name and (module_name + ".").startswith(error.name + "."):
            raise UsageError(f"no module {error.name!r} here or among what is installed") from error
        raise UsageError(f"{module_name} needs a module that is missing: {error.name}") from error
    except (Exception, SystemExit) as error:
        raise UsageError(
            f"importing {module_name} raised {type(error).__name__}: {error}"
        ) from error
    for part in name.split("."):
        try:
            found = getattr(found, part)
        except AttributeError as error:
            makes_it = (
                ": write app = create_app() in a file, and name that app" if "(" in name else ""
            )
            raise UsageError(f"{module_name} has no {name!r}{makes_it}") from error
    if not callable(found):
        raise UsageError(f"{spec} is no WSGI app: {found!r:.60} cannot be called")
    with usage_errors():
        wsgi_app(spec, found)
    return found  # type: ignore[no-any-return]


SERVERS = {
    "werkzeug": serve_werkzeug,
    "twisted": serve_twisted,
    "gunicorn": serve_gunicorn,
    "waitress": serve_waitress,
    "cheroot": serve_cheroot,
}
