"""What the operator says in ``BUSYGUARD_*``: read from the environment and judged, in one place.

Knows names and values; no server, no socket.
"""

from __future__ import annotations

import difflib
import math
import re
from typing import TYPE_CHECKING, Any, NamedTuple

from ..._support.listener import address
from ...checks import Checks
from ...haproxy.runtime_api import targets
from ...policy import CLIENT_TIMEOUT, DAMPED, PATIENCE, known_policy, limits, seconds, whole
from ..front.progress import STALL

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

PREFIX = "BUSYGUARD_"

# What Kubernetes puts into the environment for a Service whose name begins with "busyguard".
_A_SERVICES = re.compile(r"(?:[A-Z0-9_]+_)?(?:SERVICE_(?:HOST|PORT)|PORT)(?:_[A-Z0-9_]+)?")

# gunicorn itself ends a worker whose loop has been silent for 30 s.
STALL_AFTER = 30.0


class Options(NamedTuple):
    """The options of the guarded workers.

    :param check: where the master answers checks, as ``HOST:PORT``; nowhere if ``None``.
    :param agent: where it answers HAProxy's ``agent-check``.
    :param board: the file of the board, for other processes to read; memory only if ``None``.
    :param slots: requests that a gevent worker has in the app at once; no limit if ``None``.
    :param max_queue: requests that wait in each worker; four a slot if ``None``.
    :param max_wait: seconds that one may wait; 20 % of ``client_timeout`` if ``None``.
    :param client_timeout: seconds after which clients give up.
    :param progress_timeout: seconds that a client may keep a thread waiting; never mind if inf.
    :param ready: what ready checks follow: exact, damped or always.
    :param patience: seconds of delay that damped bears.
    :param stall_after: seconds without progress in any worker after which the host is not live.
    :param retry_after: the least number of seconds in a refusal's ``Retry-After``.
    :param check_root: whether ``OPTIONS /`` is a ready check.
    :param ready_paths: paths that are ready checks.
    :param live_paths: paths that are live checks.
    :param push: balancers that one of the workers tells of each change.
    """

    check: str | None = None
    agent: str | None = None
    board: str | None = None
    slots: int | None = None
    max_queue: float | None = None
    max_wait: float | None = None
    client_timeout: float = CLIENT_TIMEOUT
    progress_timeout: float = STALL
    ready: str = DAMPED
    patience: float = PATIENCE
    stall_after: float = STALL_AFTER
    retry_after: int = 1
    check_root: bool = True
    ready_paths: tuple[str, ...] = ("/healthz", "/readyz")
    live_paths: tuple[str, ...] = ("/livez",)
    push: str = ""


def read_options(environ: Mapping[str, str]) -> Options:
    """Return what ``BUSYGUARD_*`` in ``environ`` says; an empty value is as none.

    What Kubernetes makes of a Service that is called busyguard is passed over.

    :raises ValueError: for a name that is none of ours, and for a value that cannot be meant.
    """
    said = {
        name[len(PREFIX) :].lower(): value.strip()
        for name, value in environ.items()
        if name.startswith(PREFIX) and not _A_SERVICES.fullmatch(name, len(PREFIX))
    }
    unknown = said.keys() - READERS.keys()
    if unknown:
        raise ValueError(_unknown(min(unknown)))
    read: dict[str, Any] = {}
    for name, text in said.items():
        if text:
            try:
                read[name] = READERS[name](name, text)
            except (ValueError, TypeError) as error:
                raise ValueError(f"{PREFIX}{name.upper()}={text!r}: {error}") from None
    options = Options(**read)
    _judged_together(options)
    return options


def _unknown(name: str) -> str:
    known = difflib.get_close_matches(name, READERS, 1)
    hint = f"is {PREFIX}{known[0].upper()} meant?" if known else "known are " + ", ".join(READERS)
    return f"{PREFIX}{name.upper()} is not known; {hint}"


def _judged_together(options: Options) -> None:
    """Raise for values that are well each by itself and not together."""
    try:
        Checks(options.check_root, options.ready_paths, options.live_paths)
        limits(1, options.max_queue, options.max_wait, options.client_timeout)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{PREFIX}*: {error}") from None


def _an_address(_name: str, text: str) -> str:
    address(text)
    return text


def _balancers(_name: str, text: str) -> str:
    targets(text)
    return text


def _a_number(name: str, text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        raise ValueError(f"{name} must be a number of seconds") from None
    return seconds(name, number)


def _some(least: int) -> Callable[[str, str], float]:
    def read(name: str, text: str) -> float:
        try:
            number = int(text)
        except ValueError:
            raise ValueError(f"{name} must be a whole number of at least {least}") from None
        return whole(name, number, least)

    return read


def _some_or_no_bound(name: str, text: str) -> float:
    return math.inf if text == "inf" else _some(0)(name, text)


def _yes_or_no(name: str, text: str) -> bool:
    words = {"1": True, "yes": True, "true": True, "on": True}
    words |= {"0": False, "no": False, "false": False, "off": False}
    try:
        return words[text.lower()]
    except KeyError:
        raise ValueError(f"{name} must be one of {', '.join(words)}") from None


def _paths(name: str, text: str) -> tuple[str, ...]:
    paths = tuple(path.strip() for path in text.split(",") if path.strip())
    for path in paths:
        if not path.startswith("/"):
            raise ValueError(f"{name} must be paths that begin with '/', with commas between")
    return paths


READERS: dict[str, Callable[[str, str], object]] = {
    "check": _an_address,
    "agent": _an_address,
    "board": lambda _name, text: text,
    "slots": _some(1),
    "max_queue": _some_or_no_bound,
    "max_wait": _a_number,
    "client_timeout": _a_number,
    "progress_timeout": _a_number,
    "ready": lambda _name, text: known_policy(text),
    "patience": _a_number,
    "stall_after": _a_number,
    "retry_after": _some(0),
    "check_root": _yes_or_no,
    "ready_paths": _paths,
    "live_paths": _paths,
    "push": _balancers,
}
