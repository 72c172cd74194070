"""The one list of what can be set on a guard, and how it is read.

Each option has its name, default, kind and text here, and which faces refuse it and why. Keywords,
Django's and Flask's settings, PasteDeploy's ini files, the environment and the command line are all
read by this list, and the docs' tables and ``--help`` are made of it. Knows values; no server.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, NamedTuple

from ._support.import_by_name import named
from ._support.listener import address
from ._support.request_head import header_key
from ._support.spelling import nearest
from ._support.text_values import paths, several, yes_or_no
from .checks import Checks
from .load import DISABLE
from .policy import (
    CLIENT_TIMEOUT,
    DAMPED,
    DAMPED_PATIENCE,
    flag,
    known_policy,
    limits,
    seconds,
    whole,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

#: Who takes options: BusyGuard, with whatever makes one of settings or an ini file; guarded_app of
#: uWSGI and mod_wsgi; guarded_site of Twisted; guarded_server of waitress and cheroot; gunicorn's
#: guarded workers, by the environment; the two commands.
FACES = ("middleware", "prefork", "twisted", "front", "gunicorn", "serve", "twist")
MIDDLEWARE, PREFORK, TWISTED, FRONT, GUNICORN, SERVE, TWIST = FACES

PREFIX = "BUSYGUARD_"


class Kind(NamedTuple):
    """What an option's values are.

    :ivar metavar: what stands for one in a command's help.
    :ivar read: makes a value of a name and a text.
    """

    metavar: str
    read: Callable[[str, str], Any]


class Option(NamedTuple):
    """One that can be set.

    :ivar text: what it is, for people.
    :ivar refused: the faces that do not take it, each with why, and what to do instead.
    """

    name: str
    default: Any
    kind: Kind
    text: str
    refused: Mapping[str, str]

    @property
    def variable(self) -> str:
        """Its name in the environment."""
        return PREFIX + self.name.upper()

    @property
    def argument(self) -> str:
        """Its name on the command line; there a flag is given to have it other than by default."""
        return ("--no-" if self.default is True else "--") + self.name.replace("_", "-")

    @property
    def shown(self) -> str:
        """Its default as a text; empty for none."""
        if isinstance(self.default, bool):
            return "yes" if self.default else "no"
        if isinstance(self.default, (tuple, str)):
            return self.default if isinstance(self.default, str) else ",".join(self.default)
        return "" if self.default is None else f"{self.default:g}"


def _seconds(name: str, text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        raise ValueError(f"{name} must be a number of seconds, not {text!r}") from None
    return seconds(name, number)


def _whole(least: int, bounded: bool = True) -> Callable[[str, str], float]:
    def read(name: str, text: str) -> float:
        if text == "inf" and not bounded:
            return math.inf
        try:
            number = int(text)
        except ValueError:
            wanted = f"a whole number of at least {least}"
            raise ValueError(f"{name} must be {wanted}, not {text!r}") from None
        return whole(name, number, least)

    return read


def _address(_name: str, text: str) -> str:
    address(text)
    return text


FLAG = Kind("", yes_or_no)
SECONDS = Kind("S", _seconds)
SLOTS = Kind("N", _whole(1))
COUNT = Kind("N", _whole(0))
BOUND = Kind("N", _whole(0, bounded=False))
POLICY = Kind("POLICY", lambda _, text: known_policy(text))
PATHS = Kind("PATHS", paths)
TARGETS = Kind("TARGET", several)
ADDRESS = Kind("ADDR", _address)
FILE = Kind("FILE", lambda _, text: text)
HEADER = Kind("NAME", lambda _, text: text)
OBJECT = Kind("MODULE:NAME", lambda _, text: named(text))

_FRONTS = (TWISTED, FRONT)
_COMMANDS = (SERVE, TWIST)

# Why a face refuses an option, where several refuse it for the same reason.
_OWN_QUEUE = "the guard makes its own from the queue in front of the threads: use its .monitor"
_OWN_SERVER = "wrap the app in BusyGuard(app, monitor=...) and run a server of your own"
_THREADS = "the guard stands in front of the threads, and threads is that number"
_THREADS_HERE = "--threads is that number"
_ACTS = (
    "a guard in front of the threads always acts: for a dry run wrap the app in"
    " BusyGuard(app, slots=N, dry_run=True) and start the server as before"
)
_NO_PORTS = dict.fromkeys(
    (MIDDLEWARE, PREFORK),
    "a guard in the app opens no port: give board=FILE,"
    " and start busyguard agent --board FILE --check HOST:PORT --agent HOST:PORT",
) | dict.fromkeys(
    _FRONTS, "start CheckPort or AgentPort of wsgi_busyguard.checkport with guard.monitor"
)
_NO_CONNECTIONS = (
    "behind the server's threads the guard sees no connections: set the timeouts of the server"
)
_NO_WAITING = "Twisted's reactor reads and writes for the threads, so none waits for a client"
_STUCK = (
    "a process cannot say that it is stuck itself: give it a board,"
    " and start busyguard agent --board FILE --stall-after S"
)


def option(default: Any, kind: Kind, text: str, refused: Mapping[str, str] | None = None) -> Any:
    """Declare an option."""
    return field(default=default, metadata={"kind": kind, "text": text, "refused": refused or {}})


@dataclass(frozen=True)
class GuardOptions:
    """What is set on a guard; each option is described where it is declared.

    :ivar checks: the requests that are taken for checks, by these options.
    :ivar disabled: whether the guard is switched off; then the options are such that it only
        answers checks.
    :raises ValueError, TypeError: for values that are not valid.
    """

    checks: Checks = field(init=False, repr=False, compare=False)
    disabled: bool = field(init=False, repr=False, compare=False)
    monitor: Any = option(
        None,
        OBJECT,
        "A Monitor that knows the load of the server, in place of the one that the guard makes.",
        {
            PREFORK: "the guard reads the server itself: use its .monitor",
            **dict.fromkeys(_FRONTS, _OWN_QUEUE),
            GUNICORN: "each worker makes its own: use worker.monitor in the hook post_worker_init",
            **dict.fromkeys(_COMMANDS, _OWN_SERVER),
        },
    )
    slots: int | None = option(
        None,
        SLOTS,
        "Requests that may be in the app at once; the guard queues the others. Without it the guard"
        " reads the server's own queue, and refuses requests when a thread picks them up.",
        {**dict.fromkeys(_FRONTS, _THREADS), **dict.fromkeys(_COMMANDS, _THREADS_HERE)},
    )
    max_queue: float | None = option(
        None,
        BOUND,
        "Requests that may wait, inf for no limit; by default 400, in an overload 4 for each slot.",
    )
    max_wait: float | None = option(
        None,
        SECONDS,
        "Seconds that a request may wait; by default 80 % of client_timeout, at most 1.6, and in an"
        " overload 20 %.",
    )
    adaptive: bool = option(
        True, FLAG, "Let fewer requests in while they only compete for Python's interpreter."
    )
    ready: str = option(DAMPED, POLICY, "The policy of ready checks: exact, damped or always.")
    patience: float = option(
        DAMPED_PATIENCE, SECONDS, "Seconds of delay that the policy damped tolerates."
    )
    check_root: bool = option(
        True,
        FLAG,
        "Answer OPTIONS / as a ready check. A browser's preflight, and what a proxy passed on for a"
        " client, go to the app in any case.",
    )
    ready_paths: Iterable[str] = option(
        ("/healthz", "/readyz"), PATHS, "Paths that are ready checks, as the balancer sends them."
    )
    live_paths: Iterable[str] = option(("/livez",), PATHS, "Paths that are live checks.")
    on_busy: Any = option(
        None, OBJECT, "A function to call with a Transition when the server becomes busy."
    )
    on_free: Any = option(
        None, OBJECT, "A function to call with a Transition when it is free again."
    )
    refusal: Any = option(None, OBJECT, "A WSGI app that answers the refused requests.")
    retry_after: int = option(1, COUNT, "The least number of seconds in a refusal's Retry-After.")
    client_timeout: float | None = option(
        None,
        SECONDS,
        "Seconds after which clients give up; by default 5. The one number worth setting.",
    )
    expose_load: bool = option(
        False,
        FLAG,
        "Add the figures to answers to checks, and the header endpoint-load-metrics to the app's.",
    )
    board: Any = option(
        None, FILE, "A file in which the processes of a host write their load; checks tell the sum."
    )
    trust_queue_header: bool = option(
        False,
        FLAG,
        "Read in X-Request-Start or X-Queue-Start when a request arrived at the proxy. Only behind"
        " a proxy that sets the header itself, because clients can send it, too.",
    )
    client_timeout_header: str | None = option(
        None,
        HEADER,
        "A header in which clients say when they give up: in milliseconds (X-Client-Timeout-Ms),"
        " or as grpc-timeout has it. Only where all clients are your own.",
    )
    push: Iterable[str] | str = option(
        (),
        TARGETS,
        "HAProxies to tell of each change, as unix:PATH#BACKEND/SERVER or"
        " tcp:HOST:PORT#BACKEND/SERVER.",
    )
    dry_run: bool = option(
        False,
        FLAG,
        "Estimate what the guard would refuse, and refuse nothing; ready checks are 503 only while"
        " draining.",
        dict.fromkeys((*_FRONTS, GUNICORN, *_COMMANDS), _ACTS),
    )
    show_stacks: bool = option(
        False, FLAG, "Show on the check port and in the log which lines of code requests are in."
    )
    check: str | None = option(
        None, ADDRESS, "Where checks are answered on a port of their own, as HOST:PORT.", _NO_PORTS
    )
    agent: str | None = option(
        None, ADDRESS, "Where HAProxy's agent-check is answered, as HOST:PORT.", _NO_PORTS
    )
    progress_timeout: float = option(
        30.0,
        SECONDS,
        "Seconds for which a client may keep a thread waiting, by its upload or by not reading its"
        " answer; inf for no limit.",
        {
            **dict.fromkeys((MIDDLEWARE, PREFORK), _NO_CONNECTIONS),
            **dict.fromkeys((TWISTED, TWIST), _NO_WAITING),
        },
    )
    stall_after: float = option(
        30.0,
        SECONDS,
        "Seconds without progress in any process after which /livez says stalled.",
        dict.fromkeys((MIDDLEWARE, PREFORK, *_FRONTS, *_COMMANDS), _STUCK),
    )

    def __post_init__(self) -> None:
        root = flag("check_root", self.check_root)
        checks = Checks(root, self.ready_paths, self.live_paths, self.ready)
        object.__setattr__(self, "checks", checks)  # it is frozen
        for name in ("adaptive", "expose_load", "trust_queue_header", "dry_run", "show_stacks"):
            flag(name, getattr(self, name))
        for name in ("patience", "progress_timeout", "stall_after"):
            seconds(name, getattr(self, name))
        limits(
            1 if self.slots is None else self.slots,
            self.max_queue,
            self.max_wait,
            self.client_timeout,
        )
        whole("retry_after", self.retry_after, least=0)
        if self.client_timeout_header is not None:
            header_key(self.client_timeout_header)
        object.__setattr__(self, "disabled", is_disabled())
        if self.disabled:
            vars(self).update(OFF)

    @property
    def timeout(self) -> float:
        """Seconds after which clients give up."""
        return CLIENT_TIMEOUT if self.client_timeout is None else self.client_timeout

    def some(self, *names: str) -> dict[str, Any]:
        """Return some of them as keywords."""
        return {name: getattr(self, name) for name in names}


# What is set, whatever was given, where the guard is switched off.
OFF: Mapping[str, Any] = {
    **dict.fromkeys(("slots", "client_timeout", "client_timeout_header")),
    **dict.fromkeys(("max_queue", "max_wait", "progress_timeout"), math.inf),
    **dict.fromkeys(("adaptive", "trust_queue_header", "show_stacks"), False),
}


def is_disabled() -> bool:
    """Return whether the environment says that guards only answer checks.

    :raises ValueError: for what is neither yes nor no.
    """
    text = os.environ.get(DISABLE, "").strip()
    return bool(text) and yes_or_no(DISABLE, text)


OPTIONS = {
    one.name: Option(one.name, one.default, **one.metadata)
    for one in fields(GuardOptions)
    if one.init
}


def taken_by(face: str) -> list[Option]:
    """Return the options that a face takes."""
    return [option for option in OPTIONS.values() if face not in option.refused]


def refusal(face: str, name: str, spelled: str) -> str | None:
    """Return why a face does not take an option, and what to do; ``None`` if it does."""
    reason = OPTIONS[name].refused.get(face) if name in OPTIONS else None
    return None if reason is None else f"{spelled} is not taken here: {reason}"


def from_keywords(face: str, keywords: Mapping[str, Any]) -> GuardOptions:
    """Return the options that keyword arguments are.

    :raises TypeError: for one that there is not, or that this face does not take.
    """
    for name in keywords:
        if name not in OPTIONS:
            near = nearest(name, OPTIONS)
            known = ", ".join(one.name for one in taken_by(face))
            hint = near and (refusal(face, near, near) or f"did you mean {near!r}?")
            raise TypeError(f"unexpected keyword argument {name!r}: {hint or f'known are {known}'}")
        reason = refusal(face, name, name)
        if reason is not None:
            raise TypeError(reason)
    return GuardOptions(**keywords)


def from_texts(
    face: str, texts: Mapping[str, Any], spell: Callable[[Option], str]
) -> dict[str, Any]:
    """Return the options that texts stand for, as keywords; texts of ``None`` are left out.

    :param texts: by name; a list of texts is as one with commas between.
    :param spell: says how an option is called there, for errors.
    :raises ValueError, TypeError, ImportError: for what is not valid, or is not taken there.
    """
    read: dict[str, Any] = {}
    for option in OPTIONS.values():
        text = texts.get(option.name)
        if text is None:
            continue
        reason = refusal(face, option.name, spell(option))
        if reason is not None:
            raise ValueError(reason)
        text = text if isinstance(text, str) else ",".join(text)
        read[option.name] = option.kind.read(option.name, text.strip())
    return read
