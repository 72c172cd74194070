"""What can be guarded. An ASGI app passed for a WSGI app until its first request failed."""

from __future__ import annotations

import functools

import pytest
from django.core.handlers.asgi import ASGIHandler
from django.core.handlers.wsgi import WSGIHandler
from flask import Flask
from webob import Request
from webob.dec import wsgify
from webob.exc import HTTPServiceUnavailable
from webtest import TestApp
from werkzeug.test import Client
from werkzeug.wrappers import Response

from wsgi_busyguard import BusyGuard
from wsgi_busyguard._support.wsgi_app import wsgi_app
from wsgi_busyguard.deadlines import carrying


def app(environ, start_response):
    start_response("200 OK", [])
    return [b"app"]


class App:
    def __init__(self, environ=None, start_response=None):
        self.start = start_response

    def __call__(self, environ, start_response):
        return app(environ, start_response)

    def __iter__(self):
        self.start("200 OK", [])
        return iter([b"app"])

    def method(self, environ, start_response):
        return app(environ, start_response)

    async def coming(self, scope, receive, send):
        pass


def of_a_method(method):
    """Return a function that takes less than the one it says it is."""

    @functools.wraps(method)
    def bound(environ, start_response):
        return method(App(), environ, start_response)

    return bound


class Lazy:
    """A proxy of an app that is not there yet, as Flask's ``current_app``."""

    def __call__(self, environ, start_response):
        raise NotImplementedError

    @property
    def __signature__(self):
        raise RuntimeError("working outside of application context")


class Slotted:
    """As the guard itself: the call is in a slot."""

    __slots__ = ("__call__",)

    def __init__(self):
        object.__setattr__(self, "__call__", app)


RIGHT = {
    "function": app,
    "function with more": lambda environ, start_response, more=None: app(environ, start_response),
    "anything": lambda *args: app(*args),
    "instance": App(),
    "class": App,
    "bound method": App().method,
    "partial": functools.partial(lambda more, environ, start: app(environ, start), 1),
    "partial by name": functools.partial(lambda environ, start, more: [b""], more=1),
    "decorated method": of_a_method(App.method),
    "lazy": Lazy(),
    "slotted": Slotted(),
    "guard": BusyGuard(app),
    "made in C": print,
    "WebOb's exception": HTTPServiceUnavailable(),
    "WebOb's decorator": wsgify(lambda request: "app"),
    "Werkzeug's response": Response("app"),
    "Django": WSGIHandler,
    "Flask": Flask("shop"),
    "Flask's wsgi_app": Flask("shop").wsgi_app,
}


@pytest.mark.parametrize("right", RIGHT.values(), ids=RIGHT)
def test_a_wsgi_app_may_be_whatever_can_be_called_with_two(right):
    wsgi_app("app", right)


async def coroutine(scope, receive, send):
    """As Starlette's apps and FastAPI's are inside."""


async def coroutine_of_two(environ, start_response):
    """As somebody who means a WSGI app may write."""


async def generator(environ, start_response):
    yield b""


class Starlette:
    async def __call__(self, scope, receive, send):
        pass


class FastAPI(Starlette):
    pass


class Double:
    """An ASGI 2 app: ``Double(scope)(receive, send)``."""

    def __init__(self, scope):
        pass

    async def __call__(self, receive, send):
        pass


ASYNC = {
    "async def": coroutine,
    "async def of two": coroutine_of_two,
    "async generator": generator,
    "Starlette": Starlette(),
    "the class": Starlette,
    "FastAPI": FastAPI(),
    "ASGI 2": Double,
    "method": App().coming,
    "partial": functools.partial(coroutine),
    "partial of a partial of an instance": functools.partial(functools.partial(Starlette())),
    "partial of one argument": functools.partial(coroutine, {}),
    "Django": ASGIHandler,
}
OTHERS = {
    "of three": lambda scope, receive, send: None,
    "of one": lambda scope: None,
    "of none": lambda: None,
    "partial of four": functools.partial(lambda self, scope, receive, send: None, None),
}


@pytest.mark.parametrize("wrong", ASYNC.values(), ids=ASYNC)
def test_an_asgi_app_is_told_apart_when_the_guard_is_made(wrong):
    with pytest.raises(TypeError) as raised:
        BusyGuard(wrong)
    assert str(raised.value) == (
        f"app must be a WSGI app, not {wrong!r}, which is an ASGI app: give the framework's WSGI"
        " app (Django: get_wsgi_application()); a2wsgi.ASGIMiddleware(app) makes one of any ASGI"
        " app"
    )


@pytest.mark.parametrize("wrong", OTHERS.values(), ids=OTHERS)
def test_what_cannot_be_called_as_a_wsgi_app_is_is_none(wrong):
    with pytest.raises(TypeError, match=r"which cannot be called with environ and start_response;"):
        BusyGuard(wrong)


def test_a_function_that_makes_the_app_is_to_be_called():
    def create_app(config=None):
        return app

    with pytest.raises(TypeError, match="; if it makes the app, call it, and give what it returns"):
        BusyGuard(create_app)


def test_what_cannot_be_called_at_all_is_none():
    with pytest.raises(TypeError, match=r"^app must be a WSGI app, not 5$"):
        BusyGuard(5)


def test_an_asgi_app_does_not_hide_in_what_stands_around_it():
    with pytest.raises(TypeError, match=r"^app must be a WSGI app, .* is an ASGI app: "):
        BusyGuard(carrying(coroutine))


def test_a_refusal_is_a_wsgi_app_too():
    with pytest.raises(TypeError, match=r"^refusal must be a WSGI app, .* is an ASGI app: "):
        BusyGuard(app, slots=1, refusal=coroutine)


# Clients of tests that call the app themselves


@pytest.mark.parametrize("client", [Client, TestApp], ids=["Werkzeug", "WebTest"])
def test_six_responses_that_a_test_keeps_are_six(client):
    guard = BusyGuard(Response("page"), slots=4, max_queue=0)
    get = client(guard).get
    kept = [get("/") for _ in range(6)]
    assert {response.status_code for response in kept} == {200}
    assert {get("/readyz").text for _ in range(3)} == {"free"}


def test_webobs_requests_leave_the_slot_when_the_body_is_read():
    """They are used on servers, too, so that nobody can tell a test."""
    guard = BusyGuard(Response("page"), slots=1, max_queue=0)
    kept = [Request.blank("/").get_response(guard) for _ in range(1)]
    assert kept[0].body == b"page"
    assert Request.blank("/").get_response(guard).status_code == 200
