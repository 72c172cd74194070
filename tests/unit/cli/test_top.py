from __future__ import annotations

import contextlib
import io
import itertools
import json
import re
import socket
import subprocess
import sys
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import get_type_hints

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from support.scenes import Scene, change, row

from wsgi_busyguard import Gate, Load, Monitor
from wsgi_busyguard.checkport import CheckPort
from wsgi_busyguard.cli import main
from wsgi_busyguard.cli.top.hosts import HostLook, HostWatch
from wsgi_busyguard.cli.top.plain_lines import line, tell
from wsgi_busyguard.cli.top.screen import after
from wsgi_busyguard.cli.top.validation import understood
from wsgi_busyguard.cli.top.view import Order, columns, spark, view
from wsgi_busyguard.counters import Changes
from wsgi_busyguard.dashboard.history import Look, look_in
from wsgi_busyguard.dashboard.processes import shown_state
from wsgi_busyguard.dashboard.sentences import sentences
from wsgi_busyguard.load_report import LoadReport
from wsgi_busyguard.metrics.report import look

ROOT = Path(__file__).parents[3]

JAM = Load(40, 10, 10, waited=44.0, service=31.0)


@pytest.fixture
def port(adapter):
    """A check port that tells what ``adapter`` reads."""
    port = CheckPort(Monitor(adapter), "127.0.0.1:0", ready="exact").start()
    yield port
    port.stop()


@pytest.fixture
def address(port):
    return "{}:{}".format(*port.address)


@pytest.fixture
def other(start):
    """A server that says one thing whatever it is asked."""
    servers = []

    def other(body, status=200):
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                self.send_response(status)
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_):
                """Say nothing."""

        server = HTTPServer(("127.0.0.1", 0), Handler)
        servers.append(server)
        start(server.serve_forever, 0.01)
        return f"127.0.0.1:{server.server_port}"

    yield other
    for server in servers:
        server.shutdown()
        server.server_close()


def seen(name="web1:8081", looks=(), balancers=None, **scene):
    """What a look at a scene has shown."""
    scene = Scene(**scene)
    shown = {**look(scene), "alive": scene.alive()}
    if balancers is not None:
        shown["balancers"] = balancers
    code = 0 if scene.ready else 1
    said = sentences(shown, looks)
    return HostLook(name, shown, shown_state(shown), "", code, said, looks, 1)


def drawn(*hosts, width=100, height=40, order=None):
    """The lines of the view, as wide as the terminal at the most."""
    console = Console(width=width, height=height, file=io.StringIO(), color_system=None)
    console.print(view(hosts, order or Order(), width, height))
    lines = console.file.getvalue().splitlines()
    assert all(len(text.rstrip()) <= width for text in lines)
    return [text.rstrip() for text in lines]


# A look


def test_a_look_shows_what_the_check_port_shows(address, adapter):
    adapter.load = Load(2, 1, 4)
    host = HostWatch(address, 2.0)
    assert (host.seen.state, host.seen.code) == ("asking", 2)
    found = host.look()
    assert found is host.seen
    assert (found.state, found.code, found.number) == ("free", 0, 1)
    assert (found.shown["queued"], found.shown["active"]) == (2, 1)
    assert len(host.look().looks) == 2


def test_a_host_that_goes_away_and_comes_back(adapter):
    first = CheckPort(Monitor(adapter), "127.0.0.1:0").start()
    where = "{}:{}".format(*first.address)
    host = HostWatch(where, 2.0)
    assert host.look().state == "free"
    first.stop()
    gone = host.look()
    assert (gone.state, gone.why, gone.code) == ("no answer", "Connection refused", 2)
    assert gone.silent > 0
    assert len(gone.looks) == 1
    again = CheckPort(Monitor(adapter), where).start()
    try:
        back = host.look()
        assert (back.state, back.code, back.silent) == ("free", 0, None)
        assert len(back.looks) == 2
    finally:
        again.stop()


GOOD = json.loads(json.dumps({**look(Scene(processes=(row(7, JAM),))), "alive": True}))
GOOD |= {"balancers": [{"name": "lb-a", "asked": 0.1, "period": 2.0}]}
GOOD |= {"stacks": {"threads": 0, "complete": True, "lines": [], "why": None}}


