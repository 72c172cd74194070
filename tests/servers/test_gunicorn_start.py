"""How a guarded gunicorn starts, or says in one line why it does not; hooks and configuration."""

from __future__ import annotations

import os
import pwd
import signal
import socket
import time
from pathlib import Path

import pytest
from support.client import ask, check, eventually, many, together
from support.gunicorns import CLASSES

from wsgi_busyguard.adapters.gunicorn.options import OPTIONS

WRONG = [
    ("check", "here", "expected HOST:PORT"),
    ("agent", "127.0.0.1:65536", "expected HOST:PORT"),
    ("check", "192.0.2.1:8081", "cannot listen for checks"),
    ("agent", "no.such.host.invalid:8081", "cannot listen for checks"),
    ("board", "/proc/board", "/proc/board"),
    ("board", "/", "a board, not the folder"),
    ("board", "/dev/null", "expected a file for a board"),
    ("show_stacks", "perhaps", "show_stacks must be one of"),
    ("slots", "0", "slots must be at least 1, not 0"),
    ("slots", "few", "slots must be a whole number of at least 1"),
    ("max_queue", "-1", "max_queue must be at least 0, not -1"),
    ("max_queue", "5000", "worker_connections=1000 is too few for threads=1 and"),
    ("max_wait", "soon", "max_wait must be a number of seconds"),
    ("max_wait", "nan", "max_wait must be more than 0 seconds"),
    ("client_timeout", "0", "client_timeout must be more than 0 seconds"),
    ("progress_timeout", "0", "progress_timeout must be more than 0 seconds"),
    ("ready", "maybe", "ready must be one of exact, damped, always"),
    ("patience", "-1", "patience must be more than 0 seconds"),
    ("stall_after", "0", "stall_after must be more than 0 seconds"),
    ("retry_after", "1.5", "retry_after must be a whole number of at least 0"),
    ("adaptive", "perhaps", "adaptive must be one of 1, yes"),
    ("check_root", "perhaps", "check_root must be one of 1, yes"),
    ("ready_paths", "healthz", "ready_paths must be paths that begin with '/'"),
    ("live_paths", "/livez,readyz", "live_paths must be paths that begin with '/'"),
    ("live_paths", "/readyz", "/readyz"),
    ("expose_load", "perhaps", "expose_load must be one of 1, yes"),
    ("trust_queue_header", "perhaps", "trust_queue_header must be one of 1, yes"),
    ("client_timeout_header", "X Timeout", "client_timeout_header must be the name of a header"),
    ("dry_run", "yes", "BUSYGUARD_DRY_RUN is not taken here: a guard in front of the threads"),
    ("push", "nowhere", "BUSYGUARD_PUSH='nowhere': expected"),
    ("disable", "maybe", "BUSYGUARD_DISABLE must be one of 1, yes"),
    ("maxqueue", "5", "BUSYGUARD_MAXQUEUE is not known; is BUSYGUARD_MAX_QUEUE meant?"),
    ("nonsense", "5", "BUSYGUARD_NONSENSE is not known; known are slots, max_queue"),
]

# What only a worker can know, for it has the app.
NOT_THERE = [
    ("on_busy", "pager", "BUSYGUARD_ON_BUSY='pager': expected package.module.name, not 'pager'"),
    ("on_free", "os:free", "BUSYGUARD_ON_FREE='os:free': os has no 'free'"),
    ("refusal", "nowhere:app", "BUSYGUARD_REFUSAL='nowhere:app': No module named 'nowhere'"),
    ("refusal", "os:name", "refusal must be a WSGI app, not 'posix'"),
]

PLENTY = {"max_wait": 30, "max_queue": 100}


def test_every_option_has_a_wrong_value_here():
    assert {name for name, *_ in WRONG + NOT_THERE} >= set(OPTIONS)


@pytest.mark.parametrize(("name", "text", "words"), NOT_THERE)
def test_what_is_not_there_is_told_in_one_line_when_the_app_is_loaded(gunicorn, name, text, words):
    served = gunicorn(wait=False, ports=False, **{name: text})
    assert served.ended() not in (0, None)
    [line] = [line for line in served.errors if not line.startswith("[2")]
    assert words in line
    assert "Traceback" not in served.output


