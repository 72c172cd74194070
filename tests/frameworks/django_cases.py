"""The Django integration, on whichever Django is first on the path; test_django.py runs this."""

# ruff: noqa: E402 (Django is set up before what needs it)
from __future__ import annotations

import asyncio
import io
import logging
import pathlib
import shutil
import tempfile
import time
import types

import django
import pytest
from django.conf import settings

settings.configure(
    SECRET_KEY="only a test",
    ROOT_URLCONF=__name__,
    ALLOWED_HOSTS=["shop.example"],
    INSTALLED_APPS=["wsgi_busyguard.integrations.django"],
    # A file, for Django never closes a database in memory.
    DATABASES={
        "default": {
            "ENGINE": "django.db.backends.sqlite3",
            "NAME": str(pathlib.Path(tempfile.mkdtemp()) / "shop.sqlite"),
        }
    },
    MIDDLEWARE=["django.middleware.common.CommonMiddleware"],
    BUSYGUARD={"SLOTS": 2},
    WSGI_APPLICATION="wsgi_busyguard.integrations.django.application",
    USE_TZ=True,
    LOGGING_CONFIG=None,
)
django.setup()

from django.core.checks import run_checks
from django.core.exceptions import ImproperlyConfigured
from django.core.management import CommandError, call_command
from django.core.wsgi import get_wsgi_application
from django.db import connection
from django.db.utils import OperationalError
from django.http import HttpResponse, StreamingHttpResponse
from django.test import RequestFactory, override_settings
from django.test.utils import CaptureQueriesContext
from django.urls import path
from webob import Request

from wsgi_busyguard import BusyGuard, Load, Monitor, current_deadline
from wsgi_busyguard.deadlines import TooLate, within
from wsgi_busyguard.integrations import django as integration
from wsgi_busyguard.integrations.django import database, guarded, signals, when_busy
from wsgi_busyguard.integrations.django.pressure import time_left, under_pressure

INNER = "wsgi_busyguard.integrations.django.application"


@pytest.fixture(autouse=True, scope="session")
def _folder():
    yield
    shutil.rmtree(pathlib.Path(settings.DATABASES["default"]["NAME"]).parent)


@pytest.fixture(autouse=True)
def _closed():
    yield
    connection.close()


def home(request):
    with connection.cursor() as cursor:
        cursor.execute("SELECT 1")
    return HttpResponse("home")


def deadline(request):
    return HttpResponse(str(current_deadline() == request.META["busyguard.deadline"]))


async def async_deadline(request):
    await asyncio.sleep(0)
    return deadline(request)


def streamed_deadline(request):
    return StreamingHttpResponse(
        str(current_deadline() == request.META["busyguard.deadline"]) for _ in range(2)
    )


async def cheap(request):
    return HttpResponse("cheap")


@when_busy(cheap)
async def dear(request):
    return HttpResponse("dear")


urlpatterns = [
    path("", home),
    path("deadline", deadline),
    path("async", async_deadline),
    path("streamed", streamed_deadline),
    path("dear", dear),
]


def get(app, path="/", method="GET", host="shop.example", **environ):
    return Request.blank(path, method=method, headers={"Host": host}).get_response(app)


# The application


def test_the_dotted_path_is_a_guard_with_the_settings():
    from django.core.servers.basehttp import get_internal_wsgi_application

    application = get_internal_wsgi_application()  # what runserver does
    assert isinstance(application, BusyGuard)
    assert application is integration.application
    assert application.monitor.load.capacity == 2
    assert get(application).text == "home"
    assert get(application, "/healthz").text == "free"


def test_what_reads_modules_as_dicts_finds_it_in_wsgi():
    from wsgi_busyguard.integrations.django import wsgi

    assert vars(wsgi)["application"] is integration.application


def test_there_is_nothing_else_in_the_package():
    with pytest.raises(AttributeError, match=r"integrations.django' has no attribute 'nothing'"):
        _ = integration.nothing


def test_a_check_comes_through_with_a_host_that_is_forbidden():
    assert get(guarded(), host="10.0.0.5").status_int == 400
    answer = get(guarded(), method="OPTIONS", host="10.0.0.5")
    assert (answer.status_int, answer.text) == (200, "free")


def test_a_check_comes_through_without_any_host():
    request = Request.blank("/", method="OPTIONS")
    del request.headers["Host"]
    assert request.get_response(guarded()).text == "free"


