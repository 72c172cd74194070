from __future__ import annotations

import base64
import hashlib
import html.parser
import json
import math
import re
import socket
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.client import Line, ask, request
from support.scenes import Scene, change, past, row

from wsgi_busyguard import Gate, Load, Monitor
from wsgi_busyguard.checkport import CheckPort
from wsgi_busyguard.counters import Changes, Counters
from wsgi_busyguard.dashboard import Page
from wsgi_busyguard.dashboard.charts import HIGH, WIDE, chart
from wsgi_busyguard.dashboard.formatting import grouped, length, many, of, span
from wsgi_busyguard.dashboard.history import (
    KEPT_LOOKS,
    Look,
    LookHistory,
    gone,
    lately,
    lengths,
    look_at,
    look_in,
    quantile,
    rates,
    stuck_for,
)
from wsgi_busyguard.dashboard.html import MOST_ROWS, parts
from wsgi_busyguard.dashboard.processes import row_state, shown_state
from wsgi_busyguard.dashboard.sentences import NOTE, RULES, WELL, WRONG, sentences, summary
from wsgi_busyguard.metrics.report import look


def shown(scene=None, agent=None, **more):
    """What ``/load`` shows of a scene."""
    scene = scene or Scene(**more)
    return {**look(scene, agent), "alive": scene.alive()}


def looks(*, seconds=60, served=10.0, refused=(0.0, 0.0, 0.0), dropped=0.0, asked=1.0, **figures):
    """A look a second; the counts go up by so much a second."""
    figures = {"queued": 0, "active": 3, "capacity": 10, "delay": 0.0, **figures}
    return [
        Look(
            float(n),
            **figures,
            served=None if served is None else int(served * n),
            refused=None if served is None else tuple(int(each * n) for each in refused),
            dropped=None if served is None else int(dropped * n),
            asked=int(asked * n),
        )
        for n in range(seconds + 1)
    ]


def said(now=None, before=(), kind=None):
    return [s.text for s in sentences(now or shown(), before) if kind in (None, s.kind)]


# What is wrong, in plain words

FULL = {"queued": 7, "active": 10, "capacity": 10, "delay": 9.0}
JAMMED = Load(7, 10, 10, waited=9.0, service=31.0)
UNSERVED = Counters(10, 0, (0, 0, 0), 0)


