from __future__ import annotations

import logging

import pytest
from twisted.web.http_headers import Headers

from wsgi_busyguard.integrations.access_logs import NoChecks, without_checks

COMMON = '127.0.0.1 - - [22/Nov/2026:20:00:00 +0000] "%s HTTP/1.1" 200 4'


def record(message, *args):
    return logging.LogRecord("access", logging.INFO, __file__, 1, message, args, None)


CHECKS = ["OPTIONS /", "GET /readyz", "HEAD /healthz", "GET /livez", "OPTIONS *", "GET /readyz?x=1"]
OTHERS = ["GET /", "GET /readyz/more", "OPTIONS /shop", "POST /", "GET /shop?next=/readyz"]


@pytest.mark.parametrize("line", CHECKS)
def test_a_line_of_a_check_is_not_written(line):
    assert not NoChecks().filter(record(COMMON % line))


@pytest.mark.parametrize("line", OTHERS)
def test_any_other_line_is(line):
    assert NoChecks().filter(record(COMMON % line))


@pytest.mark.parametrize(
    "message", ["started", '"nonsense', '"GET /readyz" said he', "%d", COMMON % "get /readyz"]
)
def test_what_is_no_request_line_is_written(message):
    assert NoChecks().filter(record(message))


def test_a_record_that_cannot_be_formatted_is_left_to_whoever_writes_it():
    assert NoChecks().filter(record("%d %d", "x"))


def test_the_paths_are_those_of_the_guard():
    checks = NoChecks(check_root=False, ready_paths=["/up"], live_paths=[])
    assert not checks.filter(record(COMMON % "GET /up"))
    assert checks.filter(record(COMMON % "GET /readyz"))
    assert checks.filter(record(COMMON % "OPTIONS /"))


@pytest.mark.parametrize("filtered", ["werkzeug", "django.server"])
def test_lines_with_colours_and_arguments_are_known(filtered):
    message, args = {
        "werkzeug": (
            "\x1b[36m%s\x1b[0m",
            ('127.0.0.1 - - "\x1b[33mGET /readyz HTTP/1.1\x1b[0m" 200 -',),
        ),
        "django.server": ('"%s" %s %s', ("GET /readyz HTTP/1.1", "200", "4")),
    }[filtered]
    assert not NoChecks().filter(record(message, *args))


def gunicorns(method, path, **environ):
    """Return a record as gunicorn makes it: the message is the format, its argument the atoms."""
    from gunicorn.glogging import SafeAtoms

    whole = {"REQUEST_METHOD": method, "PATH_INFO": path, "SCRIPT_NAME": "", **environ}
    atoms = SafeAtoms({f"{{{name.lower()}}}e": value for name, value in whole.items()})
    return record("%(h)s says nothing of the request", atoms)


def test_gunicorns_records_tell_who_is_behind_whatever_their_format():
    checks = NoChecks()
    assert not checks.filter(gunicorns("OPTIONS", "/"))
    assert checks.filter(gunicorns("OPTIONS", "/", HTTP_ORIGIN="http://shop"))
    assert checks.filter(gunicorns("OPTIONS", "/", HTTP_X_FORWARDED_FOR="192.0.2.1"))
    assert checks.filter(gunicorns("OPTIONS", "/", SCRIPT_NAME="/shop"))
    assert not checks.filter(gunicorns("GET", "/livez"))


class Request:
    def __init__(self, method, uri, *names):
        self.method, self.uri = method, uri
        self.requestHeaders = Headers({name: [b"x"] for name in names})


class Site:
    def __init__(self):
        self.logged = []

    def log(self, request):
        self.logged.append(request.uri)


def test_a_site_of_twisted_writes_no_checks():
    site = without_checks(Site())
    site.log(Request(b"OPTIONS", b"/"))
    site.log(Request(b"GET", b"/readyz?ready=exact"))
    site.log(Request(b"GET", b"/shop"))
    site.log(Request(b"OPTIONS", b"/", b"Access-Control-Request-Method"))
    assert site.logged == [b"/shop", b"/"]