@pytest.mark.parametrize(
    ("body", "status"),
    [
        pytest.param(b"<html>", 200, id="no JSON"),
        pytest.param(b"[]", 200, id="a list"),
        pytest.param(b"{}", 200, id="nothing in it"),
        pytest.param(json.dumps({**GOOD, "processes": [3]}).encode(), 200, id="odd rows"),
        pytest.param(json.dumps({**GOOD, "queued": "many"}).encode(), 200, id="odd figures"),
        pytest.param(json.dumps({**GOOD, "queued": float("inf")}).encode(), 200, id="no end"),
        pytest.param(json.dumps({**GOOD, "queued": 10**30}).encode(), 200, id="a lot"),
        pytest.param(json.dumps({**GOOD, "processes": [{"state": "x"}]}).encode(), 200, id="less"),
        pytest.param(b"[" * 100_000, 200, id="too deep"),
        pytest.param(json.dumps(GOOD).encode(), 500, id="an error"),
        pytest.param(b"\xff\xfe", 200, id="no text"),
    ],
)
def test_what_is_no_check_port_is_no_answer(other, body, status):
    found = HostWatch(other(body, status), 2.0).look()
    assert (found.state, found.code, found.why) == (
        *("no answer", 2),
        "this is no check port's /load",
    )
    assert found.silent is None  # that was no answer either


@pytest.fixture
def stranger(start):
    """A server that sends these pieces, over and over if it is to be endless."""
    listeners = []

    def stranger(*pieces, every=0.0, endless=False):
        listener = socket.create_server(("127.0.0.1", 0))
        listener.settimeout(10)  # whoever gets no processor for its half second never connects
        listeners.append(listener)
        again = itertools.chain(pieces, itertools.repeat(pieces[-1]) if endless else ())

        def serve():
            with contextlib.suppress(OSError):
                connection, _ = listener.accept()
                with connection:
                    connection.recv(65536)
                    until = time.monotonic() + 5  # or whoever waits for its end waits for ever
                    for piece in itertools.takewhile(lambda _: time.monotonic() < until, again):
                        connection.sendall(piece)
                        time.sleep(every)

        start(serve)
        return f"127.0.0.1:{listener.getsockname()[1]}"

    yield stranger
    for listener in listeners:
        listener.close()


HEAD = b"HTTP/1.1 200 OK\r\n"


@pytest.mark.parametrize(
    ("pieces", "options", "why"),
    [
        pytest.param([HEAD, b"\r\n{", b" "], {"every": 0.05}, "it took too long", id="drops"),
        pytest.param([b"HTT", b"P"], {"every": 0.05}, "it took too long", id="drops of a head"),
        pytest.param([b"\x1b[2J" * 999 + b"\r\n"], {}, "it does not speak HTTP", id="garbage"),
        pytest.param([HEAD, b"X: y\r\n" * 999], {}, "it does not speak HTTP", id="a long head"),
        pytest.param(
            [HEAD + b"\r\n", b"[" * 65536], {}, "this is no check port's /load", id="no end"
        ),
    ],
)
def test_a_stranger_is_no_answer_and_keeps_nobody_waiting(stranger, pieces, options, why):
    host = HostWatch(stranger(*pieces, endless=True, **options), 0.5)
    found = host.look()
    assert (found.state, found.code) == ("no answer", 2)
    assert found.why in (why, "it took too long")
    if why == "it took too long":
        assert found.why == why


def test_figures_of_another_version_are_shown_as_far_as_they_go(other):
    old = {key: GOOD[key] for key in ("state", "ready", "at", "queued", "active", "capacity")}
    found = HostWatch(
        other(json.dumps({**old, "delay": 0.0, "idle": 7, "new": 3}).encode()), 2.0
    ).look()
    assert (found.state, found.code) == ("free", 0)
    assert drawn(found)
    assert drawn(found, found)


def test_what_a_stranger_says_gives_the_terminal_no_orders():
    rows = [{**GOOD["processes"][0], "pid": "b\x07", "state": "d\n\u009be"}]
    balancers = [{"name": "lb\x1b[2J" + 999 * "b", "asked": 0.1, "period": 2.0}]
    told = understood({**GOOD, "state": "a\x1b[2J", "processes": rows, "balancers": balancers})
    assert told["state"] == "a?[2J"
    assert (told["processes"][0]["pid"], told["processes"][0]["state"]) == ("b?", "d??e")
    assert told["balancers"][0]["name"] == "lb?[2J" + 194 * "b"


