from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from wsgi_busyguard import Board, Gate, Monitor
from wsgi_busyguard.board.bulkheads import COLUMNS, MOST_BULKHEADS, packed, together, unpacked
from wsgi_busyguard.board.publisher import Publisher
from wsgi_busyguard.bulkhead import Bulkhead
from wsgi_busyguard.metrics.report import look

NOW = 5 * 10**12


def figures(name="rates", inside=1, at_most=5, oldest=4.8, shut_for=None, made=7):
    return {
        "name": name,
        "inside": inside,
        "at_most": at_most,
        "oldest": oldest,
        "shut_for": shut_for,
        "made": made,
        "slow": 2,
        "refused": 3,
    }


milliseconds = st.integers(0, 10**6).map(lambda n: n / 1000)


@given(
    st.lists(
        st.builds(
            figures,
            name=st.text("abcz.-", min_size=1, max_size=32),
            inside=st.integers(1, 1000),
            at_most=st.none() | st.integers(1, 1000),
            oldest=milliseconds,
            shut_for=st.none() | milliseconds,
        ),
        max_size=MOST_BULKHEADS,
        unique_by=lambda one: one["name"],
    )
)
def test_what_is_posted_is_read(bulkheads):
    words = packed(bulkheads, NOW)
    assert len(words) == COLUMNS
    assert all(0 <= word < 1 << 63 for word in words)
    assert sorted(unpacked(words, NOW), key=str) == sorted(bulkheads, key=str)


def test_they_get_older_while_nobody_posts():
    words = packed([figures(oldest=1.0, shut_for=2.0)], NOW)
    [one] = unpacked(words, NOW + 10**9)
    assert (one["oldest"], one["shut_for"]) == (2.0, 3.0)


def test_of_many_those_that_are_used_most_are_posted():
    many = [figures(f"host{n}", made=n) for n in range(20)]
    names = [one["name"] for one in unpacked(packed(many, NOW), NOW)]
    assert names == [f"host{n}" for n in range(19, 11, -1)]


def test_a_name_of_other_letters_or_too_long_is_posted_as_far_as_it_goes():
    [one, other] = unpacked(
        packed([figures("Kurse\N{EURO SIGN}"), figures("x" * 99, made=0)], NOW), NOW
    )
    assert one["name"] == "Kurse?"
    assert other["name"] == "x" * 32


def test_those_of_several_processes_add_up():
    one, other = figures(inside=2), figures(inside=3, oldest=1.0, shut_for=12.0, at_most=None)
    [both] = together([[one], [other]])
    assert (both["inside"], both["at_most"], both["oldest"]) == (5, 5, 4.8)
    assert (both["shut_for"], both["made"], both["refused"]) == (12.0, 14, 6)
    assert [one["name"] for one in together([[figures("b")], [figures("a")]])] == ["a", "b"]


def test_a_host_shows_what_its_processes_post():
    board, gate, rates = Board(), Gate(4), Bulkhead("rates of a host", at_most=3)
    publisher = Publisher(board, gate)
    publisher.join()
    publisher.ready()
    place = rates.take()
    publisher.beat()
    [one] = [one for one in look(Monitor(publisher))["bulkheads"] if one["name"] == rates.name]
    assert (one["inside"], one["at_most"]) == (1, 3)
    place.give()
    publisher.leave()
