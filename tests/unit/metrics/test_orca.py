"""The load in an answer's header: what ORCA's readers take, on request and only by option."""

from __future__ import annotations

import json
import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from webob import Request

from wsgi_busyguard import BusyGuard, Load, Monitor
from wsgi_busyguard.adapters.front.threaded import ThreadedFront
from wsgi_busyguard.checks import READY, Check
from wsgi_busyguard.load import UNKNOWN
from wsgi_busyguard.metrics.orca import HEADER, AnswerRate, Rates, Reporter, report
from wsgi_busyguard.policy import Reason

CROWDED = Load(6, 10, 10, 0.2, 0.1)

# What Envoy's parser knows (source/common/orca/orca_parser.cc); any other name is the end of it.
KNOWN = {"cpu_utilization", "mem_utilization", "application_utilization", "rps_fractional", "eps"}
TEXT = re.compile(r"([a-z_]+(?:\.[a-z_]+)?)=([0-9.e+-]+)")


def app(environ, start_response):
    start_response(environ.get("test.status", "200 OK"), [("Content-Type", "text/plain")])
    return [b"app"]


def read(value):
    """Read a report as strictly as Envoy does."""
    kind, _, rest = value.partition(" ")
    if kind == "JSON":
        names = json.loads(rest, object_pairs_hook=once, parse_constant=pytest.fail)
        named = names.pop("named_metrics")
    else:
        assert kind == "TEXT"
        names = once((m[1], float(m[2])) for m in map(TEXT.fullmatch, rest.split(", ")))
        named = {"queued": names.pop("named_metrics.queued")}
    assert set(names) <= KNOWN
    assert set(named) == {"queued"}
    for figure in [*names.values(), *named.values()]:
        assert math.isfinite(figure)
        assert figure >= 0
    return names | {"queued": named["queued"]}


def once(pairs):
    pairs = list(pairs)
    assert len({name for name, _ in pairs}) == len(pairs)
    return dict(pairs)


# What is written


def test_the_report_in_json():
    assert report(CROWDED, Rates(12.5, 0.25)) == (
        'JSON {"application_utilization": 1.6, "rps_fractional": 12.5, "eps": 0.25,'
        ' "named_metrics": {"queued": 6}}'
    )


def test_the_report_in_text():
    assert report(CROWDED, Rates(12.5, 0.25), as_text=True) == (
        "TEXT application_utilization=1.6, rps_fractional=12.5, eps=0.25, named_metrics.queued=6"
    )


def test_a_capacity_that_nobody_knows_is_left_out():
    assert "application_utilization" not in report(UNKNOWN, Rates(1.0))
    assert "application_utilization" not in report(Load(3, 4, 0), Rates(1.0))


FIGURE = st.floats() | st.integers(-10, 10**9)


@given(
    load=st.builds(Load, st.integers(-3, 10**9), st.integers(-3, 10**6), st.none() | FIGURE),
    rates=st.builds(Rates, FIGURE, FIGURE),
    as_text=st.booleans(),
)
def test_no_figure_ever_has_a_whole_report_thrown_away(load, rates, as_text):
    read(report(load, rates, as_text))


# Rates


def test_a_rate_is_there_from_the_first_answer_on(clock):
    pace = AnswerRate(clock)
    pace.count(failed=False)
    assert pace.rates() == Rates(1.0, 0.0)


def test_rates_are_means_that_forget(clock):
    pace = AnswerRate(clock)
    for _ in range(60):
        for number in range(20):
            pace.count(failed=number < 5)
        clock.now += 1.0
        rates = pace.rates()
    assert rates == pytest.approx(Rates(20.0, 5.0))
    clock.now += 10.0
    assert pace.rates() == pytest.approx(Rates(20.0 / math.e, 5.0 / math.e))


def test_between_two_looks_the_rates_stay(clock):
    pace = AnswerRate(clock)
    clock.now += 2.0
    assert pace.rates() == Rates(0.0, 0.0)
    pace.count(failed=False)
    clock.now += 0.5
    assert pace.rates() == Rates(0.0, 0.0)


