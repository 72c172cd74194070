"""One server of a fleet: a guarded Twisted site whose work gets slower, hangs or breaks when told.

Says its ports, then obeys: a line of JSON on the control port, and a line back.
"""

from __future__ import annotations

import json
import socketserver
import sys
import threading
import time

from twisted.internet import reactor

from wsgi_busyguard.adapters.twisted import guarded_site
from wsgi_busyguard.checkport import AgentPort, CheckPort
from wsgi_busyguard.haproxy import Push

options = json.loads(sys.argv[1])
factor = 1.0
broken = False
go_on = threading.Event()
go_on.set()
rendered = []  # what no app should see: checks
arrivals = []  # of what came by a balancer, monotonic seconds
transitions = []
longest = 0


def app(environ, start_response):
    if environ["REQUEST_METHOD"] == "OPTIONS":
        rendered.append(environ["PATH_INFO"])
    go_on.wait(60)
    time.sleep(float(environ["PATH_INFO"].strip("/") or 0) * factor)
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", "2")])
    return [b"ok"]


site = guarded_site(app, **options)
site.quiet = True
monitor = site.guard.monitor
monitor.on_busy(lambda change: transitions.append(["busy", change.at]))
monitor.on_free(lambda change: transitions.append(["free", change.at]))


class Request(site.requestFactory):
    def process(self):
        if broken and self.method == b"OPTIONS":
            self.setResponseCode(500)
            self.finish()
            return
        if self.requestHeaders.hasHeader("x-forwarded-for"):
            arrivals.append(time.monotonic())
        super().process()


site.requestFactory = Request
agent = AgentPort(monitor, "127.0.0.1:0").start()
check = CheckPort(monitor, "127.0.0.1:0").start()
web = reactor.listenTCP(0, site, interface="127.0.0.1", backlog=1024)
pushing = None


def look():
    global longest
    while True:
        longest = max(longest, monitor.load.queued)
        time.sleep(0.005)


def obey(order):
    global factor, broken, longest, pushing
    factor = order.get("factor", factor)
    broken = order.get("broken", broken)
    if "hang" in order:
        (go_on.clear if order["hang"] else go_on.set)()
    if order.get("drain"):
        monitor.drain()
    if order.get("agent") == "stop":
        agent.stop()
    if "push" in order:
        if pushing is not None:
            pushing.stop()
        pushing = Push(monitor, order["push"], every=0.5).start() if order["push"] else None
    asking = agent.agent.balancers()
    figures = {
        "longest": longest,
        "rendered": rendered[:],
        "balancers": len(asking),
        "periods": {balancer["name"]: balancer["period"] for balancer in asking},
        "arrivals": arrivals[:],
        "transitions": transitions[:],
        "number": pushing.number if pushing is not None else None,
    }
    if order.get("forget"):
        longest = 0
        arrivals.clear()
        transitions.clear()
    return figures


class Control(socketserver.StreamRequestHandler):
    def handle(self):
        for line in self.rfile:
            self.wfile.write(json.dumps(obey(json.loads(line))).encode() + b"\n")


class Server(socketserver.ThreadingTCPServer):
    daemon_threads = True


control = Server(("127.0.0.1", 0), Control)
threading.Thread(target=control.serve_forever, daemon=True).start()
threading.Thread(target=look, daemon=True).start()
ports = {
    "web": web.getHost().port,
    "agent": agent.address[1],
    "check": check.address[1],
    "control": control.server_address[1],
}
print("ports:", json.dumps(ports), flush=True)
reactor.run()
