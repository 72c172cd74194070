"""Each option by each face: taken, and seen on the guard that is made; or refused in one line."""

from __future__ import annotations

import argparse
import inspect
import math
import time
from wsgiref.util import setup_testing_defaults

import pytest
from twisted.internet.testing import MemoryReactorClock
from twisted.python import usage
from waitress.wasyncore import close_all

from wsgi_busyguard import BusyGuard, Gate, Load, Monitor
from wsgi_busyguard._support.import_by_name import named
from wsgi_busyguard._support.usage_error import UsageError
from wsgi_busyguard.adapters.cheroot.front import CherootFront
from wsgi_busyguard.adapters.front.prefork import GuardedProcess
from wsgi_busyguard.adapters.gunicorn.options import loaded, read_options
from wsgi_busyguard.adapters.twisted import guarded_site
from wsgi_busyguard.adapters.waitress.dispatcher import WaitressFront
from wsgi_busyguard.cli.serve import command
from wsgi_busyguard.cli.twist import Options
from wsgi_busyguard.deadlines.deadline import DEADLINE
from wsgi_busyguard.deadlines.environ import WAITED
from wsgi_busyguard.integrations.options import from_capitals, from_strings
from wsgi_busyguard.options import (
    FLAG,
    GUNICORN,
    MIDDLEWARE,
    OBJECT,
    OPTIONS,
    SERVE,
    TWIST,
    GuardOptions,
    taken_by,
)
from wsgi_busyguard.policy import Reason

MONITOR = Monitor(type("Adapter", (), {"read": lambda self: Load(0, 0, 4)})())


def app(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"app"]


def busy(environ, start_response):
    start_response("503 Busy", [("Content-Type", "text/plain")])
    return [b"mine"]


def heard(transition):
    """Hear of a change."""


HERE = __name__

# What would be written in an ini file, the environment or on a command line.
TEXTS = {
    "monitor": f"{HERE}:MONITOR",
    "slots": "8",
    "max_queue": "3",
    "max_wait": "0.5",
    "adaptive": "no",
    "ready": "exact",
    "patience": "3",
    "check_root": "no",
    "ready_paths": "/a,/b",
    "live_paths": "/c",
    "on_busy": f"{HERE}:heard",
    "on_free": f"{HERE}:heard",
    "refusal": f"{HERE}:busy",
    "retry_after": "70",
    "client_timeout": "2",
    "expose_load": "yes",
    "board": "",  # a file of each test's own
    "trust_queue_header": "yes",
    "client_timeout_header": "X-Client-Timeout-Ms",
    "push": "unix:/run/haproxy.sock#app/a,tcp:127.0.0.1:9#app/a",
    "dry_run": "yes",
    "show_stacks": "yes",
    "check": "127.0.0.1:8081",
    "agent": "127.0.0.1:8082",
    "progress_timeout": "9",
    "stall_after": "9",
}


def value(name, text):
    return OPTIONS[name].kind.read(name, text)


# How a face makes something of one option: a guard, or the options that it makes one with.


def keywords(name, text):
    return BusyGuard(app, **queueing(name), **{name: value(name, text)})


def settings(name, text):
    given = text if OPTIONS[name].kind is OBJECT else value(name, text)
    said = {key.upper(): one for key, one in queueing(name).items()}
    return BusyGuard(app, **from_capitals({**said, name.upper(): given}, "BUSYGUARD"))


def ini_file(name, text):
    said = {key: str(one) for key, one in queueing(name).items()}
    return BusyGuard(app, **from_strings({**said, name: text}, "the filter"))


def prefork(name, text):
    reads = type("Reads", (), {"read": lambda self: Load(0, 0, 4), "share": lambda self, _: self})
    return GuardedProcess(app, reads, **queueing(name), **{name: value(name, text)}).guard


def queueing(name):
    """Return what makes the guard a queue, for what is of no use without one."""
    needs = name in (
        "adaptive",
        "max_queue",
        "max_wait",
        "trust_queue_header",
        "client_timeout_header",
    )
    return {"slots": 8} if needs or name == "dry_run" else {}


class Reactor(MemoryReactorClock):
    def callFromThread(self, call, *arguments):  # noqa: N802
        self.callLater(0, call, *arguments)


def twisted(name, text):
    return guarded_site(app, reactor=Reactor(), **{name: value(name, text)}).guard


def waitress(name, text):
    sockets = {}
    front = WaitressFront(4, sockets, **{name: value(name, text)})
    close_all(sockets)  # what wakes its loop
    return front


def cheroot(name, text):
    return CherootFront(4, **{name: value(name, text)})


def gunicorn(name, text):
    return loaded(read_options({OPTIONS[name].variable: text}))


def serve(name, text):
    parser = argparse.ArgumentParser(exit_on_error=False)
    command.add_arguments(parser)
    option = OPTIONS[name]
    word = option.argument if option.kind is FLAG else f"{option.argument}={text}"
    arguments = parser.parse_args(["m:app", word])
    return GuardOptions(**command.read(SERVE, vars(arguments)))


def twist(name, text):
    option = OPTIONS[name]
    word = option.argument if option.kind is FLAG else f"{option.argument}={text}"
    options = Options()
    options.parseOptions([f"--wsgi={HERE}.app", word])
    return GuardOptions(**options["given"])


FACES = {
    keywords: MIDDLEWARE,
    settings: MIDDLEWARE,
    ini_file: MIDDLEWARE,
    prefork: "prefork",
    twisted: "twisted",
    waitress: "front",
    cheroot: "front",
    gunicorn: GUNICORN,
    serve: SERVE,
    twist: TWIST,
}
REFUSALS = (TypeError, ValueError, usage.UsageError, UsageError)

