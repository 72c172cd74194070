"""A small Django site: a home page that costs something and asks an outside service.

It knows no server and no guard, has no timeouts worth the name and no opinion on OPTIONS, like
the site of 2013.
"""

from __future__ import annotations

import http.client
import threading
from collections import Counter
from typing import TYPE_CHECKING

import django
from django.conf import settings
from django.core.wsgi import get_wsgi_application
from django.http import HttpRequest, HttpResponse
from django.template import Context, Engine
from django.urls import path

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

_counting = threading.Lock()
_own = threading.local()  # a connection to the outside service for each thread, kept open
_outside_port = 0


def build(outside_port: int) -> WSGIApplication:
    """Return the site as a WSGI app."""
    global _outside_port, _page
    _outside_port = outside_port
    settings.configure(
        ALLOWED_HOSTS=["*"], ROOT_URLCONF=__name__, SECRET_KEY="only a demo", LOGGING_CONFIG=None
    )
    django.setup()
    application: WSGIApplication = get_wsgi_application()
    return application


def home(request: HttpRequest) -> HttpResponse:
    """Render the home page."""
    context = {"title": "The daily demo", "articles": ARTICLES, "weather": ask_outside()}
    page = _page.render(Context(context))
    with _counting:
        rendered[_asked_by(request)] += 1
    return HttpResponse(page)


def ask_outside() -> str:
    """Ask the outside service, for as long as it takes."""
    connection: http.client.HTTPConnection | None = getattr(_own, "connection", None)
    if connection is None:
        connection = _own.connection = http.client.HTTPConnection("127.0.0.1", _outside_port)
    try:
        connection.request("GET", "/")
        return connection.getresponse().read().decode()
    except (OSError, http.client.HTTPException):
        connection.close()
        return "hard to tell"


def _asked_by(request: HttpRequest) -> str:
    if request.method != "OPTIONS":
        return PEOPLE
    return PROBES if request.headers.get("User-Agent") == PROBE_AGENT else CHECKS


_page = Engine().from_string(PAGE)
urlpatterns = [path("", home)]