@pytest.mark.parametrize(
    ("now", "before", "sentence"),
    [
        pytest.param({}, looks(), "Nothing is wrong.", id="well"),
        pytest.param(
            {"load": Load(1, 3, 10)}, (), "Nothing is wrong: the queue is moving.", id="moving"
        ),
        pytest.param(
            {"word": "busy", "load": JAMMED},
            looks(seconds=31, served=0.0, **FULL),
            "Every thread has been in the app for more than 31 s: the outside service?",
            id="stuck",
        ),
        pytest.param(
            {"word": "busy", "load": Load(1, 1, 1, waited=9.0)},
            looks(seconds=31, served=0.0, **{**FULL, "active": 1, "capacity": 1}),
            "The only thread has been in the app for more than 31 s: the outside service?",
            id="stuck, one thread",
        ),
        pytest.param(
            {"load": Load(0, 6, 10)},
            looks(seconds=31, served=0.0, active=6),
            "Nothing has come out of the app for 31 s, with 6 of 10 threads in it: the outside"
            " service?",
            id="many are stuck",
        ),
        pytest.param(
            {"load": JAMMED, "counted": None, "word": "busy"},
            looks(served=None, **FULL),
            "Every thread is in the app and a request takes 31 s: the outside service?",
            id="stuck, nobody counts",
        ),
        pytest.param(
            {"word": "busy", "load": JAMMED},
            (),
            "7 requests wait for a thread; nobody has got one for 9.0 s.",
            id="queue",
        ),
        pytest.param(
            {"word": "busy", "load": Load(1, 10, 10, waited=0.3)},
            (),
            "1 request waits for a thread; nobody has got one for 300 ms.",
            id="one waits",
        ),
        pytest.param(
            {"word": "busy", "load": Load(0, 10, 10)},
            (),
            "Every thread is in the app, and nobody waits: the queue has just gone.",
            id="just full",
        ),
        pytest.param(
            {"word": "busy", "load": Load(0, 1, 10, lag=0.8)},
            (),
            "The server takes new connections in 800 ms late: something computes, or no file"
            " descriptor or connection is left.",
            id="a late loop",
        ),
        pytest.param(
            {"word": "busy", "load": Load(1, 1, 1, lag=2.4)},
            (),
            "The server takes new connections in 2.4 s late: every thread is in the app, or"
            " something computes.",
            id="nobody gets in",
        ),
        pytest.param(
            {},
            looks(refused=(2.0, 0.0, 0.0)),
            "120 requests were refused in the last minute (17%): the queue was full.",
            id="full queue",
        ),
        pytest.param(
            {},
            looks(seconds=10, served=8.0, refused=(1.0, 1.0, 0.0)),
            "20 requests were refused in the last 10 s (20%): 10 as the queue was full; 10 as the"
            " wait was too long.",
            id="two reasons",
        ),
        pytest.param(
            {},
            looks(seconds=10, served=0.0, refused=(1.0, 0.0, 0.0)),
            "10 requests were refused in the last 10 s, and none served: the queue was full.",
            id="nothing but refusals",
        ),
        pytest.param(
            {"word": "draining", "load": Load(2, 3, 10)},
            looks(refused=(0.0, 0.0, 1.0)),
            "The server is shutting down: 5 requests to finish. New ones should go elsewhere.",
            id="draining",
        ),
        pytest.param(
            {
                "word": "draining",
                "load": Load(0, 0, 10),
                "processes": (row(7, Load(0, 0, 10), state="stopping"),),
            },
            (),
            "The server is shutting down: no request is left to finish. New ones should go"
            " elsewhere.",
            id="drained",
        ),
        pytest.param(
            {"word": "draining", "processes": (row(7, Load(0, 3, 8)),)},
            (),
            "The server was told to drain: every check says so, and requests are served as before.",
            id="told to drain",
        ),
        pytest.param(
            {"word": "absent", "processes": (row(7, Load(0, 0, 8), state="starting"),)},
            (),
            "No process is there to serve: does the app start at all? See the server's log."
            " 1 process is starting.",
            id="absent",
        ),
        pytest.param(
            {
                "word": "busy",
                "lives": False,
                "processes": (row(7, JAMMED, beat=41.0), row(8, JAMMED, beat=44.0)),
            },
            looks(seconds=31, served=0.0, **FULL),
            "No process has made any progress for 41 s: is the machine out of memory, are they"
            " stopped, or does a call keep the interpreter's lock? A restart may help.",
            id="stalled",
        ),
        pytest.param(
            {"load": Load(0, 0, None)},
            (),
            "No process is there to serve. Checks will say so, if none comes in a moment.",
            id="all have just been killed",
        ),
        pytest.param(
            {"word": "busy", "load": JAMMED, "counted": UNSERVED},
            looks(seconds=6, served=0.0, **FULL),
            "Every thread has been in the app for more than 6 s: the outside service?",
            id="stuck from the first request on",
        ),
        pytest.param(
            {"processes": (row(7, Load(0, 0, 8)), row(8, Load(0, 0, 8), beat=14.2))},
            (),
            "Process 8 has made no progress for 14 s.",
            id="one silent",
        ),
        pytest.param(
            {"processes": tuple(row(n, Load(0, 0, 8), beat=n) for n in range(7, 12))},
            (),
            "Processes 11, 10, 9 and 2 more have made no progress for 7 s and longer.",
            id="many silent",
        ),
        pytest.param(
            {"processes": (row(7, Load(4, 8, 8, waited=0.9)), row(8, Load(0, 2, 8)))},
            (),
            "4 requests wait in 1 of 2 processes while 6 threads are idle in others.",
            id="uneven",
        ),
        pytest.param(
            {},
            looks(dropped=0.1),
            "6 clients left in the last minute before being served.",
            id="left",
        ),
        pytest.param(
            {"processes": (row(7, Load(0, 0, 8), state="starting"), row(8, Load(0, 0, 8)))},
            (),
            "1 process is starting.",
            id="starting",
        ),
        pytest.param(
            {},
            looks(asked=0.0),
            "Nobody has asked for the state in the last minute: does a balancer check this server?",
            id="unasked",
        ),
        pytest.param(
            {"load": Load(0, 2, None)},
            (),
            "How many requests may be in the app at once is not known: checks say free.",
            id="no capacity",
        ),
    ],
)
def test_what_there_is_to_say(now, before, sentence):
    assert sentence in said(shown(**now), before)


def test_a_restless_state_is_worth_a_word():
    now = time.time()
    flips = tuple(
        change("busy" if n % 2 else "free", now - 5 * n, Load(3, 8, 8), 5.0) for n in range(8)
    )
    assert "The state has changed 8 times in the last minute, between free and busy." in said(
        shown(changed=Changes(4, 4, 20.0, flips))
    )
    calm = tuple(one._replace(at=one.at - 60) for one in flips)
    assert not any("changed" in s for s in said(shown(changed=Changes(4, 4, 20.0, calm))))


