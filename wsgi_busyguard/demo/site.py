"""A small Django site: a home page that costs something and asks an outside service.

It knows no server, has no timeouts worth the name and no opinion on OPTIONS, like the site of 2013.
In the third act it gives its calls the time that their visitors have left; that is all it knows of
the guard.
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

from ..deadlines.deadline import call_timeout
from .load import ARRIVED
from .probe import PROBE_AGENT

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication

PEOPLE, CHECKS, PROBES = "people", "checks", "probes"

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
_minds_deadlines = False


def build(outside_port: int, patience: float, minds_deadlines: bool = False) -> WSGIApplication:
    """Return the site as a WSGI app.

    :param patience: seconds after which visitors leave, to tell what is done for nobody.
    :param minds_deadlines: whether calls have the time that their visitors have left.
    """
    global _outside_port, _patience, _minds_deadlines
    _outside_port, _patience, _minds_deadlines = outside_port, patience, minds_deadlines
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
        weather = ask_outside(call_timeout() if _minds_deadlines else None)
    except TimeoutError:  # TooLate is one: nobody is there to read the page
        return HttpResponse("too late", status=503)
    finally:
        _count_the_wait(request, began)
    context = {"title": "The daily demo", "articles": ARTICLES, "weather": weather}
    page = _page.render(Context(context))
    with _counting:
        rendered[_asked_by(request)] += 1
    return HttpResponse(page)


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
        return "hard to tell"


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