class Maintenance:
    def __init__(self, get_response):
        """Take the rest of the site, which is not asked."""

    def __call__(self, request):
        return HttpResponse("be back soon", status=503)


@override_settings(MIDDLEWARE=[f"{__name__}.Maintenance"])
def test_a_check_comes_through_a_maintenance_middleware():
    guard = guarded(get_wsgi_application())
    assert get(guard).status_int == 503
    assert get(guard, "/readyz").text == "free"


def test_a_check_comes_through_with_the_database_down(monkeypatch):
    def down(*_, **__):
        raise OperationalError("the database is down")

    guard = guarded()
    monkeypatch.setattr(connection, "cursor", down)
    with pytest.raises(OperationalError), override_settings(DEBUG_PROPAGATE_EXCEPTIONS=True):
        get(guard)
    assert get(guard, "/readyz").text == "free"
    assert get(guard, "/livez").text == "alive"


def test_a_check_costs_no_query():
    guard = guarded()
    with CaptureQueriesContext(connection) as captured:
        for check in ("/healthz", "/readyz", "/livez"):
            assert get(guard, check).status_int == 200
        assert get(guard, "/", "OPTIONS").text == "free"
        assert len(captured) == 0
        get(guard)
        assert len(captured) == 1


def test_it_redirects_no_check_to_https():
    middleware = ["django.middleware.security.SecurityMiddleware"]
    with override_settings(SECURE_SSL_REDIRECT=True, MIDDLEWARE=middleware):
        guard = guarded(get_wsgi_application())
        assert get(guard).status_int == 301
        assert get(guard, "/healthz").status_int == 200


# The settings


def an_app(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"another app"]


@override_settings(BUSYGUARD={"WSGI_APPLICATION": f"{__name__}.an_app", "LIVE_PATHS": ["/alive"]})
def test_another_app_may_be_guarded():
    assert get(guarded()).text == "another app"
    assert get(guarded(), "/alive").text == "alive"


@override_settings(BUSYGUARD=None)
def test_without_settings_there_is_a_guard_all_the_same():
    assert get(guarded(), "/healthz").text == "free"


WRONG = {
    "an unknown key": ({"SLOT": 2}, "BUSYGUARD has no 'SLOT'; did you mean 'SLOTS'?"),
    "what others call it": ({"THREADS": 8}, "BUSYGUARD has no 'THREADS'; did you mean 'SLOTS'?"),
    "no app there": ({"WSGI_APPLICATION": "no_such.app"}, "No module named 'no_such'"),
    "no folder": ({"BOARD": "/no/such/board"}, "the folder '/no/such' for the board is missing"),
    "a wrong value": ({"SLOTS": 0}, "slots must be at least 1, not 0"),
    "a wrong type": ({"SLOTS": "8"}, "slots must be a whole number, not '8'"),
    "no callback": ({"ON_BUSY": 5}, "must be a function that takes a Transition, not 5"),
    "no such thing": ({"ON_BUSY": "builtins.nothing"}, "builtins has no 'nothing'"),
    "no dict": ([1], "BUSYGUARD must be a dict, such as {'SLOTS': 8}, not [1]"),
}


@pytest.mark.parametrize(("given", "words"), WRONG.values(), ids=WRONG)
def test_wrong_settings_are_told_by_the_application(given, words):
    with override_settings(BUSYGUARD=given), pytest.raises(ImproperlyConfigured) as raised:
        guarded()
    assert words in str(raised.value)


def test_the_guarded_application_cannot_be_what_is_guarded(monkeypatch):
    monkeypatch.delitem(__import__("sys").modules, f"{integration.__name__}.wsgi", raising=False)
    monkeypatch.delattr(integration, "wsgi", raising=False)
    with (
        override_settings(BUSYGUARD={"WSGI_APPLICATION": INNER}),
        pytest.raises(ImproperlyConfigured, match="which is the guarded application itself"),
    ):
        guarded()


@override_settings(BUSYGUARD={"WSGI_APPLICATION": "no.such.module.app"})
def test_an_app_that_is_not_there_is_told():
    with pytest.raises(ImproperlyConfigured, match=r'BUSYGUARD\["WSGI_APPLICATION"\]: No module'):
        guarded()


