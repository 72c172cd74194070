from __future__ import annotations

import asyncio
import threading

import pytest
from flask import Flask, request

import wsgi_busyguard
from wsgi_busyguard import current_deadline, under_pressure
from wsgi_busyguard.bulkhead import Bulkhead
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


def test_settings_limit_bulkheads(app):
    rates = Bulkhead("rates of a Flask app", at_most=7)
    app.config["BUSYGUARD"] = {"BULKHEADS": {"rates of a Flask app": {"AT_MOST": 2}}}
    BusyGuard(app)
    assert rates.figures()["at_most"] == 2


def test_wrong_settings_of_bulkheads_are_told(app):
    app.config["BUSYGUARD"] = {"BULKHEADS": {"rates": {"MOST": 2}}}
    with pytest.raises(ValueError, match=r"\['rates'\] has no 'MOST'; there are AT_MOST, SHARE"):
        BusyGuard(app)


GUARDS = pytest.mark.parametrize(
    "guard",
    [
        lambda app, **options: BusyGuard(app, **options),
        lambda app, **options: setattr(
            app, "wsgi_app", wsgi_busyguard.BusyGuard(app.wsgi_app, **options)
        ),
    ],
    ids=["the extension", "the plain guard"],
)


@GUARDS
def test_a_test_may_keep_responses_for_as_long_as_it_likes(app, guard, caplog):
    """The test client keeps them open, and the fifth of a slots=4 was a 503 after a second."""

    @app.route("/pieces")
    def pieces():
        return (str(n) for n in range(3))

    guard(app, slots=4, max_queue=0)
    client = app.test_client()
    kept = [client.get(path) for path in ("/", "/pieces") for _ in range(6)]
    assert {response.status_code for response in kept} == {200}
    assert kept[-1].text == "012"
    for response in kept:
        response.close()
    assert app.wsgi_app.monitor.load.active == 0
    assert not caplog.records  # a test client is no server of which there is anything to say


def test_a_dry_run_does_not_count_them_either(app):
    BusyGuard(app, slots=4, max_queue=0, dry_run=True)
    kept = [app.test_client().get("/") for _ in range(6)]
    assert {response.status_code for response in kept} == {200}
    assert not app.extensions["busyguard"].dry_run.refused


@GUARDS
def test_under_the_test_client_the_gate_is_one_still(app, guard, start, until):
    go_on, inside = threading.Event(), []

    @app.route("/slow")
    def slow():
        inside.append(True)
        go_on.wait(20)
        return "slow"

    guard(app, slots=1, max_queue=0)
    first = start(lambda: app.test_client().get("/slow"))
    until(lambda: inside)
    assert app.test_client().get("/").status_code == 503
    go_on.set()
    first.join(20)
    assert app.test_client().get("/").status_code == 200


def test_a_server_is_met_after_tests_as_ever(app, environ):
    BusyGuard(app, slots=1, max_queue=0)
    assert app.test_client().get("/").status_code == 200
    body = app(environ(), lambda *_: None)
    assert app.test_client().get("/").status_code == 503  # the server holds it until it closes it
    body.close()
    assert app.test_client().get("/").status_code == 200


def test_what_is_no_flask_app_is_told():
    """Quart has no wsgi_app, and is an ASGI app."""

    class Quart:
        async def __call__(self, scope, receive, send):
            pass

    with pytest.raises(TypeError, match=r"^app must be a WSGI app, .* which is an ASGI app: "):
        BusyGuard(Quart())


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