@pytest.mark.parametrize(
    ("now", "before"),
    [
        pytest.param({}, looks(seconds=200), id="free"),
        pytest.param({"load": Load(0, 0, 10)}, (), id="idle, and no process is shown"),
        pytest.param({"load": Load(0, 10, 10)}, looks(served=0.5, **FULL), id="full, but it moves"),
        pytest.param({}, looks(served=0.0, active=4), id="some that take long"),
        pytest.param(
            {"counted": UNSERVED},
            looks(seconds=20, served=0.0, **{**FULL, "queued": 0}),
            id="first requests that take their time, and nobody waits",
        ),
        pytest.param({}, looks(seconds=4, served=0.0, **FULL), id="full for a moment"),
        pytest.param(
            # One request took 12 s on average: ten seconds without one are nothing.
            {"counted": Counters(9, 9, (0, 0, 0), 0, (0,) * 11 + (9, 0), 9 * 12 * 10**9)},
            looks(seconds=20, served=0.0, **FULL),
            id="requests that always take long",
        ),
        pytest.param(
            {"processes": (row(7, Load(1, 8, 8, waited=0.1)), row(8, Load(0, 2, 8)))},
            (),
            id="a queue of a moment",
        ),
        pytest.param(
            {"word": "draining", "load": Load(0, 0, 10)},
            looks(refused=(0.0, 0.0, 3.0)),
            id="refused in a shutdown",
        ),
    ],
)
def test_what_is_as_it_should_be_is_not_called_wrong(now, before):
    assert said(shown(**now), before, WRONG) == []


def test_of_threads_that_are_stuck_nobody_says_that_the_queue_has_just_gone():
    stuck = looks(seconds=31, served=0.0, **{**FULL, "queued": 0})
    texts = said(shown(word="busy", load=Load(0, 10, 10)), stuck)
    assert any("in the app for more than 31 s" in text for text in texts)
    assert not any("just gone" in text for text in texts)


def test_whatever_is_wrong_nobody_says_that_nothing_is():
    refusing = looks(refused=(2.0, 0.0, 0.0))
    assert said(shown(), refusing, WELL) == []
    assert said(shown(word="busy", load=JAMMED), (), WELL) == []
    assert said(shown(), looks(), WELL) == ["Nothing is wrong."]


def test_a_process_that_is_stuck_is_said_to_be_busy_by_checks_and_stalled_here():
    assert shown_state(shown(word="busy", lives=False)) == "stalled"
    assert shown_state(shown(word="free", lives=False)) == "stalled"
    assert shown_state(shown(word="draining", lives=False)) == "draining"
    assert shown_state({**shown(word="busy"), "alive": None}) == "busy"


@pytest.mark.parametrize(
    ("now", "sentence"),
    [
        ({}, "3 of 10 in the app, nobody waits. Balancers are told: ready (200)."),
        (
            {"word": "busy", "ready": False, "load": JAMMED},
            "10 of 10 in the app, 7 requests waiting, one that comes now waits 22 s. Balancers are"
            " told: not ready (503).",
        ),
        (
            {"load": Load(0, 2, None)},
            "2 in the app, nobody waits. Balancers are told: ready (200).",
        ),
        (
            {"word": "draining", "ready": False, "load": JAMMED},
            "10 of 10 in the app, 7 requests waiting. Balancers are told: not ready (503).",
        ),
        (
            {"word": "busy", "lives": False, "load": JAMMED},
            "When last heard of: 10 of 10 in the app, 7 requests waiting. Balancers are told:"
            " ready (200); live: no (503).",
        ),
    ],
    ids=["free", "busy", "no capacity", "draining", "stalled"],
)
def test_the_summary(now, sentence):
    assert summary(shown(**now)) == sentence


# Numbers and times


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, "not known"),
        (0.0, "0 s"),
        (0.0004, "0 s"),
        (0.0009, "1 ms"),
        (0.84, "840 ms"),
        (0.9996, "1.0 s"),
        (9.94, "9.9 s"),
        (9.96, "10 s"),
        (7, "7 s"),
        (119.4, "119 s"),
        (119.6, "2 min 0 s"),
        (125, "2 min 5 s"),
        (7500, "2 h 5 min"),
        (90000, "1 d 1 h"),
    ],
)
def test_a_length_of_time_is_in_the_unit_that_fits(seconds, text):
    assert span(seconds) == text


def test_numbers_are_apart_and_nouns_agree():
    assert grouped(1234567) == "1\u00a0234\u00a0567"
    assert grouped(None) == "\u2013"
    assert many(1, "request") == "1 request"
    assert many(0, "process is", "processes are") == "0 processes are"
    assert of(3, 8) == "3 of 8"
    assert of(3, None) == "3"


# The last minutes