@override_settings(BUSYGUARD={"WSGI_APPLICATION": "math.pi"})
def test_an_app_that_is_none_is_told():
    with pytest.raises(ImproperlyConfigured, match=r"must be a WSGI app, not 3\.14"):
        guarded()


async def coming(scope, receive, send):
    """An ASGI app, as that of asgi.py."""


@override_settings(BUSYGUARD={"WSGI_APPLICATION": f"{__name__}.coming"})
def test_the_asgi_application_is_none():
    with pytest.raises(ImproperlyConfigured, match=r'^BUSYGUARD\["WSGI_APPLICATION"\] must be a W'):
        guarded()
    with pytest.raises(ImproperlyConfigured, match=r"which is an ASGI app: .*get_wsgi_application"):
        guarded(coming)


# The system checks


def complaints(deploy=False, tags=("busyguard",)):
    return [
        (message.id.partition(".")[2], message.msg, message.hint)
        for message in run_checks(tags=tags, include_deployment_checks=deploy)
    ]


def test_right_settings_raise_no_complaint():
    assert complaints() == []


@pytest.mark.parametrize(("given", "words"), WRONG.values(), ids=WRONG)
def test_wrong_settings_are_told_by_the_checks(given, words):
    with override_settings(BUSYGUARD=given):
        [(number, told, _)] = complaints()
    assert number == ("E001" if words.startswith("BUSYGUARD has no") else "E002")
    assert words in told


def test_settings_limit_bulkheads():
    from wsgi_busyguard.bulkhead import Bulkhead

    rates = Bulkhead("rates of a Django site", at_most=7)
    given = {"BULKHEADS": {"rates of a Django site": {"AT_MOST": 2}, "api.example.com": {}}}
    with override_settings(BUSYGUARD=given):
        assert complaints() == []
        guarded()
    assert rates.figures()["at_most"] == 2


def test_a_bulkhead_that_there_is_not_is_told():
    from wsgi_busyguard.bulkhead import Bulkhead

    rates = Bulkhead("exchange-rates")
    with override_settings(BUSYGUARD={"BULKHEADS": {"exchange-rate": {}, "localhost": {}}}):
        [(number, told, hint)] = complaints()
    assert number == "W003"
    assert told == "BUSYGUARD[\"BULKHEADS\"] has 'exchange-rate', which is no bulkhead and no host"
    assert hint == f"did you mean {rates.name!r}?"


@pytest.mark.parametrize("given", [3, {"rates": 3}, {"rates": {"MOST": 3}}, {"r": {"AT_MOST": 0}}])
def test_bulkheads_that_cannot_be_meant_are_told(given):
    with override_settings(BUSYGUARD={"BULKHEADS": given}):
        [(number, told, _)] = complaints()
        assert number == "E002"
        assert 'BUSYGUARD["BULKHEADS"]' in told
        with pytest.raises(ImproperlyConfigured):
            guarded()


@pytest.fixture
def routes():
    """Sets the project's URLs."""
    urls = types.ModuleType("urls_of_a_test")

    def routes(*patterns):
        urls.urlpatterns = list(patterns)
        return override_settings(ROOT_URLCONF=urls)

    return routes


def test_a_view_at_a_path_of_the_guard_is_told(routes):
    with routes(path("healthz", home, name="health"), path("readyz/", home), path("ping", home)):
        [(number, told, hint)] = complaints()
        with override_settings(BUSYGUARD={"READY_PATHS": ["/readyz"]}):
            assert complaints() == []
        with override_settings(BUSYGUARD={"LIVE_PATHS": ["/ping"], "READY_PATHS": []}):
            [(_, other, _)] = complaints()
    assert (number, told) == (
        "W004",
        "the guard answers /healthz, so the view 'health' is never called",
    )
    assert hint == "give the view another path, or leave /healthz out of READY_PATHS in BUSYGUARD"
    assert other.startswith("the guard answers /ping, so the view ")


def test_a_view_for_all_paths_is_none_for_that_of_the_guard(routes):
    with routes(path("<path:anything>", home)):
        assert complaints() == []


def test_the_checks_open_nothing_and_start_nothing(tmp_path):
    import threading

    before, board = threading.active_count(), tmp_path / "board"
    said = {"BOARD": str(board), "ON_BUSY": "builtins.print", "PUSH": ["unix:/nowhere#a/b"]}
    with override_settings(BUSYGUARD=said):
        assert complaints() == []
    assert not board.exists()
    assert threading.active_count() == before