def ends_with_one_line(served, words):
    code = served.ended()
    ours = [line for line in served.errors if not line.startswith("[2") or "busyguard: " in line]
    assert len(ours) == 1, served.output
    assert ours[0].startswith("busyguard: ")
    assert words in ours[0]
    assert code not in (0, None)
    assert "Traceback" not in served.output
    assert "Booting worker" not in served.output


@pytest.mark.parametrize(("name", "value", "words"), WRONG, ids=lambda value: str(value)[:30])
def test_what_cannot_be_meant_is_told_in_one_line_before_any_worker(gunicorn, name, value, words):
    ends_with_one_line(gunicorn(wait=False, ports=False, **{name: value}), words)


@pytest.mark.parametrize("kind", ["GuardedThreads", "GuardedSync", "GuardedGevent"])
def test_an_asgi_app_is_told_in_one_line_and_ends_it(gunicorn, kind):
    """gunicorn's own classes serve one: each request is a 500."""
    served = gunicorn(kind=kind, app="gunicorn_app:coming", wait=False, ports=False)
    assert served.ended() == 4  # gunicorn's own code for an app that it cannot load
    [line] = [line for line in served.errors if not line.startswith("[2")]
    assert line.startswith("the application must be a WSGI app, not <function coming at ")
    assert "which is an ASGI app: give the framework's WSGI app" in line
    assert "Traceback" not in served.output


@pytest.mark.parametrize("how", ["--env", "raw_env"])
def test_also_where_gunicorn_is_told_the_environment(gunicorn, conf, how):
    said = "BUSYGUARD_MAX_WAIT=soon"
    argument = f"--env={said}" if how == "--env" else conf(f"raw_env = [{said!r}]")
    ends_with_one_line(gunicorn(argument, wait=False, ports=False), "max_wait must be a number")


@pytest.mark.parametrize("name", ["check", "agent"])
@pytest.mark.parametrize("kind", ["GuardedThreads", "GuardedSync", "GuardedGevent"])
def test_a_port_that_is_taken_is_told_in_one_line(gunicorn, kind, name):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        where = f"127.0.0.1:{taken.getsockname()[1]}"
        served = gunicorn(kind=kind, wait=False, ports=False, **{name: where})
        ends_with_one_line(served, "cannot listen for checks: Address already in use")


def test_a_port_of_another_gunicorn_is_taken_too(gunicorn):
    first = gunicorn()
    second = gunicorn(wait=False, ports=False, check=f"127.0.0.1:{first.check}")
    ends_with_one_line(second, "Address already in use")


def test_a_board_that_is_something_else_is_told_in_one_line(gunicorn, tmp_path):
    (tmp_path / "board").write_text("something else" * 1000)
    served = gunicorn(wait=False, ports=False, board=tmp_path / "board")
    ends_with_one_line(served, "expected a board in")


@pytest.mark.parametrize(
    "kind", ["GuardedThreads", "GuardedSync", "GuardedGevent", "gthread", "sync", "gevent"]
)
@pytest.mark.parametrize(
    ("app", "words"),
    [
        ("nowhere_at_all:app", "No module named 'nowhere_at_all'"),
        ("gunicorn_app:nothing", "Failed to find attribute 'nothing'"),
    ],
)
def test_an_app_that_cannot_be_loaded_ends_it_as_ever(gunicorn, kind, app, words):
    served = gunicorn("-w1", kind=kind, app=app, wait=False, ports=kind.startswith("G"))
    code = served.ended()
    assert code in (3, 4)
    assert words in served.output
    assert "Shutting down: Master" in served.output
    if "attribute" in words:
        assert code == 4


@pytest.mark.parametrize("kind", ["GuardedThreads", "GuardedSync", "gthread"])
def test_a_worker_that_cannot_boot_ends_it_as_ever(gunicorn, conf, kind):
    text = "def post_worker_init(worker):\n    raise RuntimeError('no boot')\n"
    served = gunicorn(conf(text), kind=kind, wait=False, ports=kind.startswith("G"))
    assert served.ended() in (1, 3)
    assert "no boot" in served.output
    assert "Worker failed to boot" in served.output