def test_five_minutes_are_kept():
    kept = LookHistory(looks(seconds=KEPT_LOOKS + 50))
    assert len(kept.looks) == KEPT_LOOKS
    assert kept.looks[-1].at == KEPT_LOOKS + 50


@pytest.mark.parametrize(
    "next_",
    [
        pytest.param({"at": 11.0, "served": 2}, id="its host was started anew"),
        pytest.param({"at": 60.0, "served": 200}, id="nobody looked for a while"),
        pytest.param({"at": 1.0, "served": 200}, id="the clock was set back"),
    ],
)
def test_what_does_not_go_on_begins_anew(next_):
    kept = LookHistory(looks(seconds=10))
    kept.keep(kept.looks[-1]._replace(**next_))
    assert len(kept.looks) == 1


def test_every_thread_is_in_the_app_since_the_last_one_came_out():
    jam = looks(seconds=20, served=0.0, **FULL)
    assert stuck_for(jam) == 20.0
    jam[5] = jam[5]._replace(active=9)
    assert stuck_for(jam) == 14.0
    jam[-1] = jam[-1]._replace(served=1)
    assert stuck_for(jam) == 0.0
    assert stuck_for([]) == 0.0
    assert stuck_for(looks(served=0.0, **{**FULL, "capacity": None})) == 0.0
    assert stuck_for(looks(served=0.0, **{**FULL, "capacity": 0})) == 0.0


def test_what_was_counted_lately_is_what_came_within_the_minute():
    recent = lately(looks(seconds=200, served=5.0, refused=(1.0, 0.0, 2.0), dropped=3.0))
    assert recent.seconds == 60
    assert recent.served == 300
    assert recent.refused == {"queue-full": 60, "queue-age": 0, "draining": 120}
    assert recent.dropped == 180
    assert recent.asked == 60
    assert lately(looks(seconds=0)) is None
    assert lately([]) is None


def test_a_rate_is_the_difference_of_two_looks():
    served, refused = rates(looks(seconds=2, served=5.0, refused=(1.0, 2.0, 0.0)))
    assert served == [None, 5.0, 5.0]
    assert refused == [None, 3.0, 3.0]
    assert rates(looks(seconds=1, served=None)) == ([None, None], [None, None])


def test_a_look_at_a_monitor_is_the_look_in_what_it_shows():
    monitor = Monitor(Gate(4))
    monitor.check()
    assert look_at(monitor, 7.0) == look_in(look(monitor), 7.0)
    assert look_at(monitor, 7.0).served is not None
    assert look_at(monitor, 7.0).asked == 1


def test_a_look_at_what_counts_nothing(adapter):
    assert look_at(Monitor(adapter), 7.0) == Look(7.0, 0, 0, 4, 0.0, asked=0)
    shows = look(Monitor(adapter))
    assert look_in(shows, 7.0) == Look(7.0, 0, 0, 4, 0.0, asked=0)


# Charts

numbers = st.one_of(st.none(), st.floats(0, 1e9))


@given(st.lists(st.tuples(st.floats(0, 400), numbers)), st.floats(0, 1e9))
def test_whatever_is_drawn_stays_within_the_drawing(points, top):
    points.sort(key=lambda point: -point[0])
    drawing = chart([age for age, _ in points], [value for _, value in points], top, says="it")
    for x, y in re.findall(r"[ML]([\d.e-]+) ([\d.e-]+)", drawing):
        assert 0 <= float(x) <= WIDE
        assert 0 <= float(y) <= HIGH


def test_a_chart_is_cut_where_nobody_looked():
    ages = [60.0, 59.0, 58.0, 20.0, 19.0, 18.0]
    assert chart(ages, [1.0, 2.0, 1.0] * 2, 2.0, says="it").count('class="line"') == 2
    assert chart(ages, [1.0, None, 1.0, 1.0, 2.0, 2.0], 2.0, says="it").count("line") == 1


def test_a_line_that_stays_where_it_is_has_two_ends():
    drawing = chart([9.0, 8.0, 7.0, 6.0, 5.0], [1.0] * 5, 2.0, says="it")
    assert 'class="line" d="M210.0 30.0L250.0 30.0"' in drawing


# The page


class Words(html.parser.HTMLParser):
    """Reads HTML: the text, the elements, and whether they are closed in order."""

    VOID = ("meta", "rect", "path")

    def __init__(self, text):
        super().__init__()
        self.words, self.open, self.elements = [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)

    @property
    def text(self):
        return " ".join(self.words)


EVIL = "<script>alert('\"&')</script>"


class Agent:
    """Is asked by somebody with such a name."""

    def balancers(self):
        return [{"name": EVIL, "asked": 0.2, "period": 2.0}]