def test_a_deployment_hears_how_many_threads_it_needs():
    with override_settings(BUSYGUARD={"SLOTS": 8}):
        [(number, told, hint)] = complaints(deploy=True)
    assert (number, told) == ("I001", "BUSYGUARD has SLOTS=8 and room for 32 that wait")
    assert hint.startswith("start the server with at least 42 threads")


@pytest.mark.parametrize(
    ("arguments", "number"),
    [("--threads 8", "W001"), ("--threads=42", None)],
    ids=["few", "enough"],
)
def test_threads_too_few_for_the_slots_are_a_warning(monkeypatch, arguments, number):
    monkeypatch.setenv("GUNICORN_CMD_ARGS", f"--workers 2 {arguments}")
    with override_settings(BUSYGUARD={"SLOTS": 8}):
        assert [one[0] for one in complaints(deploy=True)] == ([number] if number else [])


@pytest.mark.parametrize("kind", ["GuardedThreads", "GuardedSync", "GuardedGevent"])
@pytest.mark.parametrize("option", ["-k ", "--worker-class=", "--worker-class "])
def test_a_guarded_worker_class_is_the_queue_itself(monkeypatch, option, kind):
    worker = f"wsgi_busyguard.adapters.gunicorn.{kind}"
    monkeypatch.setenv("GUNICORN_CMD_ARGS", f"--threads 8 {option}{worker}")
    with override_settings(BUSYGUARD={"SLOTS": 8}):
        [(number, told, hint)] = complaints(deploy=True)
    assert number == "W002"
    assert told == f"BUSYGUARD has SLOTS, and {worker} is a guard in front of its threads already"
    assert hint.startswith("leave SLOTS out;")


def test_slots_behind_sync_workers_are_no_matter_of_threads(monkeypatch):
    monkeypatch.setenv("GUNICORN_CMD_ARGS", "-w 4 -k sync")
    with override_settings(BUSYGUARD={"SLOTS": 8}):
        [(number, _, hint)] = complaints(deploy=True)
    assert number == "W002"
    assert hint.startswith("leave SLOTS out and start gunicorn with -k wsgi_busyguard.")


@pytest.mark.parametrize("arguments", ["-k sync --threads 42", "-k gthread --threads 42"])
def test_with_threads_enough_the_class_does_not_matter(monkeypatch, arguments):
    monkeypatch.setenv("GUNICORN_CMD_ARGS", arguments)  # with threads, sync means gthread
    with override_settings(BUSYGUARD={"SLOTS": 8}):
        assert complaints(deploy=True) == []


@pytest.mark.parametrize("arguments", ["--threads many", "-k 'no end", "--threads"])
def test_arguments_that_gunicorn_itself_would_not_take_are_not_read(monkeypatch, arguments):
    monkeypatch.setenv("GUNICORN_CMD_ARGS", arguments)
    with override_settings(BUSYGUARD={"SLOTS": 8}):
        assert [one[0] for one in complaints(deploy=True)] == ["I001"]


def test_the_balancers_address_is_not_needed_in_allowed_hosts():
    with override_settings(ALLOWED_HOSTS=["shop.example", "10.0.0.5", "[::1]"], BUSYGUARD={}):
        [(number, _, hint)] = complaints(deploy=True)
    assert number == "I002"
    assert hint == "if 10.0.0.5 stood there for a balancer, take it out"


# Signals


@pytest.fixture
def busy_monitor():
    class Adapter:
        load = Load(0, 0, 2)
        changed = None

        def read(self):
            return self.load

        def subscribe(self, changed):
            self.changed = changed

        def become(self, load):
            self.load = load
            self.changed()

    adapter = Adapter()
    return adapter, Monitor(adapter)


@pytest.fixture
def connected():
    receivers = []

    def connect(signal, receiver):
        signal.connect(receiver, weak=False)
        receivers.append((signal, receiver))

    yield connect
    for signal, receiver in receivers:
        signal.disconnect(receiver)