CASES = [
    pytest.param(face, name, id=f"{name}, {face.__name__}") for name in OPTIONS for face in FACES
]


# How an option is seen on a guard.


def gate(guard):
    adapter = guard.monitor.adapter if isinstance(guard, BusyGuard) else guard
    return adapter if isinstance(adapter, Gate) else adapter.gate


def matched(guard, method, path):
    return guard._checks.match_request(method, path, "", ())


def refused(guard):
    got = []
    environ = {}
    setup_testing_defaults(environ)

    def start_response(status, headers, exc_info=None):
        got.append(dict(headers))

    body = b"".join(guard._responses.refused(Reason.QUEUE_FULL)(environ, start_response))
    return got[0], body


def client(guard, **headers):
    """Return what the guard takes the client of a request to have waited, and to wait in all."""
    if not isinstance(guard, BusyGuard):
        return guard.client(headers)
    environ = dict(headers, REMOTE_ADDR="192.0.2.1")
    setup_testing_defaults(environ)
    guard._gated(environ, lambda *_: None)
    ends = environ[DEADLINE] - time.monotonic()
    return environ[WAITED], ends + environ[WAITED]


def hears(guard):
    return any(heard in one for one in guard.monitor._notifier._listeners.values())


def old():
    return {"HTTP_X_REQUEST_START": f"t={time.time() - 1:.3f}"}


SEEN = {
    "monitor": lambda guard: guard.monitor is MONITOR,
    "slots": lambda guard: gate(guard).limits.slots == 8,
    "max_queue": lambda guard: gate(guard).limits.max_queue == 3,
    "max_wait": lambda guard: gate(guard).limits.max_wait == 0.5,
    "adaptive": lambda guard: gate(guard).crowding is bool,
    "ready": lambda guard: matched(guard, "OPTIONS", "/").policy == "exact",
    "patience": lambda guard: guard._patience == 3.0,
    "check_root": lambda guard: matched(guard, "OPTIONS", "/") is None,
    "ready_paths": lambda guard: matched(guard, "GET", "/a") and matched(guard, "GET", "/b"),
    "live_paths": lambda guard: matched(guard, "GET", "/c"),
    "on_busy": lambda guard: hears(guard),
    "on_free": lambda guard: hears(guard),
    "refusal": lambda guard: refused(guard)[1] == b"mine",
    "retry_after": lambda guard: int(refused(guard)[0]["Retry-After"]) >= 70,
    "client_timeout": lambda guard: client(guard)[1] == pytest.approx(2.0, abs=0.1),
    "expose_load": lambda guard: guard._responses._expose_load,
    "board": lambda guard: hasattr(guard.monitor.adapter, "shared"),
    "trust_queue_header": lambda guard: client(guard, **old())[0] == pytest.approx(1, abs=0.3),
    "client_timeout_header": lambda guard: (
        client(guard, HTTP_X_CLIENT_TIMEOUT_MS="400")[1] == pytest.approx(0.4, abs=0.1)
    ),
    "push": lambda guard: len((getattr(guard, "_pushes", None) or guard._push)._lines) == 2,
    "dry_run": lambda guard: guard.dry_run is not None,
    "show_stacks": lambda guard: guard.monitor.stacks is not None,
    "progress_timeout": lambda guard: guard.clients._most == 9.0,
}


@pytest.mark.parametrize(("face", "name"), CASES)
def test_an_option_is_taken_and_works_or_is_refused_in_one_line(face, name, tmp_path):
    text = TEXTS[name] or str(tmp_path / "board")
    reason = OPTIONS[name].refused.get(FACES[face])
    if reason is None:
        made = face(name, text)
        if isinstance(made, GuardOptions):
            assert getattr(made, name) == value(name, text) != OPTIONS[name].default
        else:
            assert SEEN[name](made)
        return
    with pytest.raises(REFUSALS) as raised:
        face(name, text)
    said = str(raised.value)
    assert "\n" not in said
    assert "is not taken here: " in said
    assert said.endswith(reason)
    assert name in said.lower().replace("-", "_")


def test_there_is_a_text_for_each_option_and_something_to_be_seen():
    assert TEXTS.keys() == OPTIONS.keys()
    fronts = {name for face in (MIDDLEWARE, "twisted", "front") for name in names(face)}
    assert SEEN.keys() == fronts


def names(face):
    return [option.name for option in taken_by(face)]


def test_the_keywords_of_the_guard_are_those_of_the_list():
    """They are written out for editors; in whichever order, with the same defaults."""
    signature = inspect.signature(BusyGuard).parameters.values()
    keywords = {one.name: one.default for one in signature if one.kind is one.KEYWORD_ONLY}
    assert keywords == {option.name: option.default for option in taken_by(MIDDLEWARE)}


def test_almost_threads_in_front_of_the_threads_is_told_what_they_are():
    with pytest.raises(TypeError, match=r"keyword argument 'thread': .* threads is that number$"):
        guarded_site(print, thread=3)


def test_an_argument_of_twist_that_there_is_not_is_told_with_the_nearest():
    with pytest.raises(usage.UsageError, match="--max-quue not recognized; is --max-queue meant"):
        Options().parseOptions(["--max-quue=3"])


def test_what_is_not_in_the_list_is_nobodys():
    with pytest.raises(TypeError, match="unexpected keyword argument 'slot'"):
        BusyGuard(app, slot=8)


def test_what_is_named_is_imported_where_the_app_is():
    options = read_options({"BUSYGUARD_REFUSAL": f"{HERE}:busy", "BUSYGUARD_MAX_QUEUE": "inf"})
    assert options.refusal == f"{HERE}:busy"
    assert loaded(options).refusal is named(f"{HERE}:busy")
    assert loaded(options).max_queue == math.inf