def test_whatever_a_stranger_chooses_is_escaped():
    told = shown(word=EVIL, agent=None)
    told.update(balancers=Agent().balancers(), reads=EVIL)
    told["processes"] = [{**look(Scene(processes=(row(7, JAMMED),)))["processes"][0]}]
    told["processes"][0].update(pid=EVIL, state=EVIL)
    told["changes"] = [{**told_change(), "state": EVIL}]
    told["transitions"] = {"busy": 1, "free": 0}
    body = Page(Scene()).body(told)
    assert EVIL not in body
    assert body.count("<script>") == 1
    read = Words(body)
    assert [tag for tag, _ in read.elements].count("script") == 1
    assert read.text.count(EVIL) >= 5


def told_change():
    one = change("busy", time.time(), JAMMED, 3.0)
    return look(Scene(changed=Changes(1, 0, 1.0, (one,))))["changes"][0]


def page(asking=None, **more):
    scene = Scene(**more)
    made = Page(scene)
    made.look(1.0)
    made.look(2.0)
    told = shown(scene)
    return Words(made.body(told if asking is None else {**told, "balancers": asking}))


def test_the_page_asks_nobody_else_for_anything():
    elements = page().elements
    assert not any(tag in ("link", "img", "iframe", "object", "base") for tag, _ in elements)
    assert not any("src" in attributes for _, attributes in elements)
    assert {tag for tag, attributes in elements if "href" in attributes} == {"a"}  # for a click
    assert not any("style" in attributes for _, attributes in elements)  # which the policy forbids
    assert not any(name.startswith("on") for _, attributes in elements for name in attributes)


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("free", ["free", "Nothing is wrong.", "3 of 10 in the app"]),
        ("busy", ["busy", "7 requests wait for a thread", "not ready (503)"]),
        ("draining", ["draining", "The server is shutting down"]),
        ("absent", ["absent", "No process is there to serve"]),
    ],
)
def test_the_page_says_how_it_is(kind, words):
    text = page(word=kind, ready=kind == "free", load=Load(0, 3, 10) if kind != "busy" else JAMMED)
    for each in words:
        assert each in text.text


def test_there_is_a_row_for_each_process():
    rows = tuple(row(4000 + n, Load(0, n, 8)) for n in range(16))
    text = page(processes=rows).text
    assert "Processes: 16" in text
    for n in range(16):
        assert f"{4000 + n}" in text


def test_of_very_many_processes_the_busiest_are_shown():
    rows = tuple(row(4000 + n, Load(n, 8, 8)) for n in range(300))
    text = page(processes=rows).text
    assert "4299" in text
    assert "4000" not in text
    assert f"{300 - MOST_ROWS} more, with less to do." in text


def test_what_nobody_knows_is_a_dash(adapter):
    """A monitor alone, of an adapter that counts nothing."""
    adapter.load = Load(0, 2, None)
    monitor = Monitor(adapter)
    made = Page(monitor)
    made.look(1.0)
    text = Words(made.body(look(monitor))).text
    assert "Requests are not counted here: the guard is no gate." in text
    assert "None" not in text.replace("None does.", "")


def test_an_open_page_is_told_the_parts_that_the_page_has():
    made = Page(Scene())
    told = json.loads(made.event(shown()))
    assert told["title"] == f"free \u00b7 {socket.gethostname()} \u00b7 busyguard"
    elements = Words(made.body(shown())).elements
    ids = {attributes["id"] for tag, attributes in elements if tag == "section"}
    assert set(told["parts"]) == ids == set(parts(shown(), ()))


# On the check port


BROWSER = {"Accept": "text/html,application/xhtml+xml,*/*;q=0.8"}


@pytest.fixture
def port():
    monitor = Monitor(Gate(4))
    port = CheckPort(monitor, "127.0.0.1:0").start()
    yield port.address[1]
    port.stop()


def test_the_page_is_at_the_root_of_the_check_port(port):
    answer = ask(port, headers=BROWSER)
    assert answer.status == 200
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    assert answer.headers["cache-control"] == "no-store"
    assert "0 of 4 in the app" in Words(answer.text).text
    head = ask(port, "HEAD", headers=BROWSER)
    assert head.status == 200
    assert abs(int(head.headers["content-length"]) - len(answer.body)) < 3000
    assert ask(port, "POST", body=b"x").status == 405
    assert ask(port, "OPTIONS").text == "free"
    assert ask(port, path="/?anything=else").status == 200


def test_the_policy_allows_what_is_in_the_page_and_nothing_else(port):
    answer = ask(port, headers=BROWSER)
    policy = dict(
        each.strip().split(" ", 1) for each in answer.headers["content-security-policy"].split(";")
    )
    assert policy["default-src"] == "'none'"
    assert policy["connect-src"] == "'self'"
    assert set(policy) == {
        *("default-src", "style-src", "script-src", "connect-src", "base-uri", "form-action"),
        "frame-ancestors",
    }
    for tag, directive in (("style", "style-src"), ("script", "script-src")):
        text = re.search(f"<{tag}>(.*?)</{tag}>", answer.text, re.DOTALL)[1]
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert policy[directive] == f"'sha256-{digest}'"