@pytest.mark.parametrize("order", ["the guard first", "the receiver first"])
def test_signals_tell_of_busy_and_free(busy_monitor, connected, order):
    adapter, monitor = busy_monitor
    told = []

    def watch():
        signals.watch(monitor)

    def listen():
        for signal in (signals.busy, signals.free):
            connected(signal, lambda sender, transition, **_: told.append((sender, transition)))

    for step in (watch, listen) if order == "the guard first" else (listen, watch):
        step()
    adapter.become(Load(9, 2, 2))
    adapter.become(Load(0, 0, 2))
    assert [(sender, change.state.value) for sender, change in told] == [
        (Monitor, "busy"),
        (Monitor, "free"),
    ]


def test_a_receiver_that_raises_does_not_silence_the_next(busy_monitor, connected, caplog):
    adapter, monitor = busy_monitor
    told = []

    def fail(**_):
        raise KeyError("receiver")

    connected(signals.busy, fail)
    connected(signals.busy, lambda **_: told.append(True))
    signals.watch(monitor)
    with caplog.at_level(logging.CRITICAL):
        adapter.become(Load(9, 2, 2))
    assert told == [True]


def test_nobody_looks_at_the_server_while_nobody_listens():
    import threading

    class Polled:
        def read(self):
            return Load(0, 0, 2)

    before = threading.active_count()
    signals.watch(Monitor(Polled()))
    assert threading.active_count() == before


# In views


@pytest.fixture
def request_of():
    class Adapter:
        def __init__(self, load):
            self.load = load

        def read(self):
            return self.load

    def request_of(load, **meta):
        monitor = Monitor(Adapter(load))
        return RequestFactory().get("/", **{"busyguard.monitor": monitor, **meta})

    return request_of


CALM, CROWDED = Load(0, 0, 2), Load(9, 2, 2)


def test_a_view_knows_of_pressure_and_time(request_of):
    assert under_pressure(request_of(CROWDED)) is True
    assert under_pressure(request_of(CALM)) is False
    assert under_pressure(RequestFactory().get("/")) is False
    soon = {"busyguard.deadline": time.monotonic() + 3}
    assert 2 < time_left(request_of(CALM, **soon)) <= 3


def test_a_cheaper_view_answers_while_the_server_is_busy(request_of):
    @when_busy(lambda request, number: HttpResponse(f"short {number}"))
    def view(request, number):
        """Say it all."""
        return HttpResponse(f"long {number}")

    assert view(request_of(CALM), 7).content == b"long 7"
    assert view(request_of(CROWDED), number=7).content == b"short 7"
    assert view.__doc__ == "Say it all."


def test_so_does_an_async_one(request_of):
    assert asyncio.run(dear(request_of(CALM))).content == b"dear"
    assert asyncio.run(dear(request_of(CROWDED))).content == b"cheap"
    assert get(guarded(), "/dear").text == "dear"


def test_both_are_async_or_neither_is():
    with pytest.raises(TypeError, match="must both be async, or neither of them"):
        when_busy(cheap)(home)


@pytest.mark.parametrize("view", ["deadline", "async", "streamed"])
def test_the_deadline_is_known_in_every_kind_of_view(view):
    assert set(get(guarded(), f"/{view}").text.replace("True", "T")) == {"T"}


@pytest.mark.parametrize("view", ["deadline", "streamed"])
def test_and_with_the_plain_guard_in_all_that_stay_in_the_thread(view):
    assert "False" not in get(BusyGuard(get_wsgi_application(), slots=2), f"/{view}").text


# The command


def said_by_command(*arguments):
    out, err = io.StringIO(), io.StringIO()
    try:
        call_command("busyguard", *arguments, stdout=out, stderr=err)
        code = 0
    except SystemExit as ended:
        code = ended.code
    return code, out.getvalue(), err.getvalue()


def test_the_command_tells_the_state(checkport, adapter):
    figures = "queued=0 active=0 capacity=4 delay=0.0"
    assert said_by_command(checkport) == (0, f"free {figures}\n", "")
    adapter.load = Load(9, 4, 4)
    code, out, _ = said_by_command(checkport)
    assert (code, out.split()[0]) == (1, "busy")
    assert said_by_command(f"http://{checkport}/livez")[0] == 0


def test_the_command_asks_at_the_check_port(checkport, monkeypatch):
    monkeypatch.setenv("BUSYGUARD_CHECK", checkport)
    assert said_by_command()[0] == 0


def test_no_answer_is_2():
    code, out, err = said_by_command("http://127.0.0.1:1/readyz")
    assert (code, out) == (2, "")
    assert err == "no answer from http://127.0.0.1:1/readyz: Connection refused\n"


