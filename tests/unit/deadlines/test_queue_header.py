from __future__ import annotations

import math
import time

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from wsgi_busyguard import BusyGuard, Gate
from wsgi_busyguard.deadlines.queue_header import OLDEST_SECONDS, arrived, proxied, queued_here
from wsgi_busyguard.gate import Refused, Ticket
from wsgi_busyguard.gate.queue import waking
from wsgi_busyguard.policy import Reason

NOW = 1_700_000_002.5  # all that is well said below is 2.5 s before it

WELL_SAID = {
    "nginx": "t=1700000000.000",
    "nginx, bare": "1700000000.000",
    "seconds": "1700000000",
    "seconds and a dot": "t=1700000000.",
    "Heroku, ms": "1700000000000",
    "thruster, ms": "t=1700000000000",
    "HAProxy, ms": "t=1700000000000",
    "HAProxy, us": "t=1700000000000000",
    "Apache, us": "t=1700000000000000",
    "Render, ns": "1700000000000000000",
    "Render, ns with t": "t=1700000000000000000",
    "ms with decimals": "t=1700000000000.000",
    "with the server's name": "server=a t=1700000000.000",
    "with blanks": "  t= 1700000000.000 ",
    "another name that ends so": "start=1700000000.000",
    "mod_wsgi 4, us in a string": "1700000000000000",
    "Contour appends": "t=1700000000.000,t=1700000001.000",
    "appended, the other way round": "t=1700000001.000, t=1700000000.000",
    "one of two is rubbish": "rubbish, t=1700000000.000",
    "one of two is from the future": "t=1800000000.000, t=1700000000.000",
}


@pytest.mark.parametrize("header", WELL_SAID.values(), ids=WELL_SAID)
def test_what_proxies_send_is_understood(header):
    assert arrived(header, NOW) == pytest.approx(2.5)


def test_a_float_is_understood_as_mod_wsgi_6_has_it():
    assert arrived(1_700_000_000.0, NOW) == 2.5


NOT_SAID = {
    "empty": "",
    "nothing behind t": "t=",
    "junk": "yesterday",
    "5 s in the future": "t=1700000007.6",
    "1 h old": "t=1699996402",
    "1970": "t=0",
    "1999": "t=946684799",
    "negative": "t=-1700000000",
    "NaN": "t=nan",
    "infinity": "t=inf",
    "an exponent": "t=1.7e9",
    "hexadecimal": "t=0x6553f100",
    "underscores": "t=1_700_000_000",
    "a sign": "t=+1700000000",
    "two dots": "t=1700000000.0.0",
    "10^400": "t=1" + "0" * 400,
    "10^400 and more": "t=1" + "0" * 5000,
    "digits that are not ASCII": "t=" + "\N{ARABIC-INDIC DIGIT TWO}" * 10,
    "HAProxy's date() and date_us(), not padded": "t=170000000012345",
    "only commas": ",,,",
    "a newline in it": "t=17000\n00000",
    "no string": None,
    "a number": 1_700_000_000,
    "a truth": True,
    "bytes": b"t=1700000000.000",
    "NaN, a float": math.nan,
    "infinity, a float": math.inf,
    "0.0, as mod_wsgi's embedded mode has it": 0.0,
}


@pytest.mark.parametrize("header", NOT_SAID.values(), ids=NOT_SAID)
def test_what_cannot_be_is_not_said(header):
    assert arrived(header, NOW) is None


@pytest.mark.parametrize(
    ("ahead", "ago"),
    [
        (0.9, 0.0),
        (1.1, None),
        (-OLDEST_SECONDS + 0.1, OLDEST_SECONDS - 0.1),
        (-OLDEST_SECONDS - 1, None),
    ],
)
def test_clocks_that_differ_by_less_than_a_second_are_borne(ahead, ago):
    expected = None if ago is None else pytest.approx(ago, abs=0.001)
    assert arrived(f"t={NOW + ahead:.3f}", NOW) == expected


def test_the_earliest_of_all_headers_counts():
    environ = {"HTTP_X_REQUEST_START": "t=1700000001.5", "HTTP_X_QUEUE_START": "t=1700000000.5"}
    assert proxied(environ, NOW) == 2.0
    assert proxied({"HTTP_X_REQUEST_START": "junk"}, NOW) is None
    assert proxied({}, NOW) is None


def test_what_mod_wsgi_says_is_of_this_machine():
    environ = {"mod_wsgi.queue_start": "1699999999500000"}
    assert queued_here(environ, NOW) == 3.0
    assert queued_here({}, NOW) == 0.0
    assert proxied(environ, NOW) is None


def test_what_a_client_puts_in_front_does_not_hide_what_the_proxy_says():
    assert arrived("t=1700000002.4," * 2000 + "t=1700000000.0", NOW) == pytest.approx(2.5)


UNITS = {"s": 1, "ms": 1e3, "us": 1e6, "ns": 1e9}


@given(
    ago=st.floats(0, OLDEST_SECONDS - 1),
    unit=st.sampled_from(list(UNITS)),
    prefix=st.sampled_from(["", "t=", "server=a t=", " "]),
)
def test_whatever_the_unit_it_is_the_same_time(ago, unit, prefix):
    header = f"{prefix}{(NOW - ago) * UNITS[unit]:.{3 if unit == 's' else 0}f}"
    assert arrived(header, NOW) == pytest.approx(ago, abs=0.002)