def test_what_a_check_port_shows_is_understood_as_it_is():
    rows = (row(7, JAM), row(8, Load(0, 1, None), beat=-0.001))
    changes = Changes(1, 0, 10.0, (change("busy", 1.0, JAM, None),))
    balancers = [{"name": "lb-a", "asked": 0.5, "period": 2.0}]
    shown = {**look(Scene(processes=rows, changed=changes)), "alive": True, "balancers": balancers}
    shown["processes"][1]["beat"] = -0.001  # two clocks
    told = understood(json.loads(json.dumps(shown)))
    assert told["processes"][1]["beat"] == 0
    assert sentences(told) == sentences(shown)
    assert told["counts"]["refused"] == shown["counts"]["refused"]
    assert told["changes"] == shown["changes"]
    assert told["balancers"] == balancers
    alone = look(Monitor(Gate(4)))
    assert understood(json.loads(json.dumps(alone)))["counts"]["served"] == 0


junk = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
    lambda each: st.lists(each, max_size=3) | st.dictionaries(st.text(max_size=3), each),
    max_leaves=9,
)


@pytest.mark.slow
@given(
    junk,
    st.sampled_from(
        [*get_type_hints(LoadReport), *(f"processes {key}" for key in GOOD["processes"][0])]
    ),
)
def test_whatever_a_host_says_can_be_drawn_or_is_refused(told, where):
    """Else it would end the view of all the others."""
    part, _, key = where.partition(" ")
    told = [{**GOOD[part][0], key: told}] if key else told
    try:
        shown = understood({**GOOD, part: told})
    except ValueError:
        return
    looks = (look_in(shown, 1.0),)
    found = HostLook("a:1", shown, shown_state(shown), "", 0, sentences(shown), looks, 1)
    for order in range(len(columns(False, 60))):
        drawn(found, width=60, height=24, order=Order(order))
        drawn(found, found, width=60, height=24, order=Order(order))
    drawn(found, width=60, height=24, order=Order(stacks=True))
    assert "\x1b" not in line(found)


@pytest.mark.parametrize("target", ["http://web1/readyz", "web1:99999", "web1:8081/other"])
def test_a_target_that_is_none_is_a_mistake(target, capsys):
    assert main(["top", "--once", target]) == 2
    assert "expected" in capsys.readouterr().err


def test_a_timeout_that_is_none_is_a_mistake(capsys):
    assert main(["top", "--once", "--timeout=0", "8081"]) == 2
    assert "timeout" in capsys.readouterr().err


# Lines, and the exit code


@pytest.mark.parametrize(
    ("load", "code", "says"),
    [
        (Load(0, 1, 4), 0, "free ready queued=0 active=1 capacity=4 delay=0"),
        (Load(5, 4, 4, 1.5), 1, "busy not-ready queued=5 active=4 capacity=4 5 requests wait"),
        (Load(0, 1, None), 0, "free ready queued=0 active=1"),
    ],
    ids=["free", "busy", "no capacity"],
)
def test_once_is_a_line_and_the_code_of_a_check(address, adapter, capsys, load, code, says):
    adapter.load = load
    assert main(["top", "--once", address]) == code
    told = capsys.readouterr().out
    assert told.count("\n") == 1
    assert f" {address} {says}" in told


def test_draining_is_1_and_no_answer_is_2(port, address, capsys):
    port._app._monitor.drain()
    assert main(["top", "--once", address]) == 1
    assert " draining not-ready " in capsys.readouterr().out
    port.stop()
    assert main(["top", "--once", address]) == 2
    assert f" {address} no answer: Connection refused\n" in capsys.readouterr().out


def test_of_several_the_worst_counts(address, other, capsys):
    assert main(["top", "--once", address, other(b"no")]) == 2
    assert capsys.readouterr().out.count("\n") == 2


def test_a_host_given_twice_is_looked_at_once(address, capsys):
    assert main(["top", "--once", address, address]) == 0
    assert capsys.readouterr().out.count("\n") == 1


def test_a_line_has_the_rates_when_there_are_two_looks():
    looks = [
        Look(float(n), 0, 1, 4, 0.0, served=10 * n, refused=(n, 0, 0), dropped=0, asked=0)
        for n in range(3)
    ]
    assert "served/s=10 refused/s=1 2 requests were refused in the last 2 s" in line(
        seen(looks=looks)
    )