REFUSING = {"max_queue": 3, "max_wait": 1, "refusal": "gunicorn_app:app", "retry_after": 7}


@pytest.mark.parametrize(
    ("kind", "given", "instead"),
    [
        ("GuardedSync", {"slots": 4, "max_queue": 3}, "use GuardedThreads"),
        ("GuardedGevent", {"max_queue": 3}, "without BUSYGUARD_SLOTS the queue is in the kernel"),
        ("GuardedThreads", {"slots": 4}, "--threads is that number"),
    ],
)
def test_what_has_no_effect_is_said_once_with_what_to_do(gunicorn, kind, given, instead):
    served = gunicorn("-w2", kind=kind, **given)
    served.all_ready(2)
    said = [line for line in served.errors if "has no effect with" in line]
    assert len(said) == len(given)
    for name, line in zip(given, said, strict=True):
        assert f"BUSYGUARD_{name.upper()} has no effect with {kind}: " in line
        assert "WARNING" in line
        assert instead in line


def test_what_has_its_effect_is_not_said(gunicorn):
    served = gunicorn("-w1", kind="GuardedGevent", slots=4, **REFUSING)
    served.all_ready(1)
    assert "has no effect" not in served.output


HOOKS = """
def told(hook):
    def tell(*_):
        import os
        with open({file!r}, "a") as file:
            file.write(f"{{hook}} {{os.getpid()}}\\n")
    return tell

def on_starting(server): told("on_starting")()
def on_reload(server): told("on_reload")()
def when_ready(server): told("when_ready")()
def pre_fork(server, worker): told("pre_fork")()
def post_fork(server, worker): told("post_fork")()
def post_worker_init(worker): told("post_worker_init")()
def worker_exit(server, worker): told("worker_exit")()
def child_exit(server, worker): told("child_exit")()
def nworkers_changed(server, new, old): told("nworkers_changed")()
def pre_request(worker, request): told("pre_request")()
def post_request(worker, request, environ, response): told("post_request")()
def on_exit(server): told("on_exit")()
"""


@pytest.mark.parametrize("kind", ["GuardedThreads", "GuardedSync", "GuardedGevent"])
def test_the_users_own_hooks_are_called_also_after_a_reload(gunicorn, conf, tmp_path, kind):
    file = tmp_path / "hooks"
    text = HOOKS.format(file=str(file))
    served = gunicorn(conf(text), "-w1", kind=kind)
    served.all_ready(1)
    first = served.workers
    assert ask(served.port, path="/x").status == 200
    served.signal(signal.SIGHUP)
    eventually(lambda: served.workers and served.workers != first)
    served.all_ready(1)
    assert served.load["capacity"] >= 1  # child_exit and when_ready are ours, too
    served.signal()
    assert served.ended() == 0
    lines = [line.split() for line in file.read_text().splitlines()]
    called = [hook for hook, _ in lines]
    known = {line.split()[1].partition("(")[0] for line in text.splitlines() if "(server" in line}
    assert set(called) >= known | {"post_worker_init", "pre_request", "post_request"}
    for hook in ("pre_fork", "post_fork", "post_worker_init", "worker_exit", "child_exit"):
        assert called.count(hook) == 2, hook
    for hook in ("when_ready", "on_starting", "on_reload", "on_exit"):
        assert called.count(hook) == 1, hook
    masters = {int(pid) for hook, pid in lines if hook in ("when_ready", "child_exit", "on_exit")}
    assert masters == {served.popen.pid}


def test_the_class_and_the_options_may_be_said_in_the_configuration(gunicorn, conf, held):
    served = gunicorn(
        conf(
            f"worker_class = {CLASSES + 'GuardedThreads'!r}\n"
            'threads = 3\nraw_env = ["BUSYGUARD_RETRY_AFTER=7", "BUSYGUARD_MAX_QUEUE=0"]\n'
        ),
        kind=None,
    )
    assert served.load["capacity"] == 3
    _, threads = many(3, served.port, path=held.path)
    eventually(lambda: served.load["active"] == 3)
    refused = ask(served.port, path="/x")
    held.let_go()
    together(threads)
    assert refused.status == 503
    assert int(refused.headers["retry-after"]) >= 7