ANYTHING = st.one_of(
    st.text(),
    st.text(alphabet="t=0123456789.,- eEnaNif"),
    st.from_regex(r"t=[0-9]{1,25}(\.[0-9]{0,12})?(,t=[0-9]{1,25})*", fullmatch=True),
    st.floats(),
    st.none() | st.integers() | st.binary(),
)


@pytest.mark.slow
@given(ANYTHING)
@example("9" * 20 + "." + "9" * 9)
def test_nothing_breaks_it_and_no_answer_is_out_of_range(header):
    ago = arrived(header, NOW)
    assert ago is None or 0.0 <= ago <= OLDEST_SECONDS


@given(st.text(alphabet="t=0123456789., "), st.floats(0, OLDEST_SECONDS - 1))
def test_whatever_a_client_adds_its_request_only_gets_older(added, ago):
    own = f"t={NOW - ago:.3f}"
    alone = arrived(own, NOW)
    assert arrived(f"{added},{own}", NOW) >= alone
    environ = {"HTTP_X_REQUEST_START": added, "HTTP_X_QUEUE_START": own}
    assert proxied(environ, NOW) >= alone


# What has waited elsewhere, at the gate


def test_what_was_waited_elsewhere_is_waited_here(clock):
    gate = Gate(1, max_wait=1.0, clock=clock)
    slot = gate.enter(0.7)
    assert slot.waited == 0.7
    ticket = Ticket(print, 0.4)
    assert gate.offer(ticket) is None
    assert gate.read().waited == pytest.approx(0.4)
    clock.now += 0.5
    gate.leave(slot)
    assert ticket.outcome.waited == pytest.approx(0.9)


def test_who_is_too_old_on_arrival_is_refused_unless_a_slot_is_free(clock):
    """A clock that is wrong makes all requests that old, and an idle server would serve nobody."""
    gate = Gate(2, max_wait=1.0, clock=clock)
    slots = [gate.enter(1.1), gate.offer(Ticket(print, 300.0))]
    assert [slot.waited for slot in slots] == [1.1, 300.0]
    with pytest.raises(Refused, match="queue-age"):
        gate.enter(1.1)
    assert gate.offer(Ticket(print, 1.1)) is Reason.QUEUE_AGE
    for slot in slots:
        gate.leave(slot)
    assert gate.empty


def test_who_is_too_old_goes_past_nobody_though_a_slot_has_just_become_free(clock):
    gate = Gate(1, max_wait=1.0, clock=clock)
    slot = gate.enter()
    waiting = Ticket(lambda ticket: None)
    gate.offer(waiting)
    gate._free.append(slot)  # as leave() does, just before it hands it over
    assert gate.offer(Ticket(print, 1.1)) is Reason.QUEUE_AGE
    assert waiting.outcome is slot


def test_who_found_a_slot_free_and_lost_it_does_not_wait_for_ever(clock):
    """Between the look and the queue somebody else may take it."""
    gate = Gate(1, max_wait=1.0, clock=clock)
    told = []
    ticket = Ticket(lambda ticket: told.append(ticket.outcome), 1.1)
    gate.enter()
    assert waking(gate._lock, gate._queue_up, ticket) is Reason.QUEUE_AGE
    assert gate.read().queued == 0


def test_who_is_too_old_on_arrival_takes_no_place_in_the_queue(clock):
    gate = Gate(1, max_wait=1.0, clock=clock)
    gate.enter()
    assert gate.offer(Ticket(print)) is None
    assert gate.offer(Ticket(print, 1.1)) is Reason.QUEUE_AGE
    assert gate.read().queued == 1


def test_who_grows_too_old_in_the_queue_is_refused(clock):
    gate = Gate(1, max_wait=1.0, clock=clock)
    gate.enter()
    told = []
    assert gate.offer(Ticket(lambda ticket: told.append(ticket.outcome), 0.8)) is None
    clock.now += 0.3
    gate.expire()
    assert told == [Reason.QUEUE_AGE]


def test_a_thread_waits_only_for_what_is_left_of_its_time():
    gate = Gate(1, max_wait=30.0)
    gate.enter()
    began = time.monotonic()
    with pytest.raises(Refused, match="queue-age"):
        gate.enter(29.99)
    assert time.monotonic() - began < 20.0


def test_nobody_is_served_earlier_for_being_older(clock):
    gate = Gate(1, max_wait=1.0, clock=clock)
    slot = gate.enter()
    young, old = Ticket(lambda ticket: None), Ticket(lambda ticket: None, 0.9)
    gate.offer(young)
    gate.offer(old)
    gate.leave(slot)
    assert young.outcome is slot
    assert old.outcome is None


# And in the environ


@pytest.mark.parametrize("options", [{}, {"slots": 2}], ids=["plain", "gate"])
def test_the_stamps_count_from_what_the_proxy_says(ask, options):
    seen = {}

    def app(environ, start_response):
        seen.update(environ)
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [b"x"]

    for trusts, ago in ((True, 0.5), (False, 0.0)):
        guard = BusyGuard(app, **options, client_timeout=60.0, trust_queue_header=trusts)
        ask(guard, path="/x", HTTP_X_REQUEST_START=f"t={time.time() - 0.5:.6f}")
        assert seen["busyguard.waited"] == pytest.approx(ago, abs=0.4)
        assert seen["busyguard.waited"] >= ago - 0.001
        left = seen["busyguard.deadline"] - time.monotonic()
        assert left <= 60.0 - ago


def test_trust_is_true_or_false():
    with pytest.raises(TypeError, match=r"^trust_queue_header must be True or False, not 'no'$"):
        BusyGuard(print, trust_queue_header="no")