def test_an_open_page_is_told_the_news(port, until):
    with Line(port) as line:
        line.send(request(path="/?watch"))
        said = b""

        def events():
            nonlocal said
            said += line.socket.recv(65536)
            return [each for each in said.split(b"\n\n") if each.startswith(b"data: ")]

        until(lambda: len(events()) >= 2 and said.endswith(b"\n\n"))
        assert b"Content-Type: text/event-stream" in said
        told = json.loads(events_in(said)[-1])
        assert "free" in told["parts"]["state"]


def events_in(said):
    return [part[6:] for part in said.split(b"\n\n") if part.startswith(b"data: ")]


@pytest.mark.slow
def test_the_port_looks_though_nobody_asks(until):
    """So that whoever opens the page sees the minutes before."""
    port = CheckPort(Monitor(Gate(4)), "127.0.0.1:0").start()
    try:
        until(lambda: len(port._app.page._history.looks) >= 2)
    finally:
        port.stop()


def test_looks_that_fail_leave_the_answers_alone(until):
    port = CheckPort(Monitor(Gate(4)), "127.0.0.1:0")

    def fail(now):
        raise RuntimeError("the look")

    port.every = fail
    port.start()
    try:
        until(lambda: port.loop.failures >= 1)
        assert ask(port.address[1], path="/readyz").text == "free"
        assert repr(port.loop.failure) == "RuntimeError('the look')"
    finally:
        port.stop()


def test_serving_the_page_imports_nothing(python):
    """As the loop's thread must not: the process may be about to fork."""
    assert (
        python("""
        import sys
        from wsgi_busyguard import Gate, Monitor
        from wsgi_busyguard.checkport import CheckApp
        app = CheckApp(Monitor(Gate(4)))
        before = set(sys.modules)
        app.page.look(1.0)
        app.page.look(2.0)
        app.page.body(app.shown())
        app.page_event()
        print(*set(sys.modules) - before)
        """)
        == "\n"
    )


def test_past_minutes_of_a_scene_fill_the_charts():
    made = Page(Scene())
    for each in past(
        1000.0, lambda ago: (ago % 3, 3, 10, 0.1, 5000 - ago, (0, 0, 0), 0, 5000 - ago)
    ):
        made._history.keep(each)
    text = Words(made.body(shown())).text
    assert "most 2" in text
    assert "1/s" in text


def test_where_all_is_quiet_there_is_nothing_else_to_say():
    assert said(shown(), looks(seconds=200)) == ["Nothing is wrong."]
    asking = {**shown(), "balancers": [{"name": "lb-a", "asked": 0.5, "period": 2.0}]}
    assert said(asking, looks(asked=0.0)) == ["Nothing is wrong."]


def test_of_processes_that_are_stuck_themselves_no_outside_service_is_suspected():
    jam = looks(seconds=31, served=0.0, **FULL)
    assert "outside service" in " ".join(said(shown(word="busy", load=JAMMED), jam))
    stalled = said(shown(word="busy", load=JAMMED, lives=False), jam)
    assert "outside service" not in " ".join(stalled)
    full = shown(word="busy", load=Load(0, 10, 10))
    assert "just gone" in " ".join(said(full))
    assert "just gone" not in " ".join(said({**full, "alive": False}))


# Calls to outside services


def calls(name="rates", inside=5, at_most=5, oldest=4.8, shut_for=None):
    made = {"made": 12, "slow": 3, "refused": 7}
    most = {"at_most": at_most, "shut_for": shut_for}
    return {"name": name, "inside": inside, "oldest": oldest, **most, **made}


def test_calls_that_fail_at_once_are_told_of():
    now = {**shown(), "bulkheads": [calls(shut_for=12.0), calls("stock", 1), calls("x", 0, None)]}
    assert said(now, kind=WRONG) == [
        "Calls to outside services fail at once: rates: 5 of 5 in calls for up to 4.8 s, shut for"
        " 12 s."
    ]
    assert said({**shown(), "bulkheads": [calls("stock", 1)]}, kind=WRONG) == []


def test_of_many_services_that_fail_a_few_are_named():
    now = {**shown(), "bulkheads": [calls(f"host{n}") for n in range(9)]}
    assert said(now, kind=WRONG)[0].endswith("host4: 5 of 5 in calls for up to 4.8 s; and 4 more.")


