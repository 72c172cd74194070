"""Keeps checks out of access logs: four balancers that ask every two seconds write a line each.

A filter for loggers, and one for Twisted's sites, which write their logs themselves.
"""

from __future__ import annotations

import logging
import re
from typing import TYPE_CHECKING, Any, TypeVar

from ..checks import SOMEBODY_BEHIND, Checks

if TYPE_CHECKING:
    from collections.abc import Iterable

# The request line as access logs quote it: "GET /readyz HTTP/1.1", with colours between for some.
_REQUEST = re.compile(r'"(?:\x1b\[[\d;]*m)?([A-Z]+) (\S+) HTTP/\d')


class NoChecks(logging.Filter):
    """A filter for an access log's logger, or for its handler, that lets no check through.

    ``logging.getLogger("gunicorn.access").addFilter(NoChecks())``. It knows gunicorn's records, and
    any others whose message quotes the request line: Paste's ``TransLogger`` in front of waitress
    (logger ``wsgi``), Werkzeug's, Django's.

    :param check_root: the same three as the guard was given.
    :param ready_paths: likewise.
    :param live_paths: likewise.

    Where a log does not tell who is behind an ``OPTIONS /``, as gunicorn's does, it is a check.
    """

    def __init__(
        self,
        *,
        check_root: bool = True,
        ready_paths: Iterable[str] = ("/healthz", "/readyz"),
        live_paths: Iterable[str] = ("/livez",),
    ) -> None:
        super().__init__()
        self._checks = Checks(check_root, ready_paths, live_paths)

    def filter(self, record: logging.LogRecord) -> bool:
        """Return whether the record is to be written."""
        try:
            return not self._tells_of_a_check(record)
        except Exception:  # a record that cannot be formatted, say: whoever writes it says so
            return True

    def is_check(self, method: str, uri: str, headers: Iterable[str] = ()) -> bool:
        """Return whether a request is a check; ``headers`` as in a WSGI environ."""
        path, _, query = uri.partition("?")
        return self._checks.match_request(method, path, query, headers) is not None

    def _tells_of_a_check(self, record: logging.LogRecord) -> bool:
        atoms: Any = record.args
        if isinstance(atoms, dict) and "{request_method}e" in atoms:  # gunicorn's
            script, path = atoms.get("{script_name}e", ""), atoms.get("{path_info}e", "")
            behind = [name for name in SOMEBODY_BEHIND if f"{{{name.lower()}}}e" in atoms]
            return self.is_check(atoms["{request_method}e"], script + path, behind)
        line = _REQUEST.search(record.getMessage())
        return line is not None and self.is_check(line[1], line[2])


Site = TypeVar("Site")


def without_checks(site: Site, checks: NoChecks | None = None) -> Site:
    """Have a ``twisted.web.server.Site`` write no line for a check, and return it.

    A site of :func:`~wsgi_busyguard.adapters.twisted.guarded_site` writes none as it is.
    """
    here: Any = site
    log, checks = here.log, checks or NoChecks()

    def log_others(request: Any) -> None:
        names = [
            name.decode("latin-1").upper() for name, _ in request.requestHeaders.getAllRawHeaders()
        ]
        headers = {"HTTP_" + name.replace("-", "_") for name in names}
        if not checks.is_check(request.method.decode(), request.uri.decode("latin-1"), headers):
            log(request)

    here.log = log_others
    return site
