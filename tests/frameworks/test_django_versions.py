"""A Django project on runserver and on gunicorn, with old and new versions of Django."""

from __future__ import annotations

import os
import sys
import textwrap

import pytest
from support.client import ask, check, eventually, free_port, many, together
from support.processes import Process, environment

from frameworks.djangos import VERSIONS, path_to

FILES = {
    "manage.py": """
        import os, sys
        os.environ.setdefault("DJANGO_SETTINGS_MODULE", "mysite.settings")
        from django.core.management import execute_from_command_line
        execute_from_command_line(sys.argv)
        """,
    "mysite/__init__.py": "",
    "mysite/settings.py": """
        SECRET_KEY = "only a test"
        ALLOWED_HOSTS = ["shop.example"]
        ROOT_URLCONF = "mysite.urls"
        USE_TZ = True
        INSTALLED_APPS = ["wsgi_busyguard.integrations.django"]
        MIDDLEWARE = ["django.middleware.common.CommonMiddleware", "mysite.urls.maintenance"]
        # Nobody listens at the second: it is down. (runserver does not start without the first.)
        DATABASES = {
            "default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"},
            "down": {
                "ENGINE": "django.db.backends.postgresql",
                "NAME": "shop",
                "HOST": "127.0.0.1",
                "PORT": 1,
            },
        }
        WSGI_APPLICATION = "wsgi_busyguard.integrations.django.application"
        BUSYGUARD = {"SLOTS": 2, "MAX_QUEUE": 2, "MAX_WAIT": 10.0, "READY": "exact"}
        """,
    "mysite/urls.py": """
        import threading
        from django.db import connections
        from django.http import HttpResponse
        from django.urls import path

        go_on, closed = threading.Event(), threading.Event()

        def maintenance(get_response):
            def answer(request):
                if closed.is_set() and request.path != "/open":
                    return HttpResponse("be back soon", status=503)
                return get_response(request)
            return answer

        def home(request):
            return HttpResponse("home")

        def hang(request):
            go_on.wait(60)
            return HttpResponse("done")

        def release(request):
            go_on.set()
            return HttpResponse("released")

        def database(request):
            with connections["down"].cursor() as cursor:
                cursor.execute("SELECT 1")

        def close(request):
            closed.set()
            return HttpResponse("closed")

        urlpatterns = [
            path("", home), path("hang", hang), path("release", release),
            path("database", database), path("close", close),
        ]
        """,
}


@pytest.fixture(params=VERSIONS)
def project(request, tmp_path, tmp_path_factory):
    """A project folder and an environment with a version of Django."""
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(textwrap.dedent(text))
    env = environment(DJANGO_SETTINGS_MODULE="mysite.settings")
    folder = path_to(request.param, tmp_path_factory)
    env["PYTHONPATH"] = os.pathsep.join([folder, str(tmp_path), env["PYTHONPATH"]])
    return tmp_path, env


RUNSERVER = ["manage.py", "runserver", "--noreload"]
GUNICORN = ["-m", "gunicorn", "wsgi_busyguard.integrations.django:application"]
SERVERS = {
    "runserver": lambda port: [*RUNSERVER, str(port)],
    "gunicorn": lambda port: [*GUNICORN, "--threads", "6", "--bind", f"127.0.0.1:{port}"],
}


@pytest.mark.parametrize("server", SERVERS)
def test_a_project_is_guarded(project, process, server):
    folder, env = project
    port = free_port()
    serving = process(sys.executable, *SERVERS[server](port), cwd=folder, env=env)

    def up():
        assert serving.popen.poll() is None, serving.output
        try:
            return check(port).text == "free"
        except OSError:
            return False

    eventually(up)

    # a host that is forbidden, and the database down
    assert ask(port, host="shop.example").text == "home"
    assert ask(port, host="10.0.0.5").status == 400
    assert ask(port, path="/database", host="shop.example").status == 500
    for path in ("/healthz", "/readyz", "/livez"):
        assert ask(port, path=path, host="10.0.0.5").status == 200
    assert check(port).text == "free"

    # every slot taken, the queue full
    _, threads = many(4, port, path="/hang", host="shop.example")
    eventually(lambda: check(port).status == 503)
    eventually(lambda: ask(port, path="/", host="shop.example").status == 503)
    refused = ask(port, path="/", host="shop.example")
    assert refused.headers["busyguard-refused"] in ("queue-full", "queue-age")
    assert ask(port, path="/livez").status == 200

    # the command, from beside it
    url = f"http://127.0.0.1:{port}/readyz"
    command = Process([sys.executable, "manage.py", "busyguard", url], cwd=folder, env=env)
    try:
        assert (command.ended(), command.output.strip()) == (1, "busy")
    finally:
        command.reap()

    serving.signal()
    serving.reap()
    together(threads)


@pytest.mark.parametrize("server", ["gunicorn"])
def test_a_project_in_maintenance_is_guarded(project, process, server):
    folder, env = project
    port = free_port()
    serving = process(sys.executable, *SERVERS[server](port), cwd=folder, env=env)

    def up():
        assert serving.popen.poll() is None, serving.output
        try:
            return check(port).text == "free"
        except OSError:
            return False

    eventually(up)
    assert ask(port, path="/close", host="shop.example").status == 200
    assert ask(port, host="shop.example").text == "be back soon"
    assert check(port).text == "free"
    assert ask(port, path="/readyz").text == "free"