def test_lines_go_on_though_a_round_takes_longer_than_a_second(monkeypatch, capsys):
    now = iter([0.0, *(n / 2 for n in range(3, 99))])  # half a second at each look at the clock
    slept = []

    class Enough(Exception):
        pass

    class Slow:
        rounds = 0

        def look(self):
            self.rounds += 1
            if self.rounds > 3:
                raise Enough
            return HostLook("web1:8081", None, "no answer", "it took too long", number=self.rounds)

    monkeypatch.setattr("wsgi_busyguard.cli.top.plain_lines.time.monotonic", lambda: next(now))
    monkeypatch.setattr("wsgi_busyguard.cli.top.plain_lines.time.sleep", slept.append)
    with pytest.raises(Enough):
        tell([Slow()], False)
    assert capsys.readouterr().out.count("it took too long") == 3
    assert min(slept) == 0


def test_the_live_view_without_rich_is_a_mistake_that_names_the_way_out():
    script = """if True:
        import importlib.util, sys
        found = importlib.util.find_spec
        importlib.util.find_spec = lambda name: None if name == "rich" else found(name)
        sys.modules["rich"] = None
        from wsgi_busyguard.cli import main, top
        top._is_terminal = lambda: True
        assert main(["top", "--once", "127.0.0.1:1"]) == 2
        sys.exit(main(["top", "127.0.0.1:1"]))
        """
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, cwd=ROOT
    )
    assert done.returncode == 2
    assert done.stderr == (
        "busyguard: the live view needs rich: pip install 'wsgi-busyguard[top]', or give --once,"
        " which needs nothing\n"
    )
    assert "no answer" in done.stdout


# The view


def test_balancers_are_in_order_and_none_is_cut_off():
    names = [f"a-balancer-{n}" for n in (3, 1, 4, 2)]
    balancers = [{"name": name, "asked": 0.5, "period": 2.0} for name in names]
    text = drawn(seen(balancers=balancers, processes=rows(99)), width=60, height=24)
    told = " ".join(" ".join(text).split())
    assert re.findall(r"a-balancer-(\d) 500 ms ago", told) == ["1", "2", "3", "4"]
    assert "each for up to 3 at once" in told
    assert len(text) <= 24


def test_of_a_stalled_host_nobody_says_how_long_one_waits():
    looks = [Look(float(n), 40, 10, 10, 9.0) for n in range(3)]
    for lives, there in ((True, True), (False, False)):
        stuck = seen(load=JAM, lives=lives, looks=looks)
        assert any(each.startswith("wait ") for each in drawn(stuck)) is there
        assert ("min" in drawn(stuck, stuck)[1]) is there


def test_a_process_that_makes_no_progress_is_stalled_at_any_width():
    stuck = (row(7, JAM, beat=9.0), row(8, JAM))
    for width in (60, 200):
        states = [each.split()[:2] for each in drawn(seen(processes=stuck), width=width)]
        assert ["7", "stalled"] in states
        assert ["8", "ready"] in states


def test_a_host_that_has_just_been_asked_is_not_called_one_without_an_answer():
    told = "\n".join(drawn(HostLook("web1:8081"), seen("web2:8081")))
    assert "asking" in told
    assert "no answer" not in told
    assert "web1:8081:" not in told
    assert "It has just been asked." in "\n".join(drawn(HostLook("web1:8081")))


def rows(count, load=JAM):
    return tuple(row(4000 + n, load._replace(queued=n), beat=n / 10) for n in range(count))


@pytest.mark.parametrize("width", [60, 80, 100, 132, 200])
@pytest.mark.parametrize("kind", ["free", "busy", "draining", "absent"])
def test_one_host_at_any_width(kind, width):
    ready = kind == "free"
    text = drawn(seen(word=kind, ready=ready, processes=rows(4)), width=width)
    assert text[0].startswith(kind if ready else f"{kind} (503)")
    assert "web1:8081" in text[0]
    assert [each for each in text if each.startswith("process ")]
    assert [each.split()[0] for each in text if each[:2] == "40"] == [
        "4000",
        "4001",
        "4002",
        "4003",
    ]