def test_a_class_of_the_users_own(gunicorn, conf):
    served = gunicorn(
        conf(
            "from wsgi_busyguard.adapters.gunicorn import GuardedThreads\n"
            "class Mine(GuardedThreads):\n"
            "    def handle_request(self, req, conn):\n"
            "        self.log.info('mine: %s', req.path)\n"
            "        return super().handle_request(req, conn)\n"
            "worker_class = Mine\n"
        ),
        "--threads=2",
        kind=None,
    )
    assert ask(served.port, path="/x").status == 200
    served.logged("mine: /x")
    assert served.load["capacity"] == 2


def test_a_user_without_rights_serves_and_posts(gunicorn, tmp_path):
    if os.geteuid():
        assert pwd.getpwuid(os.geteuid())  # whoever runs the tests is such a user
        served = gunicorn("-w2", board=tmp_path / "board", **PLENTY)
    else:
        drop = ["--user=nobody", "--group=nogroup"]
        served = gunicorn("-w2", *drop, board=tmp_path / "board", **PLENTY)
        owners = {Path(f"/proc/{worker}").stat().st_uid for worker in served.workers}
        assert owners == {pwd.getpwnam("nobody").pw_uid}
    served.all_ready(2)
    together(many(20, served.port, path="/x")[1])
    eventually(lambda: sum(row["served"] for row in served.load["processes"]) == 20)
    for victim in served.workers:
        os.kill(victim, signal.SIGKILL)
        eventually(lambda victim=victim: victim not in served.workers, within=1)
    served.all_ready(2)


LISTENERS = """
import os, time
def post_worker_init(worker):
    def note(word):
        with open({file!r}, "a") as file:
            file.write(f"{{word}} {{os.getpid()}}\\n")
    def raises(change):
        raise RuntimeError("the listener's own fault")
    def hangs(change):
        note("hangs")
        time.sleep(1000)
    worker.monitor.on_busy(raises)
    worker.monitor.on_busy(lambda change: note("busy"))
    worker.monitor.on_busy(hangs)
"""


@pytest.mark.parametrize("kind", ["GuardedThreads", "GuardedSync"])
def test_listeners_run_in_the_workers_and_harm_nobody(gunicorn, conf, tmp_path, kind):
    """One that hangs holds up other listeners of its worker, and nothing else."""
    file = tmp_path / "heard"
    hooks = conf(LISTENERS.format(file=str(file)))
    served = gunicorn(
        hooks, "-w2", "--threads=2", kind=kind, ready="exact", stall_after=2, **PLENTY
    )
    served.all_ready(2)
    workers = served.workers
    answers, threads = many(12, served.port, path="/sleep/0.5")
    eventually(lambda: file.exists() and file.read_text().count("hangs") == 2)
    heard = {int(line.split()[1]) for line in file.read_text().splitlines()}
    assert heard == set(workers)
    if kind == "GuardedThreads":  # also where a check is who notices
        assert {check(served.port).text for _ in range(20)} <= {"busy", "free"}
    together(threads)
    assert {answer.status for answer in answers} == {200}
    eventually(lambda: check(served.check).text == "free")
    eventually(lambda: check(served.port).text == "free")
    answers, threads = many(4, served.port, path="/x")
    together(threads)
    assert {answer.status for answer in answers} == {200}
    served.all_ready(2)
    assert served.workers == workers
    changed = time.monotonic()
    eventually(lambda: time.monotonic() > changed + 2.5, every=0.1)  # as long as a stall takes
    assert max(row["beat"] for row in served.load["processes"]) < 2
    assert ask(served.check, path="/livez").text == "alive"
    assert served.output.count("RuntimeError: the listener's own fault") == 2
    served.signal()
    assert served.ended() == 0
