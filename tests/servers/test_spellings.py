"""A check is the same request however its path is spelled, on every server, and is not for clients.

One rule everywhere: the path is decoded, and has the slashes that the server passes to an app.
"""

from __future__ import annotations

import pytest
from support.apaches import Apache
from support.client import Line, ask, eventually, is_check, many, request, together
from support.gunicorns import Gunicorn
from support.processes import Site, ThreadedSite
from support.spellings import may_be_a_check, spellings
from support.uwsgis import Uwsgi

from servers.test_gate_anywhere import Anywhere

# The same check in other words, as a proxy or a balancer may send it.
SPELLINGS = ["/readyz", "/%72eadyz", "/r%65ady%7A?ready=always"]
ABSOLUTE = ["http://localhost/readyz", "HTTP://localhost:80/%72eadyz?ready=always"]


def taken_are_known(port):
    """Assert that the balancers' tests know of whatever this server takes for a check."""
    taken = [target for target in spellings("livez") if answered(port, target) == "alive"]
    assert "/livez" in taken
    assert "/%6Civez" in taken
    assert [target for target in taken if not may_be_a_check(target)] == []


def answered(port, target):
    try:
        return asked(port, target).text
    except (OSError, ValueError, IndexError):  # closed without a word
        return None


def asked(port, target, host="localhost"):
    with Line(port) as line:
        line.send(request("GET", target, host=host, headers={"Connection": "close"}))
        return line.answer()


# In front: while the only thread is taken and nobody may wait


def full(site, path):
    """Have the only thread taken; return the threads that wait for it."""
    _, threads = many(1, site.port, path=path)
    site.filled(1)
    assert ask(site.port, path="/page").headers["busyguard-refused"] == "queue-full"
    return threads


FRONTS = {
    "twisted": (Site, (), {"threads": 1, "max_queue": 0}),
    "waitress": (ThreadedSite, (), {"server": "waitress", "threads": 1, "max_queue": 0}),
    "cheroot": (ThreadedSite, (), {"server": "cheroot", "threads": 1, "max_queue": 0}),
    "gunicorn": (Gunicorn, ("--threads=1",), {"max_queue": 0}),
}


@pytest.mark.parametrize("front", FRONTS)
def test_every_spelling_of_a_check_is_answered_by_a_server_that_refuses_all_else(
    started, held, front
):
    kind, arguments, options = FRONTS[front]
    site = started(kind, *arguments, **options)
    threads = full(site, held.path)
    for target in SPELLINGS + ABSOLUTE:
        answer = asked(site.port, target)
        assert "busyguard-refused" not in answer.headers, target
        assert is_check(answer), target
    assert is_check(asked(site.port, "/readyz", host=None))
    held.let_go()
    together(threads)


@pytest.mark.parametrize("front", FRONTS)
def test_what_a_guarded_server_takes_for_a_check_is_known(started, front):
    kind, arguments, options = FRONTS[front]
    taken_are_known(started(kind, *arguments, **options).port)


def test_what_uwsgi_takes_for_a_check_is_known(started, tmp_path):
    taken_are_known(started(Uwsgi, tmp_path, 1, 2).port)


def test_what_mod_wsgi_takes_for_a_check_is_known(started):
    taken_are_known(started(Apache, 1, 2).port)


# Slashes at the beginning: some servers drop all but one before an app sees them, others do not


@pytest.mark.parametrize("front", FRONTS)
def test_slashes_are_as_the_server_passes_them(started, front):
    kind, arguments, options = FRONTS[front]
    site = started(kind, *arguments, **options)
    passes_one = {"waitress"}
    if front == "cheroot":  # of two slashes it makes a host, and of three one, as urlsplit() does
        assert asked(site.port, "//readyz").status == 400
        # Its one thread may still be at the end of the first.
        eventually(lambda: asked(site.port, "///readyz").text == "free")
        return
    for target in ("//readyz", "///readyz", "/%2Freadyz"):
        answer = asked(site.port, target)
        assert is_check(answer) == (front in passes_one), target


# Behind: the middleware sees what the server passes


STOCK = {
    "waitress": 4,
    "cheroot": 4,
    "wsgiref": 4,
    "werkzeug": 4,
    "pywsgi_greenlets": 0,
    "twisted": 4,
    "a2wsgi": 4,
    "gunicorn sync": 1,
    "gunicorn gthread": 4,
    "granian": 4,
    "hypercorn": 4,
}

# cheroot answers 400; Twisted's own resource takes the first letter of a target for its slash, and
# who reads "/ttp://localhost/readyz" cannot tell it from such a path.
HIDE_ABSOLUTE = {"cheroot", "twisted"}


@pytest.mark.parametrize("server", STOCK)
def test_behind_a_stock_server_the_decoded_path_is_what_counts(started, server):
    port = started(Anywhere, server, STOCK[server], {}).port
    for target in SPELLINGS:
        assert is_check(asked(port, target)), target
    taken_are_known(port)
    for target in ABSOLUTE:
        assert is_check(asked(port, target)) == (server not in HIDE_ABSOLUTE), target
