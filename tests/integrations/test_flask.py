from __future__ import annotations

import asyncio

import pytest
from flask import Flask, request

import wsgi_busyguard
from wsgi_busyguard import current_deadline, under_pressure
from wsgi_busyguard.integrations.flask import BusyGuard, command


@pytest.fixture
def app():
    app = Flask("shop")

    @app.route("/")
    def home():
        return "pressed" if under_pressure(request.environ) else "home"

    @app.route("/deadline")
    def deadline():
        return str(current_deadline() == request.environ["busyguard.deadline"])

    return app


def test_it_is_the_guard_of_the_app(app):
    BusyGuard(app, slots=2)
    client = app.test_client()
    assert client.get("/").text == "home"
    assert client.get("/healthz").text == "free"
    assert client.options("/").text == "free"
    assert client.get("/deadline").text == "True"
    assert isinstance(app.extensions["busyguard"], wsgi_busyguard.BusyGuard)
    assert app.wsgi_app is app.extensions["busyguard"]


def test_the_plain_guard_does_as_well(app):
    app.wsgi_app = wsgi_busyguard.BusyGuard(app.wsgi_app, slots=2)
    assert app.test_client().get("/healthz").text == "free"
    assert app.test_client().get("/deadline").text == "True"


def test_the_apps_settings_go_before_the_extensions(app):
    app.config["BUSYGUARD"] = {"SLOTS": 3, "LIVE_PATHS": ["/alive"]}
    guard = BusyGuard(slots=2, ready="exact")
    guard.init_app(app)
    assert app.test_client().get("/alive").text == "alive"
    with app.app_context():
        assert guard.monitor.load.capacity == 3


def test_one_extension_serves_several_apps(app):
    guard, other = BusyGuard(slots=2), Flask("other")
    guard.init_app(app)
    guard.init_app(other)
    with app.app_context():
        first = guard.monitor
    with other.app_context():
        assert guard.monitor is not first


def test_an_app_has_one_guard(app):
    BusyGuard(app)
    with pytest.raises(RuntimeError, match="<Flask 'shop'> has a guard already"):
        BusyGuard(app)


def test_unknown_settings_are_refused(app):
    app.config["BUSYGUARD"] = {"SLOT": 3}
    with pytest.raises(ValueError, match=r"has no 'SLOT'; did you mean 'SLOTS'\?"):
        BusyGuard(app)


def test_an_async_view_knows_the_deadline(app):
    """Flask runs it in the event loop of another thread."""

    @app.route("/async")
    async def view():
        await asyncio.sleep(0)
        return str(current_deadline() == request.environ["busyguard.deadline"])

    BusyGuard(app, slots=2)
    assert app.test_client().get("/async").text == "True"


def test_the_command_asks_the_running_site(app, checkport):
    runner = app.test_cli_runner()
    app.cli.add_command(command)
    answer = runner.invoke(args=["busyguard", checkport])
    assert (answer.output, answer.exit_code) == ("free queued=0 active=0 capacity=4 delay=0.0\n", 0)


def test_a_command_without_an_answer_says_so(app):
    app.cli.add_command(command)
    answer = app.test_cli_runner().invoke(args=["busyguard", "http://127.0.0.1:1/readyz"])
    assert answer.exit_code == 2
    assert "no answer from http://127.0.0.1:1/readyz: Connection refused" in answer.output


def test_a_command_with_a_url_that_is_none_says_so(app):
    app.cli.add_command(command)
    answer = app.test_cli_runner().invoke(args=["busyguard", "ftp://x"])
    assert answer.exit_code == 2
    assert "expected a URL" in answer.output