@pytest.mark.parametrize("arguments", [["ftp://x"], ["8081", "--timeout=0"]])
def test_a_mistake_is_2(arguments):
    with pytest.raises(CommandError) as raised:
        call_command("busyguard", *arguments)
    assert raised.value.returncode == 2


# Database statements; a connection that writes down what it is told stands for PostgreSQL


class Recorder:
    """What a wrapper needs of Django's connection and of psycopg's."""

    vendor = "postgresql"

    def __init__(self):
        self.in_atomic_block = False
        self.autocommit = True
        self.told = []
        self.connection = self
        self.wrap_database_errors = self

    def cursor(self):
        return self

    def execute(self, sql):
        self.told.append(sql)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        return None


@pytest.fixture
def recorder():
    return Recorder()


def run(recorder, wrapper, sql="SELECT 1"):
    return wrapper(lambda *_: recorder.told.append(sql), sql, None, False, {"connection": recorder})


def test_a_statement_has_the_time_that_its_client_has(recorder):
    with within(2.0):
        run(recorder, database.StatementTimeouts())
    [told, statement] = recorder.told
    words, _, milliseconds = told.rpartition(" ")
    assert (words, statement) == ("SET statement_timeout =", "SELECT 1")
    assert 1500 < int(milliseconds) <= 2000


def test_what_is_set_stays_while_it_fits(recorder):
    wrapper = database.StatementTimeouts()
    with within(2.0):
        run(recorder, wrapper)
        run(recorder, wrapper)
    with within(1.0):
        run(recorder, wrapper)
    assert [told[:3] for told in recorder.told] == ["SET", "SEL", "SEL", "SET", "SEL"]


def test_in_a_transaction_it_is_set_each_time(recorder):
    """A rollback would undo it, and tell nobody."""
    wrapper = database.StatementTimeouts()
    recorder.in_atomic_block = True
    with within(2.0):
        run(recorder, wrapper)
        run(recorder, wrapper)
    assert [told[:9] for told in recorder.told] == ["SET LOCAL", "SELECT 1"] * 2


def test_so_it_is_without_autocommit(recorder):
    recorder.autocommit = False
    with within(2.0):
        run(recorder, database.StatementTimeouts())
    assert recorder.told[0].startswith("SET LOCAL")


def test_what_was_set_before_the_transaction_stays_in_it(recorder):
    wrapper = database.StatementTimeouts()
    with within(2.0):
        run(recorder, wrapper)
        recorder.in_atomic_block = True
        run(recorder, wrapper)
    assert [told[:3] for told in recorder.told] == ["SET", "SEL", "SEL"]


def test_outside_of_a_request_there_is_no_limit(recorder):
    wrapper = database.StatementTimeouts()
    with within(2.0):
        run(recorder, wrapper)
    run(recorder, wrapper)
    run(recorder, wrapper)
    assert recorder.told[2:] == ["SET statement_timeout = 0", "SELECT 1", "SELECT 1"]


def test_or_the_one_that_is_said(recorder):
    run(recorder, database.StatementTimeouts(3.0))
    assert recorder.told == ["SET statement_timeout = 3000", "SELECT 1"]


def test_a_statement_that_would_outlive_its_client_is_not_begun(recorder, monkeypatch):
    with within(0.001):
        time.sleep(0.002)
        with pytest.raises(database.NotBegun) as raised:
            run(recorder, database.StatementTimeouts())
    assert isinstance(raised.value, OperationalError)
    assert isinstance(raised.value, TooLate)
    assert recorder.told == []


def test_with_another_database_it_is_not_begun_either():
    database.limit_statements()
    try:
        with connection.cursor() as cursor:
            cursor.execute("SELECT 1")
        with within(0.001):
            time.sleep(0.002)
            with pytest.raises(database.NotBegun), connection.cursor() as cursor:
                cursor.execute("SELECT 1")
    finally:
        connection.execute_wrappers.clear()


def test_a_connection_has_one_limit():
    from django.db.backends.signals import connection_created

    database.limit_statements(1.0)
    database.limit_statements(2.0)
    connection.close()
    connection.connect()
    try:
        [wrapper] = connection.execute_wrappers
        assert wrapper.at_most == 2.0
    finally:
        connection.execute_wrappers.clear()
        connection_created.disconnect(dispatch_uid=database.__name__)
