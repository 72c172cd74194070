"""What real servers write: no line for a check, and one line a host for a change of state."""

from __future__ import annotations

import re
import sys

from support.client import ask, check, eventually, many, together

ACCESS = """
import logging
from wsgi_busyguard.integrations.access_logs import NoChecks

accesslog = "-"

def post_worker_init(worker):
    worker.log.access_log.addFilter(NoChecks())
"""


def test_gunicorns_access_log_has_no_checks(gunicorn, conf):
    """A sync worker answers checks as it serves requests, and gunicorn logs both."""
    served = gunicorn(conf(ACCESS), kind="GuardedSync")
    for _ in range(3):
        assert check(served.port).status == 200
        assert ask(served.port, path="/readyz").status == 200
    assert ask(served.port, path="/shop").status == 200
    eventually(lambda: '"GET /shop HTTP/1.1" 200' in served.output)
    assert "/readyz" not in served.output
    assert '"OPTIONS / HTTP/1.0"' not in served.output


def test_without_the_filter_it_has_them(gunicorn, conf):
    served = gunicorn(conf('accesslog = "-"'), kind="GuardedSync")
    check(served.port)
    eventually(lambda: '"OPTIONS / HTTP/1.0" 200' in served.output)


LOGS = """
import logging
logging.basicConfig(level=logging.INFO, format="%(name)s %(levelname)s %(process)d %(message)s")
"""


def test_gunicorns_workers_write_one_line_for_the_host(gunicorn, conf):
    served = gunicorn(conf(LOGS), "-w", "3", "--threads", "2", max_wait=30)
    eventually(lambda: served.load["capacity"] == 6)
    _, threads = many(18, served.port, path="/sleep/1")
    eventually(lambda: "wsgi_busyguard INFO" in served.output)
    together(threads)
    eventually(lambda: " free again after" in served.output)
    lines = re.findall(r"wsgi_busyguard (\w+) (\d+) (.*)", served.output)
    begins = [(level, line.split(" ")[0].strip(":")) for level, _, line in lines]
    assert begins.index(("INFO", "busy")) == 0
    assert len([line for _, _, line in lines if line.startswith("busy:")]) == 1
    assert len([line for _, _, line in lines if line.startswith("free again")]) == 1
    [line] = [line for _, _, line in lines if line.startswith("busy:")]
    assert "capacity=6" in line  # of the host, not of the worker that wrote it


SITE = """
import sys
from twisted.internet import reactor
from twisted.python import log
from twisted.web.server import Site
from twisted.web.wsgi import WSGIResource
from wsgi_busyguard import BusyGuard
from wsgi_busyguard.integrations.access_logs import without_checks

def app(environ, start_response):
    # Without a length, so that nobody can leave when he has the body, but before the request is
    # over: Twisted logs none of those.
    start_response("200 OK", [])
    return [b"ok"]

log.startLogging(sys.stderr, setStdout=False)
site = Site(WSGIResource(reactor, reactor.getThreadPool(), BusyGuard(app)))
port = reactor.listenTCP(0, without_checks(site), interface="127.0.0.1")
print("port:", port.getHost().port, flush=True)
reactor.run()
"""


def test_twisteds_access_log_has_no_checks(process):
    site = process(sys.executable, "-c", SITE)
    port = int(site.line("port: "))
    check(port)
    ask(port, path="/readyz")
    ask(port, path="/shop")
    eventually(lambda: '"GET /shop HTTP/1.1" 200' in site.output)
    assert "/readyz" not in site.output
    assert "OPTIONS" not in site.output


SHOP = """
import logging
import waitress
from paste.translogger import TransLogger
from wsgi_busyguard import BusyGuard
from wsgi_busyguard.integrations.access_logs import NoChecks

def app(environ, start_response):
    start_response("200 OK", [("Content-Length", "2")])
    return [b"ok"]

logging.getLogger("wsgi").addFilter(NoChecks())
server = waitress.create_server(TransLogger(BusyGuard(app)), host="127.0.0.1", port=0)
print("port:", server.effective_port, flush=True)
server.run()
"""


def test_an_access_log_in_front_of_waitress_has_no_checks(process):
    site = process(sys.executable, "-W", "ignore", "-c", SHOP)
    port = int(site.line("port: "))
    check(port)
    ask(port, path="/readyz")
    ask(port, path="/shop")
    eventually(lambda: '"GET /shop HTTP/1.1" 200' in site.output)
    assert "/readyz" not in site.output
    assert "OPTIONS" not in site.output