def test_bulkheads_have_a_table_and_their_names_give_no_orders():
    made = Page(Scene())
    now = {**shown(), "bulkheads": [calls("\x1b[2J<b>", shut_for=12.0)]}
    text = Words(made.body(now)).text
    assert "Calls to outside services" in text
    assert "?[2J<b>" in text
    assert "outside services" not in Words(made.body(shown())).text


# Balancers


def asked_by(*names, asked=0.2):
    return [{"name": name, "asked": asked, "period": 2.0} for name in names]


def test_balancers_are_listed_by_their_names_with_what_each_may_have():
    """However they have asked: rows that change places cannot be read."""
    text = page(asking=asked_by("lb-c", "lb-a", "lb-b"))
    cells = [word for word in text.words if word.startswith("lb-")]
    assert cells == ["lb-a", "lb-b", "lb-c"]
    assert "Balancers that ask the agent: 3" in text.text
    assert "Each may have up to 4 requests here at once" in text.text
    assert "up to 4 requests" not in page(asking=asked_by("lb-a"), load=Load(0, 3, None)).text
    going = page(asking=asked_by("lb-a"), word="draining", ready=False).text
    assert "Each is told to have 1 request here at once." in going


def test_a_balancer_is_called_what_can_be_seen():
    assert "?[2Jlb?" in page(asking=asked_by("\x1b[2Jlb\u202e")).text


def test_a_balancer_that_no_longer_asks_is_told_of():
    kept = LookHistory()
    for n, names in enumerate([{"a", "b", "c"}, {"a", "b"}, None, {"a"}, {"a"}, None]):
        kept.keep(looks(seconds=9)[n])
        if names is not None:
            kept.asking(names)
    assert gone(kept.looks) == [("b", 4.0), ("c", 5.0)]
    sentence = "Balancers that no longer ask the agent: b (last seen 4.0 s ago), c (last seen 5.0 s"
    now = {**shown(), "balancers": asked_by("a")}
    assert [s for s in said(now, kept.looks) if s.startswith(sentence)]
    assert said(now, kept.looks, WRONG) == []
    kept.asking({"a", "b", "c"})  # they are back
    assert gone(kept.looks) == []
    assert gone([]) == gone(looks()) == []


def test_when_no_balancer_asks_any_more_something_is_wrong():
    kept = LookHistory(looks(seconds=2))
    kept.asking({"a"})
    kept.keep(looks(seconds=3)[-1])
    kept.asking(set())
    [text] = said({**shown(), "balancers": []}, kept.looks, WRONG)
    assert text == "No balancer asks the agent any more: a (last seen 1.0 s ago)."


def test_a_page_that_is_open_remembers_who_asked():
    made = Page(Scene())
    made.look(1.0)
    made.event({**shown(), "balancers": asked_by("lb-a", "lb-b")})
    made.look(2.0)
    text = Words(made.body({**shown(), "balancers": asked_by("lb-a")})).text
    assert "Balancers that no longer ask the agent: lb-b (last seen 1.0 s ago)." in text


# Processes that are stuck


def test_what_a_stalled_process_keeps_is_no_fault_of_an_outside_service():
    held = row(7, Load(0, 8, 8), beat=9.0), row(8, Load(0, 1, 8))
    before = looks(seconds=31, served=0.0, active=9, capacity=16)
    told = said(shown(processes=held, load=Load(0, 9, 16)), before, WRONG)
    assert told == ["Process 7 has made no progress for 9.0 s."]
    waits = row(7, Load(0, 0, 8), beat=9.0), row(8, Load(4, 8, 8, waited=0.9))
    assert "idle in others" not in " ".join(said(shown(processes=waits)))
    jam = row(7, Load(0, 8, 8), beat=9.0), row(8, Load(0, 7, 8))
    told = said(shown(processes=jam, load=Load(0, 15, 16)), before, WRONG)
    assert "outside service" in " ".join(told)


def test_a_process_that_makes_no_progress_is_called_stalled():
    rows = row(7, Load(0, 3, 8)), row(8, Load(0, 3, 8), beat=9.0), row(9, Load(0, 0, 8), beat=2.0)
    told = shown(processes=rows)
    assert [row_state(each, told) for each in told["processes"]] == ["ready", "stalled", "ready"]
    all_stuck = {**told, "alive": False}
    assert {row_state(each, all_stuck) for each in told["processes"]} == {"stalled"}
    starting = shown(processes=(row(7, Load(0, 0, 8), state="starting", beat=9.0),))
    assert row_state(starting["processes"][0], starting) == "starting"
    assert '<b class="bad">stalled</b>' in parts(told, looks())["processes"]


