"""In which lines the requests are: what is read of a dump, and what is made of it."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import threading

import pytest
from support.processes import ROOT

from wsgi_busyguard import BusyGuard, Load, Monitor
from wsgi_busyguard.checkport.ports import CheckApp
from wsgi_busyguard.dashboard import stacks as module
from wsgi_busyguard.dashboard.html import parts
from wsgi_busyguard.dashboard.sentences import stack_lines
from wsgi_busyguard.dashboard.stack_lines import Frame, Thread, folded, place
from wsgi_busyguard.dashboard.stacks import Stacks, threads_in

STDLIB = os.path.dirname(threading.__file__)
SITE = f"{STDLIB}/site-packages"

DUMP = """\
Thread 0x00007f5d2e7fc700 (most recent call first):
  File "/usr/lib/python3.11/socket.py", line 706 in readinto
  File "/srv/shop/rates.py", line 31 in today

Thread 0x00007f5d2e7fc701 [worker-1] (most recent call first):
  Garbage-collecting
  File "/srv/a "quoted" \\xe9.py", line ??? in <listcomp>
  ...

Current thread 0x00007f5d2e7fc702 (most recent call first):
  <no Python frame>
"""


def test_a_dump_is_read():
    threads, complete = threads_in(DUMP)
    assert complete
    assert threads == [
        Thread(
            0x7F5D2E7FC700,
            (
                Frame("/usr/lib/python3.11/socket.py", "706", "readinto"),
                Frame("/srv/shop/rates.py", "31", "today"),
            ),
            True,
        ),
        Thread(
            0x7F5D2E7FC701, (Frame('/srv/a "quoted" \\xe9.py', "???", "<listcomp>"),), whole=False
        ),
        Thread(0x7F5D2E7FC702, (), True),
    ]


@pytest.mark.parametrize("rest", ["", "nonsense\n\n\x00", "Thread", "  File "])
def test_whatever_else_it_says_is_passed_over(rest):
    assert len(threads_in(DUMP + rest)[0]) == 3


def test_it_is_known_that_there_are_more_threads_than_it_tells_of():
    assert not threads_in(DUMP + "...\n")[1]


def test_a_stack_as_deep_as_a_dump_goes_is_cut_though_python_3_13_0_does_not_say_so():
    frames = [f'  File "/srv/shop/deep.py", line {line} in deep\n' for line in range(100)]
    dump = "Thread 0x00000001 (most recent call first):\n"
    [thread], complete = threads_in(dump + "".join(frames))
    assert (thread.whole, complete) == (False, True)
    [thread], _ = threads_in(dump + "".join(frames[1:]))
    assert thread.whole


APP = Frame("/srv/shop/rates.py", "31", "today")
OTHER = Frame("/srv/shop/views.py", "7", "home")
LIBRARY = Frame(f"{SITE}/urllib3/connection.py", "199", "connect")
OUTER_LIBRARY = Frame(f"{SITE}/requests/api.py", "59", "get")
STANDARD = Frame(f"{STDLIB}/socket.py", "706", "readinto")
PLACES = {
    "a library": ([STANDARD, LIBRARY, OUTER_LIBRARY, APP, OTHER], "urllib3/connection.py:199"),
    "the standard library": ([STANDARD, APP, OTHER], "socket.py:706"),
}


@pytest.mark.parametrize(("frames", "called"), PLACES.values(), ids=PLACES)
def test_a_place_is_the_deepest_line_of_a_library_and_of_the_app(frames, called):
    assert place(frames) == f"{called} <- shop/rates.py:31 in today"


def test_a_place_in_the_app_itself_has_no_library():
    assert place([APP, LIBRARY, OTHER]) == "shop/rates.py:31 in today"


def test_a_place_without_a_line_of_the_app_is_the_librarys():
    assert place([STANDARD, LIBRARY]) == "urllib3/connection.py:199"
    assert place([STANDARD]) == "socket.py:706"
    assert place([]) == "no line of the app"


NOTED = Frame(module.__file__, "1", "noted")
SERVER = Frame(f"{STDLIB}/threading.py", "995", "run")


def test_threads_are_folded_by_their_place_the_most_first():
    threads = [Thread(n, (LIBRARY, APP, NOTED, SERVER), True) for n in range(3)]
    threads += [Thread(9, (OTHER, NOTED, SERVER), True), Thread(10, (SERVER,), True)]
    began = {0: 10.0, 1: 5.0, 9: 49.0, 10: 0.0}
    assert folded(threads, True, began, 50.0) == {
        "threads": 4,
        "complete": True,
        "lines": [
            {
                "threads": 3,
                "at": "urllib3/connection.py:199 <- shop/rates.py:31 in today",
                "oldest": 45.0,
            },
            {"threads": 1, "at": "shop/views.py:7 in home", "oldest": 1.0},
        ],
        "why": None,
    }


def test_a_stack_too_deep_to_be_seen_whole_is_of_one_that_has_had_requests():
    deep = [Thread(1, (APP,) * 100, False), Thread(2, (APP,) * 100, False)]
    assert folded(deep, True, {1: 0.0}, 1.0)["threads"] == 1


def test_in_words_it_says_at_least_where_there_are_more_threads():
    stacks = folded([Thread(1, (APP, NOTED), True)], False, {1: 9.0}, 50.0)
    report = {"stacks": stacks}
    assert stack_lines(report) == ["1 of at least 1 in shop/rates.py:31 in today, oldest 41 s"]


@pytest.fixture
def go_on():
    event = threading.Event()
    yield event
    event.set()


@pytest.fixture
def stuck(environ, start, until, go_on):
    """Put three requests into an app that waits, and return the guard."""

    def stuck(app=None, **options):
        came = []

        def outside(password="tell nobody"):
            came.append(password)
            go_on.wait(20)

        def waits(environ, start_response):
            outside()
            return []

        guard = BusyGuard(app or waits, slots=4, show_stacks=True, **options)
        for _ in range(3):
            start(lambda: b"".join(guard(environ("GET", "/secret"), print)))
        until(lambda: guard.monitor.load.active == 3)
        until(lambda: app is not None or len(came) == 3)
        return guard

    return stuck


def test_the_lines_of_real_threads_are_shown_on_the_check_port(stuck):
    guard = stuck()
    shown = CheckApp(guard.monitor).shown()
    (line,) = shown["stacks"]["lines"]
    assert line["at"].startswith("threading.py:")
    assert " <- dashboard/test_stacks.py:" in line["at"]
    assert line["at"].endswith(" in outside")
    assert (line["threads"], shown["stacks"]["threads"]) == (3, 3)
    assert 0 <= line["oldest"] < 20
    assert "What holds the slots" in parts(shown, [])["stacks"]
    assert "3 of 3 in threading.py" in parts(shown, [])["stacks"]


def test_no_argument_no_variable_and_no_path_of_a_request_is_told(stuck):
    told = json.dumps(CheckApp(stuck().monitor).shown())
    assert "nobody" not in told
    assert "secret" not in told


def test_a_body_that_is_iterated_later_is_seen(stuck, go_on):
    def app(environ, start_response):
        yield b"some"
        go_on.wait(20)

    guard = stuck(app)

    def lines():
        return guard.monitor.stacks.look()["lines"]

    seen = guard.monitor.stacks._looked(0.0)
    assert [line["threads"] for line in seen["lines"]] == [3]
    assert lines()[0]["at"].endswith(" in app")


def test_a_thread_that_runs_deep_is_seen(stuck, go_on, until):
    def deep(left):
        return deep(left - 1) if left else go_on.wait(20)

    def app(environ, start_response):
        deep(150)
        return []

    stacks = stuck(app).monitor.stacks
    until(lambda: [line["threads"] for line in stacks._looked(0.0)["lines"]] == [3])


def test_no_look_is_sooner_than_a_second_after_the_last(monkeypatch):
    looks, now = [], [100.0]
    monkeypatch.setattr(module, "dump", lambda: looks.append(1) or "")
    stacks = Stacks(lambda: now[0])
    for now[0] in (100.0, 100.9, 101.1, 101.5, 102.2):
        stacks.look()
    assert len(looks) == 3


def test_where_it_is_not_safe_it_says_so(monkeypatch):
    monkeypatch.setattr(sys, "_is_gil_enabled", lambda: False, raising=False)
    monkeypatch.setattr(module, "dump", lambda: pytest.fail("it has looked"))
    stacks = Stacks().look()
    assert stack_lines({"stacks": stacks})[0].startswith("Not to be seen: without the interpreter")
    assert Stacks().first() == ""


def test_what_cannot_be_read_is_told_and_breaks_nothing(monkeypatch):
    def broken():
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(module, "dump", broken)
    assert "Too many open files" in Stacks().look()["why"]


def test_without_the_option_nothing_is_shown_and_no_call_is_noted():
    guard = BusyGuard(print, slots=1)
    assert guard.monitor.stacks is None
    assert "stacks" not in CheckApp(guard.monitor).shown()
    assert parts(CheckApp(guard.monitor).shown(), [])["stacks"] == ""


def test_the_line_in_the_log_that_says_busy_for_has_the_first(caplog, clock):
    class Stuck:
        load = Load(0, 0, 2)

        def read(self):
            return self.load

    adapter = Stuck()
    monitor = Monitor(adapter, clock=clock)
    monitor.stacks = Stacks(clock)
    monitor.stacks.first = lambda: "2 of 2 in shop/rates.py:31 in today, oldest 41 s"
    caplog.set_level(logging.INFO)
    adapter.load = Load(5, 2, 2, waited=41.0, service=41.0)
    for _ in range(3):
        monitor.refresh()
        clock.now += 20
    told = [record.message for record in caplog.records]
    assert next(line for line in told if "busy for" in line).endswith(
        "; 2 of 2 in shop/rates.py:31 in today, oldest 41 s"
    )
    assert "today" not in told[0]


def test_a_child_sees_its_own_threads_alone(stuck):
    stacks = stuck().monitor.stacks
    pid = os.fork()
    if pid == 0:
        os._exit(stacks.look()["threads"])
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert stacks.look()["threads"] == 3


def test_threads_that_are_gone_are_forgotten(monkeypatch):
    monkeypatch.setattr(module, "MANY_THREADS", 2)
    stacks = Stacks()
    stacks._began.update({1: 0.0, 2: 0.0, threading.get_ident(): 0.0})
    stacks.look()
    assert list(stacks._began) == [threading.get_ident()]


@pytest.mark.slow
def test_looks_while_garbage_is_collected_and_threads_come_and_go_do_not_stop_the_process():
    """What ended the old way within seconds; benchmarks/stacks.py looks as often as it is told."""
    script = """if True:
        import gc, stacks, sys
        gc.set_threshold(100)
        sys.setswitchinterval(1e-5)
        print(stacks.survive(1000))
    """
    command = [sys.executable, "-c", script]
    folder = ROOT / "benchmarks"
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 0
