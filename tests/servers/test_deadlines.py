"""current_deadline() on real servers, in the call and in a body that is iterated after it."""

from __future__ import annotations

import json
import re
import sys
import textwrap

import pytest
from support.client import ask

MAIN = "import sys; from wsgi_busyguard.cli import main; sys.exit(main())"

APP = """
import json
from wsgi_busyguard import current_deadline

def application(environ, start_response):
    deadline = environ["busyguard.deadline"]
    start_response("200 OK", [("Content-Type", "application/json")])
    in_call = current_deadline() == deadline
    if environ["PATH_INFO"] == "/list":
        return [json.dumps([in_call]).encode()]
    return body(in_call, deadline)

def body(in_call, deadline):
    in_body = current_deadline() == deadline
    yield json.dumps([in_call, in_body]).encode()
"""


@pytest.mark.parametrize("server", ["werkzeug", "twisted", "gunicorn", "waitress"])
def test_the_deadline_is_known_wherever_the_app_runs(server, process, tmp_path):
    (tmp_path / "shop.py").write_text(textwrap.dedent(APP))
    command = ["serve", "shop:application", "--server", server, "--listen", "127.0.0.1:0"]
    serving = process(sys.executable, "-c", MAIN, *command, cwd=tmp_path)
    port = int(re.search(r"http://127\.0\.0\.1:(\d+)", serving.line("serving "))[1])
    assert json.loads(ask(port, path="/list").body) == [True]
    assert json.loads(ask(port, path="/stream").body) == [True, True]
    assert json.loads(ask(port, path="/stream").body) == [True, True]
