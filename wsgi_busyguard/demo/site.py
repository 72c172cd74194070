"""A small Django site: a home page that costs something and asks an outside service.

It knows no server, has no timeouts worth the name and no opinion on OPTIONS, like the site of 2013.
In the third act its calls go through a bulkhead, and while the service is slow a page comes without
what it says; that is all it knows of the guard.
"""

from __future__ import annotations

import http.client
import threading
import time
from collections import Counter
from typing import TYPE_CHECKING

import django
from django.conf import settings
from django.core.wsgi import get_wsgi_application
from django.http import HttpRequest, HttpResponse
from django.template import Context, Engine
from django.urls import path

from ..bulkhead import Bulkhead
from ..deadlines.deadline import NotMade
from .load import ARRIVED
from .probe import PROBE_AGENT

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication

PEOPLE, CHECKS, PROBES = "people", "checks", "probes"

# Of the third act. Every page calls, so calls may have all slots: what helps is that it shuts.
CALL_AT_MOST = 1.0
_service = Bulkhead("weather", share=1.0)

UNKNOWN = "hard to tell"

PAGE = """<!doctype html><title>{{ title }}</title>
<h1>{{ title|upper }}</h1><p>Outside it is {{ weather }}.</p>
<ol>{% for article in articles %}
<li{% if forloop.first %} class="first"{% endif %}><a href="/news/{{ article.number }}/">
{{ article.headline|title }}</a> {{ article.text|truncatewords:12 }}</li>{% endfor %}</ol>
"""
ARTICLES = [
    {"number": n, "headline": f"the {n}th thing that happened", "text": "and so it went on " * 8}
    for n in range(40)
]

#: Pages rendered, by whom for.
rendered: Counter[str] = Counter()

#: Seconds for which threads waited for the outside service after their visitor had left.
spent_on_nobody = 0.0

_counting = threading.Lock()
_own = threading.local()  # a connection to the outside service for each thread, kept open
_outside_port = 0
_patience = 0.0
_is_careful = False


def build(outside_port: int, patience: float, is_careful: bool = False) -> WSGIApplication:
    """Return the site as a WSGI app.

    :param patience: seconds after which visitors leave, to tell what is done for nobody.
    :param is_careful: whether calls are limited, in time and in number.
    """
    global _outside_port, _patience, _is_careful
    _outside_port, _patience, _is_careful = outside_port, patience, is_careful
    settings.configure(
        ALLOWED_HOSTS=["*"], ROOT_URLCONF=__name__, SECRET_KEY="only a demo", LOGGING_CONFIG=None
    )
    django.setup()
    application: WSGIApplication = get_wsgi_application()
    return application


def home(request: HttpRequest) -> HttpResponse:
    """Render the home page."""
    began = time.monotonic()
    try:
        weather = ask_with_care() if _is_careful else ask_outside(None)
    finally:
        _count_the_wait(request, began)
    context = {"title": "The daily demo", "articles": ARTICLES, "weather": weather}
    page = _page.render(Context(context))
    with _counting:
        rendered[_asked_by(request)] += 1
    return HttpResponse(page)


def ask_with_care() -> str:
    """Ask the outside service for as long as that is of use to anybody."""
    try:
        with _service:
            return ask_outside(_service.timeout(CALL_AT_MOST))
    except (NotMade, TimeoutError):
        return UNKNOWN


def ask_outside(timeout: float | None) -> str:
    """Ask the outside service; with ``None`` for as long as it takes."""
    connection: http.client.HTTPConnection | None = getattr(_own, "connection", None)
    if connection is None:
        connection = _own.connection = http.client.HTTPConnection("127.0.0.1", _outside_port)
    try:
        if connection.sock is None:
            connection.connect()
        connection.sock.settimeout(timeout)
        connection.request("GET", "/")
        return connection.getresponse().read().decode()
    except TimeoutError:
        connection.close()
        raise
    except (OSError, http.client.HTTPException):
        connection.close()
        return UNKNOWN


def _count_the_wait(request: HttpRequest, began: float) -> None:
    """Count the part of a wait that came after the visitor had left."""
    global spent_on_nobody
    arrived = request.headers.get(ARRIVED)
    if arrived is not None:
        left = float(arrived) + _patience
        with _counting:
            spent_on_nobody += max(0.0, time.monotonic() - max(began, left))


def _asked_by(request: HttpRequest) -> str:
    if request.method != "OPTIONS":
        return PEOPLE
    return PROBES if request.headers.get("User-Agent") == PROBE_AGENT else CHECKS


_page = Engine().from_string(PAGE)
urlpatterns = [path("", home)]