@pytest.mark.parametrize("width", [60, 80, 100, 132, 200])
def test_several_hosts_at_any_width(width):
    names = ["web1:8081", "a-host-with-a-rather-long-name.example.org:8081", "10.0.0.3:8081"]
    hosts = [seen(name, load=JAM, word="busy", ready=False) for name in names[:2]]
    gone = HostLook(names[2], None, "no answer", "Connection refused", number=3, silent=4.0)
    text = drawn(*hosts, gone, width=width)
    table = text[:4]
    assert "wait" in table[0]
    assert all("busy (503)" in each for each in table[1:3])
    assert all("10 of 10" in each for each in table[1:3])
    assert "no answer" in table[3]
    told = " ".join(" ".join(text).split())
    assert "10.0.0.3:8081: no answer: Connection refused; the last answer came 4.0 s ago." in told
    assert "web1:8081: 40 requests wait for a thread" in told


def test_a_low_window_shows_the_rows_there_is_room_for_and_says_so():
    text = drawn(seen(processes=rows(200)), height=24)
    assert len(text) <= 24
    assert any(each.endswith(" more") for each in text)
    text = drawn(*[seen(f"web{n}:8081") for n in range(80)], height=24)
    assert len(text) <= 24
    assert "59 more" in text


def test_the_changes_and_the_balancers_are_told():
    one = change("busy", 0.0, JAM, 3.0)._replace(at=look(Scene())["at"] - 10)
    balancers = [{"name": "lb-a", "asked": 0.5, "period": 2.0}]
    told = "\n".join(drawn(seen(changed=Changes(1, 0, 10.0, (one,)), balancers=balancers)))
    assert "busy 1 x, 10 s in all; busy 10 s ago" in told
    assert "1 ask, each for up to 10 at once: lb-a 500 ms ago" in told
    assert "none asks the agent" in "\n".join(drawn(seen(balancers=[])))


def test_by_keys_the_order_is_chosen():
    count = len(columns(True, 60))
    order = Order()
    for _ in range(2):
        order = after(order, "s", count)
    assert order.column == 2
    hosts = [seen(f"web{n}:1", load=Load(n, 10, 10)) for n in (1, 3, 2)]
    assert [each[:4] for each in drawn(*hosts)[1:4]] == ["web1", "web3", "web2"]
    text = drawn(*hosts, order=order)
    assert "queued*" in text[0]
    assert [each[:4] for each in text[1:4]] == ["web3", "web2", "web1"]
    for _ in range(count - 2):
        order = after(order, "s", count)
    assert order.column == 0
    assert after(order, "x", count) == order


@pytest.mark.parametrize("width", [60, 200])
@pytest.mark.parametrize("several", [False, True], ids=["processes", "hosts"])
def test_every_column_can_be_sorted_by(width, several):
    things = (
        [seen("a:1", processes=rows(3)), HostLook("b:1")]
        if several
        else [seen(processes=(*rows(3), row(7, Load(0, 1, None))))]
    )
    for n in range(len(columns(several, width))):
        assert drawn(*things, width=width, order=Order(n))


STACKS = {
    "threads": 4,
    "complete": True,
    "lines": [{"threads": 3, "at": "shop/rates.py:31 in today", "oldest": 41.0}],
    "why": None,
}


def test_the_lines_of_code_that_requests_are_in_are_shown_on_demand():
    host = seen()
    told = json.loads(json.dumps({**host.shown, "stacks": STACKS}))
    host = host._replace(shown=understood(told))
    wanted = "  3 of 4 in shop/rates.py:31 in today, oldest 41 s"
    assert wanted not in drawn(host)
    assert wanted in drawn(host, order=after(Order(), "t", 5))
    assert "show_stacks" in "\n".join(drawn(seen(), order=Order(stacks=True)))


def test_a_spark_is_as_high_as_its_value_and_never_hides_one():
    assert spark([0, 1, 100, None, 50], 8).plain == "    ▁█ ▅"
    assert spark([], 4).plain == "    "
    assert spark([1.0] * 9, 4).plain == "████"


def test_where_figures_are_long_whole_columns_give_way():
    huge = Load(10**5, 10**5, 10**5, waited=7500.0, service=1.0)
    text = drawn(seen("a-host-with-a-rather-long-name:1", load=huge, ready=False), seen(), width=60)
    heads = text[0].split()
    assert heads[:4] == ["host", "state", "queued", "in"]
    assert "wait" not in heads
    assert "100\u00a0000 of 100\u00a0000" in text[1]
    assert text[1].startswith("a-")
