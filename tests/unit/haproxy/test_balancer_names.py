from __future__ import annotations

from wsgi_busyguard.haproxy.balancer_names import MOST_ADDRESSES, MOST_NAMES, NewBalancers


def test_a_name_is_known_when_it_asks_again():
    newcomers = NewBalancers()
    assert [newcomers.asked_before("h", "lb") for _ in range(3)] == [False, True, True]


def test_a_name_is_another_ones_at_another_address():
    newcomers = NewBalancers()
    assert not newcomers.asked_before("h", "lb")
    assert not newcomers.asked_before("i", "lb")
    assert newcomers.asked_before("i", "lb")


def test_who_asks_again_stays_among_many_who_do_not():
    newcomers = NewBalancers()
    newcomers.asked_before("h", "lb")
    for number in range(100):
        newcomers.asked_before("h", f"name {number}")
        assert newcomers.asked_before("h", "lb")


def test_newcomers_are_those_who_have_not_asked_again():
    newcomers = NewBalancers()
    for name in "abcdefg":
        newcomers.asked_before("h", name)
        newcomers.asked_before("i", "a")
    newcomers.asked_before("h", "a")
    assert (newcomers.count(4), newcomers.count(9)) == (4, 6)


def test_of_a_flood_only_the_last_are_remembered():
    newcomers = NewBalancers()
    for number in range(MOST_NAMES + 1):
        newcomers.asked_before("h", f"name {number}")
    for number in range(MOST_ADDRESSES - 1):
        newcomers.asked_before(f"host {number}", "lb")
    assert newcomers.asked_before("h", f"name {MOST_NAMES}")
    assert newcomers.asked_before("h", "name 1")
    assert not newcomers.asked_before("h", "name 0")
    newcomers.asked_before("one more", "lb")
    assert not newcomers.asked_before("host 0", "lb")