def test_nobody_knows_how_long_it_takes_where_all_are_stuck():
    jam = looks(seconds=31, served=0.0, **FULL)
    told = shown(word="busy", load=JAMMED)
    assert "<b>Wait</b> <span>22 s</span>" in parts(told, jam)["charts"]
    assert "<b>Wait</b> <span>not known</span>" in parts({**told, "alive": False}, jam)["charts"]


def test_figures_of_now_are_all_of_one_instant():
    drawn = parts(shown(load=Load(9, 10, 10, 84.0, 9.0)), looks(queued=2))["charts"]
    assert "<b>Queue</b> <span>9</span>" in drawn
    assert "most 9" in drawn
    assert "<b>In the app</b> <span>10 of 10</span>" in drawn
    assert "<b>Wait</b> <span>84 s</span>" in drawn
    assert "most 84 s" in drawn


def test_a_red_line_is_always_said_what_it_is():
    before = looks(seconds=20, refused=(1.0, 0.0, 0.0))
    last = before[-1]
    quiet = [*before, last._replace(at=last.at + 1, served=last.served + 10)]
    assert '<span class="bad">refused 0/s</span>' in parts(shown(), quiet)["charts"]
    assert "refused" not in parts(shown(), looks())["charts"]


def test_a_red_line_is_only_where_something_was_refused():
    refused = [0, 0, 0, 4, 4, 4, 4]  # so far
    before = [
        each._replace(refused=(so_far, 0, 0), at=280.0 + each.at)
        for each, so_far in zip(looks(seconds=6), refused, strict=True)
    ]
    [line] = re.findall('class="second" d="([^"]*)"', parts(shown(), before)["charts"])
    assert [point.split()[0] for point in line[1:].split("L")] == ["260.0", "270.0", "280.0"]


@pytest.mark.parametrize("kind", ["busy", "draining", "absent"])
def test_what_is_not_free_is_not_called_well(kind):
    assert said(shown(word=kind, load=Load(0, 10, 10)), (), WELL) == []


# What is looked at, and how long requests took


def test_the_heading_and_the_title_say_what_is_looked_at():
    told = {
        **shown(),
        "host": "web1",
        "port": "0.0.0.0:8081",
        "app": "mysite",
        "release": "1.0",
        "at": 90_000.0,
        "since": 3600.0,
    }
    made = Page(Scene())
    assert json.loads(made.event(told))["title"] == "free · web1:8081 · mysite · busyguard"
    said = "web1:8081 · mysite · wsgi_busyguard 1.0 · up for 1 d 0 h, since 1970-01-01 01:00 UTC"
    assert said in Words(made.body(told)).text


def test_no_repr_of_python_is_shown():
    told = {**shown(), "reads": "<Gate 3/10 with 2 waiting>"}
    assert "with 2 waiting" not in Page(Scene()).body(told)


def test_half_and_99_of_100_are_those_of_the_looks_not_of_all_time():
    before = (1000, *(0,) * 12)  # long ago all were quick
    after = (1000, 0, 0, 0, 0, 98, 0, 0, 2, *(0,) * 4)
    counted = looks(seconds=2)
    counted[0] = counted[0]._replace(service=before, waits=before)
    counted[-1] = counted[-1]._replace(service=after, waits=before)
    half, most = lengths(counted, "service")
    assert 0.1 < half < 0.25
    assert 1.0 < most < 2.0
    assert lengths(counted, "waits") == (None, None)
    text = Words(parts(shown(), counted)["lengths"]).text
    assert "in the last 2 s" in text
    assert "177 ms" in text


def test_above_all_bounds_nobody_knows_how_long():
    assert quantile((0,) * 12 + (3,), 0.5) == math.inf
    assert length(math.inf) == "more than 30 s"
    assert quantile((0,) * 13, 0.5) is None
    assert quantile((4, *(0,) * 12), 0.5) == 0.0025


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule[1].__name__.strip("_"))
def test_what_is_to_be_done_is_one_sentence(rule):
    kind, _, do = rule
    assert kind in (WRONG, NOTE)
    names_an_option = do.startswith(("ready=", "show_stacks"))
    assert do == "" or ((do[0].isupper() or names_an_option) and do[-1] == ".")


def test_a_limit_far_above_what_there_is_does_not_flatten_the_chart():
    drawn = parts(shown(load=Load(0, 3, 1000)), looks(active=3, capacity=1000))["charts"]
    assert 'class="limit"' not in drawn
    assert 'class="limit"' in parts(shown(load=Load(0, 3, 10)), looks())["charts"]


def test_a_chart_says_how_far_back_it_goes():
    assert "1 min ago" not in parts(shown(), looks(seconds=45))["charts"]
    assert "45 s ago" in parts(shown(), looks(seconds=45))["charts"]
    assert "5 min ago" in parts(shown(), looks(seconds=400))["charts"]