# On answers


@pytest.fixture
def monitor(telling):
    telling.set(CROWDED)
    return Monitor(telling)


@pytest.fixture
def guard(monitor):
    return BusyGuard(app, monitor=monitor, expose_load=True)


def test_nothing_of_it_without_the_option(ask, monitor, telling):
    guard = BusyGuard(app, monitor=monitor)
    asked = {"HTTP_ENDPOINT_LOAD_METRICS_FORMAT": "JSON"}
    assert ask(guard, "GET", "/x", **asked).headers == {"Content-Type": "text/plain"}
    telling.set(SLOW)
    assert "x-envoy-degraded" not in ask(guard, "GET", "/readyz", "ready=always").headers


@pytest.mark.parametrize(
    ("wanted", "kind"),
    [({}, "JSON"), ("JSON", "JSON"), ("TEXT", "TEXT"), (" text ", "TEXT"), ("BIN", "JSON")],
    ids=repr,
)
def test_the_request_says_which_format(ask, guard, wanted, kind):
    asked = {"HTTP_ENDPOINT_LOAD_METRICS_FORMAT": wanted} if wanted else {}
    value = ask(guard, "GET", "/x", **asked).headers[HEADER]
    assert value.startswith(f"{kind} ")
    found = read(value)
    assert (found["application_utilization"], found["queued"]) == (1.6, 6)
    assert found["rps_fractional"] > 0


def test_5xx_are_errors(ask, guard):
    found = ask(guard, "GET", "/x", **{"test.status": "500 Oh"}).headers[HEADER]
    assert read(found)["eps"] > 0


def test_in_gate_mode_the_request_itself_is_in_the_load():
    guard = BusyGuard(app, slots=4, expose_load=True)
    answer = Request.blank("/x").get_response(guard)
    assert read(answer.headers[HEADER])["application_utilization"] == 0.25


def test_a_refusal_reports_too():
    guard = BusyGuard(app, slots=1, max_queue=0, expose_load=True)
    slot = guard.monitor.adapter.enter()
    answer = Request.blank("/x").get_response(guard)
    guard.monitor.adapter.leave(slot)
    assert (answer.status_int, answer.headers["Busyguard-Refused"]) == (503, "queue-full")
    found = read(answer.headers[HEADER])
    assert found["application_utilization"] == 1.0
    assert found["rps_fractional"] == found["eps"] > 0


@pytest.mark.parametrize("name", ["Endpoint-Load-Metrics", "endpoint-load-metrics-bin"])
def test_what_the_app_reports_itself_stays_alone(guard, name):
    def reports(environ, start_response):
        start_response("200 OK", [(name, "its own")])
        return [b""]

    answer = Request.blank("/x").get_response(Reporter(guard.monitor).around(reports))
    assert answer.headerlist == [(name, "its own")]


def test_two_guards_make_one_report(monitor):
    inner = BusyGuard(app, monitor=monitor, expose_load=True)
    answer = Request.blank("/x").get_response(BusyGuard(inner, slots=1, expose_load=True))
    assert len(answer.headers.getall(HEADER)) == 1


def test_the_apps_own_list_of_headers_stays_as_it_is(guard, environ):
    own = [("Content-Type", "text/plain")]

    def keeps(environ, start_response):
        start_response("200 OK", own)
        return [b""]

    Request.blank("/x").get_response(Reporter(guard.monitor).around(keeps))
    assert own == [("Content-Type", "text/plain")]


def test_an_answer_that_takes_the_place_of_another_is_not_counted_again(monitor, clock, environ):
    reporter = Reporter(monitor, clock)
    seen = []

    def fails(environ, start_response):
        start_response("200 OK", [])
        start_response("500 Oh", [], (None, None, None))
        return [b""]

    def start_response(*said):
        seen.append(said)

    reporter.around(fails)(environ(), start_response)
    assert [len(said) for said in seen] == [2, 3]
    assert read(dict(seen[1][1])[HEADER])["rps_fractional"] == 1.0


def test_a_load_that_cannot_be_told_is_left_out_and_logged_once(ask, monitor, caplog):
    class Broken:
        load = property(lambda self: 1 / 0)

    reported = Reporter(Broken()).around(app)
    for _ in range(3):
        assert ask(reported, "GET", "/x").headers == {"Content-Type": "text/plain"}
    assert [record.message for record in caplog.records] == [
        "could not report the load; answering without it until it can"
    ]


def test_headers_that_are_wrong_are_the_servers_to_complain_of(monitor, caplog):
    def wrong(environ, start_response):
        start_response("200 OK", None)

    with pytest.raises(TypeError, match="the server's own"):
        Reporter(monitor).around(wrong)({}, complains)


def complains(status, headers):
    assert headers is None
    raise TypeError("the server's own")


def test_the_fronts_report_what_they_serve_and_what_they_refuse(environ):
    for exposed in (True, False):
        front = ThreadedFront(1, max_queue=0, expose_load=exposed)
        refused = Request.blank("/x").get_response(front.refusal(Reason.QUEUE_FULL))
        served = Request.blank("/x").get_response(front.guarded(app))
        behind = Request.blank("/x").get_response(front.behind(app))
        assert [HEADER in answer.headers for answer in (refused, served, behind)] == [exposed] * 3


# Checks


SLOW = CROWDED._replace(waited=1.0)


@pytest.mark.parametrize(
    ("load", "query", "degraded"),
    [
        (SLOW, "", True),
        (SLOW, "ready=always", True),
        (SLOW, "ready=exact", False),
        (CROWDED._replace(waited=0.99), "", False),
        (CROWDED._replace(service=2.0), "ready=always", True),
        (Load(6, 10, 10), "ready=always", True),
    ],
    ids=["slow", "always ready", "not ready", "soon", "will be slow", "nobody knows"],
)
def test_envoy_is_told_of_who_is_slow_but_still_ready(ask, telling, guard, load, query, degraded):
    """Only what is still there when it asks again counts."""
    telling.set(load)
    for _ in range(2):
        answer = ask(guard, "GET", "/readyz", query)
        assert ("x-envoy-degraded" in answer.headers) is degraded
    assert answer.status == (503 if "exact" in query else 200)


def test_who_is_free_is_not_degraded(ask, telling, guard):
    telling.set(Load(0, 1, 10))
    assert "x-envoy-degraded" not in ask(guard, "GET", "/readyz").headers


@pytest.mark.parametrize("exposed", [True, False])
@pytest.mark.parametrize(
    ("load", "query", "status"),
    [
        (Load(0, 1, 10), "warn=429", 200),
        (CROWDED, "warn=429", 429),
        (CROWDED, "warn=429&ready=always", 429),
        (CROWDED, "ready=exact&warn=429", 503),
        (CROWDED, "", 200),
        (CROWDED, "warn=500", 400),
        (CROWDED, "warn=", 400),
    ],
)
def test_who_asks_for_it_hears_429_while_busy_but_still_ready(
    ask, telling, monitor, exposed, load, query, status
):
    """Consul takes 2xx for passing, 429 for a warning and all else for critical."""
    telling.set(load)
    guard = BusyGuard(app, monitor=monitor, expose_load=exposed)
    answer = ask(guard, "GET", "/readyz", query)
    assert answer.status == status
    assert answer.headers["Cache-Control"] == "no-store"
    if status == 429:
        assert answer.text.startswith("busy")


def test_draining_is_critical_also_for_who_asks_for_warnings(ask, guard):
    guard.monitor.drain()
    assert ask(guard, "GET", "/readyz", "warn=429").status == 503


def test_live_is_never_a_warning(ask, guard):
    assert ask(guard, "GET", "/livez", "warn=429").status == 200


def test_the_wish_is_part_of_the_question(guard):
    assert guard._checks.match_request("GET", "/readyz", "warn=1&warn=429", ()) == Check(
        READY, "GET", "damped", "429"
    )
