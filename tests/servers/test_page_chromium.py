"""The page of the check port as people see it, in a real browser."""

from __future__ import annotations

import os
import re
import signal
import struct
import time
from urllib.parse import urlsplit

import pytest
from balancers.test_agent import Agent
from support.chromium import Browser
from support.client import ask, eventually, many, together
from support.haproxies import Balancer, Visitors
from support.scenes import Scene, past, row

from servers.test_serve import APP, Serve
from wsgi_busyguard import Load
from wsgi_busyguard.checkport import CheckPort
from wsgi_busyguard.haproxy import Server, Setting, configuration

pytestmark = pytest.mark.slow

NARROW, USUAL, WIDE = 360, 1100, 1600


@pytest.fixture(scope="module")
def browser():
    browser = Browser()
    yield browser
    browser.close()


@pytest.fixture
def opened(browser):
    """Opens the page of a check port; at the end nothing may have gone wrong in it."""
    ports = set()

    def opened(port, **look):
        browser.look(**look)
        ports.add(port)
        browser.open(f"http://127.0.0.1:{port}/")
        return browser

    browser.asked.clear()
    browser.complaints.clear()
    yield opened
    asked = {urlsplit(url).netloc for url in browser.asked}
    browser.open("about:blank")
    assert asked == {f"127.0.0.1:{port}" for port in ports}
    assert [text for text in browser.complaints if "ERR_CONNECTION" not in text] == []


class Host(list):
    """A host whose scene can be changed while somebody looks.

    Each method by itself: what ``__getattr__`` finds is nothing to ``isinstance`` since 3.12.
    """

    def check(self, *args, **named):
        return self[0].check(*args, **named)

    def alive(self):
        return self[0].alive()

    def rows(self):
        return self[0].rows()

    def counts(self):
        return self[0].counts()

    def asked(self):
        return self[0].asked()

    def changes(self):
        return self[0].changes()

    @property
    def refusals(self):
        return self[0].refusals

    @property
    def draining(self):
        return self[0].draining


@pytest.fixture
def host():
    """A check port, what it shows, and five minutes before now."""
    ports = []

    def host(how=lambda ago: (0, 3, 10, 0.0, 9000 - ago, (0, 0, 0), 0, 9000 - ago), **scene):
        shows = Host([Scene(**scene)])
        port = CheckPort(shows, "127.0.0.1:0")
        port._app.page._history.looks.extend(past(time.monotonic(), how))
        port.every = None  # time stands still
        ports.append(port.start())
        return shows, port

    yield host
    for port in ports:
        port.stop()


def rows(count, load):
    return tuple(row(4000 + n, load) for n in range(count))


JAM = Load(40, 10, 10, waited=44.0, service=31.0)

SCENES = {
    "free": {"processes": rows(1, Load(0, 3, 10))},
    "free, 16": {"load": Load(0, 32, 128), "processes": rows(16, Load(0, 2, 8))},
    "busy": {"word": "busy", "load": Load(7, 10, 10, 0.8, 0.5), "processes": rows(1, JAM)},
    "busy, 16": {"word": "busy", "load": Load(7, 128, 128, 0.8), "processes": rows(16, JAM)},
    "stuck": {"word": "busy", "ready": False, "load": JAM, "processes": rows(1, JAM)},
    "draining": {"word": "draining", "ready": False, "processes": rows(2, Load(0, 1, 8))},
    "absent": {"word": "absent", "ready": False, "load": Load(0, 0, None)},
    "stalled": {"word": "busy", "lives": False, "load": JAM, "processes": rows(4, JAM)},
}


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("wide", [NARROW, USUAL, WIDE])
@pytest.mark.parametrize("scene", SCENES)
def test_the_page_fits_and_says_the_state_first(host, opened, tmp_path, scene, wide, dark):
    _, port = host(**SCENES[scene])
    browser = opened(port.address[1], wide=wide, dark=dark)
    browser.eventually("Object.keys(shown).length")
    word = "busy" if scene.startswith("stuck") else scene.partition(",")[0]
    assert browser.text.startswith(word)
    assert browser.run("document.title").startswith(f"{word} \u00b7 ")
    assert browser.run("document.documentElement.scrollWidth") <= wide
    # What overlaps or is cut off: no text beyond the edge of the box it is in, but in tables, which
    # can be scrolled.
    beyond = """[...document.querySelectorAll("h1, h2, p, li, figcaption, .axis")]
        .filter(one => one.scrollWidth > one.clientWidth + 1).map(one => one.outerHTML)"""
    assert browser.run(beyond) == []
    ground = browser.run("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, ground[4:-1].split(","))) < 150) is dark
    picture = tmp_path / "page.png"
    browser.picture(picture)
    assert struct.unpack(">I", picture.read_bytes()[16:20]) == (wide,)


CONTRAST = """
(() => {
  const light = (text) => {
    const [r, g, b] = text.match(/[\\d.]+/g).map(Number)
      .map(one => (one /= 255) <= 0.03928 ? one / 12.92 : ((one + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const ground = light(getComputedStyle(document.body).backgroundColor);
  return Math.min(...[...document.querySelectorAll("main *")].map(one => {
    const ink = light(getComputedStyle(one).color);
    return (Math.max(ink, ground) + 0.05) / (Math.min(ink, ground) + 0.05);
  }));
})()
"""


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("scene", ["free", "busy", "draining", "absent"])
def test_every_word_stands_out_from_the_ground(host, opened, scene, dark):
    """By WCAG 2.1, section 1.4.3: 4.5 to 1."""
    _, port = host(
        lambda ago: (5, 10, 10, 0.2, 9000 - ago, (9000 - 9 * ago, 0, 0), 0, 1), **SCENES[scene]
    )
    browser = opened(port.address[1], dark=dark)
    assert browser.run(CONTRAST) >= 4.5


def test_an_open_page_follows_what_happens(host, opened):
    shows, port = host(**SCENES["free"])
    browser = opened(port.address[1])
    browser.eventually("document.title.startsWith('free') && Object.keys(shown).length")
    browser.run("window.same = document.querySelector('#counts table')")
    shows[0] = Scene(**SCENES["stuck"])
    browser.eventually("document.title.startsWith('busy')")
    assert "40 requests wait for a thread" in browser.text
    # What has not changed is left alone, so that it can be read and copied.
    assert browser.run("window.same.isConnected")


def test_a_page_without_an_answer_says_so_and_goes_on_when_there_is_one(host, opened):
    shows, port = host(**SCENES["free"])
    where = port.address
    browser = opened(where[1])
    browser.eventually("Object.keys(shown).length")
    port.stop()
    browser.eventually("document.body.classList.contains('stale')")
    assert browser.text.startswith("No answer for ")
    assert browser.run("document.title").startswith("no answer")
    shows[0] = Scene(**SCENES["draining"])
    again = CheckPort(shows, "{}:{}".format(*where)).start()
    try:
        browser.eventually("document.title.startsWith('draining')", within=40)
        assert not browser.run("document.body.classList.contains('stale')")
        assert browser.text.startswith("draining")
    finally:
        again.stop()


def test_without_javascript_the_page_is_a_table_that_is_loaded_anew(host, opened):
    shows, port = host(**SCENES["free, 16"])
    browser = opened(port.address[1], script=False)
    assert browser.text.startswith("free")
    assert browser.run("document.querySelectorAll('#processes tbody tr').length") == 16
    assert browser.run("document.querySelectorAll('#charts path.line').length") >= 3
    shows[0] = Scene(**SCENES["busy"])
    browser.eventually("document.body.innerText.startsWith('busy')")
    assert not any("watch" in url for url in browser.asked)


def test_what_somebody_calls_himself_runs_no_script(host, opened):
    evil = "<img src=x onerror=document.title='evil'>"
    _, port = host(processes=(row(7, Load(0, 1, 8), state=evil),))
    browser = opened(port.address[1])
    browser.eventually("Object.keys(shown).length")
    assert evil in browser.text
    assert browser.run("document.querySelectorAll('img').length") == 0
    assert browser.run("document.title").startswith("free \u00b7 ")


def test_the_page_of_a_gunicorn_from_free_to_stuck_to_its_end(gunicorn, opened, tmp_path):
    """Sixteen processes of two threads, and people who wait for an outside service."""
    server = gunicorn("-w", "16", "--threads", "2", max_queue=2, client_timeout=60)
    eventually(lambda: server.ready() == 16, within=60)
    browser = opened(server.check)
    browser.eventually("document.title.startsWith('free') && Object.keys(shown).length")
    assert "Processes: 16" in browser.text
    file = tmp_path / "let-go"
    threads = []

    def all_in():
        """Send more as long as there are threads: the kernel gives some processes more of them."""
        threads.extend(many(20, server.port, path=f"/until{file}", timeout=90)[1])
        return server.load["active"] == 32

    try:
        eventually(all_in, within=60, every=0.5)
        browser.eventually("document.title.startsWith('busy')", within=60)
        browser.eventually("document.body.innerText.includes('requests were refused')")
        browser.eventually(
            "document.body.innerText.includes('Every thread has been in the app for more than')",
            within=60,
        )
        browser.picture(tmp_path / "stuck.png")
    finally:
        server.signal(signal.SIGTERM)
        draining = "document.title.startsWith('draining')"
        browser.eventually(draining)
        file.touch()
    together(threads, within=60)
    browser.eventually("document.body.classList.contains('stale')")
    assert server.ended(60) == 0


# With a real balancer, and with processes that are really stuck


def firsts(browser, where):
    """The first cell of each row of the table there."""
    rows = f"[...document.querySelectorAll('#{where} tbody tr')]"
    return browser.run(f"{rows}.map(row => row.cells[0].innerText)")


def says(browser, text, within=20):
    return browser.eventually(f"document.body.innerText.includes({text!r})", within)


def lacks(browser, text, within=20):
    return browser.eventually(f"!document.body.innerText.includes({text!r})", within)


def states(browser):
    """What is said of each process."""
    rows = "[...document.querySelectorAll('#processes tbody tr')]"
    return browser.run(f"{rows}.map(row => row.cells[1].innerText)")


EVIL = "<img src=x onerror=document.title='evil'>"


@pytest.fixture
def balancers(started, tmp_path):
    """Starts HAProxies before a gunicorn that say these names to its agent."""

    def balancers(server, names):
        known = [Server("web1", f"127.0.0.1:{server.port}", server.agent, server.check)]

        def called(name):
            """Say what no printed configuration says: there names are of letters and digits."""
            quoted = name.replace(" ", "\\ ").replace("'", "\\'")

            def text(bind, stats):
                setting = Setting(8, len(names), "a-name", bind, stats, ("nbthread 1",))
                return configuration(known, setting).replace("a-name", quoted)

            return text

        made = [started(Balancer, tmp_path, n, called(name)) for n, name in enumerate(names)]
        for each in made:
            eventually(each.answers)
        return made

    return balancers


def test_balancers_stand_there_by_their_names_go_and_come_back(
    gunicorn, balancers, started, opened, tmp_path
):
    server = gunicorn("-w", "2", "--threads", "4", max_queue=16)
    server.all_ready(2)
    names = sorted(["lb-east", "lb-west", EVIL, "\\x1b[2Jlb"])
    made = balancers(server, names)
    browser = opened(server.check)
    shown = sorted(["lb-east", "lb-west", EVIL, "?[2Jlb"])
    rows = "document.querySelector('#balancers tbody').innerText"
    often = re.compile(r"\d+ ms ago\s+every \d+ ms")  # they ask five times a second

    def all_ask():
        there = sorted(firsts(browser, "balancers")) == shown
        return there and len(often.findall(browser.run(rows))) == 4

    with Visitors([each.port for each in made], 30, "sleep/0.1", 1.0) as visitors:
        visitors.came(30)
        eventually(all_ask)
        says(browser, "Balancers that ask the agent: 4")
        says(browser, "Each may have up to 2 requests here at once")
        browser.picture(tmp_path / "balancers.png")
        gone = made[names.index("lb-west")]
        gone.signal(signal.SIGKILL)
        says(browser, "Balancers that no longer ask the agent: lb-west (last seen ")
        says(browser, "Each may have up to 3 requests here at once")
        assert "lb-west" not in firsts(browser, "balancers")
    made.append(started(gone.again))
    eventually(made[-1].answers)
    lacks(browser, "no longer ask")
    eventually(all_ask)
    for each in made:
        each.signal(signal.SIGKILL)
    says(browser, "No balancer asks the agent any more: ")
    assert browser.run("document.title").startswith("free \u00b7 ")


def test_a_gunicorn_whose_workers_are_stopped(gunicorn, opened, tmp_path):
    """Its master makes progress, and shows that they do not."""
    server = gunicorn("-w", "2", "--threads", "2", stall_after=1)
    server.all_ready(2)
    first, second = server.workers
    browser = opened(server.check)
    browser.eventually("document.title.startsWith('free')")
    os.kill(first, signal.SIGSTOP)
    try:
        says(browser, f"Process {first} has made no progress for ")
        assert sorted(states(browser)) == ["ready", "stalled"]
        assert ask(server.check, path="/livez").text == "alive"
        os.kill(second, signal.SIGSTOP)
        browser.eventually("document.title.startsWith('stalled')")
        assert ask(server.check, path="/livez").status == 503
        assert states(browser) == ["stalled", "stalled"]
        says(browser, "No process has made any progress for ")
        says(browser, "When last heard of: 0 of 4 in the app")
        says(browser, "live: no (503)")
        browser.picture(tmp_path / "stalled.png")
        opened(server.check, wide=NARROW, dark=True, script=False)
        assert browser.text.startswith("stalled")
        assert browser.run("document.documentElement.scrollWidth") <= NARROW
        browser.picture(tmp_path / "phone.png")
    finally:
        for pid in (first, second):
            os.kill(pid, signal.SIGCONT)
    browser.eventually("document.title.startsWith('free')")
    assert ask(server.check, path="/livez").text == "alive"


def test_a_gunicorn_whose_interpreter_is_kept_by_a_call(gunicorn, opened):
    server = gunicorn("-w", "1", "--threads", "2", stall_after=1)
    server.all_ready(1)
    browser = opened(server.check)
    browser.eventually("document.title.startsWith('free')")
    answers, threads = many(1, server.port, path="/seize/4")
    browser.eventually("document.title.startsWith('stalled')")
    says(browser, "does a call keep the interpreter's lock? A restart may help.")
    assert "outside service" not in browser.text
    assert ask(server.check, path="/livez").text == "stalled"
    together(threads)
    browser.eventually("document.title.startsWith('free')")
    assert answers[0].status == 200


def test_threads_that_sleep_from_the_first_request_on(gunicorn, opened, tmp_path):
    """No request has ever come back, so nobody can say what is usual."""
    server = gunicorn("-w", "1", "--threads", "2", max_queue=1, max_wait=60, client_timeout=90)
    server.all_ready(1)
    browser = opened(server.check)
    file = tmp_path / "let-go"
    answers, threads = many(3, server.port, path=f"/until{file}", timeout=60)
    try:
        server.filled(2, 1)
        assert ask(server.port, path="/more").status == 503
        says(browser, "Every thread has been in the app for more than 5 s: the outside service?")
        says(browser, ", and none served: the queue was full.")
        server.signal(signal.SIGTERM)
        browser.eventually("document.title.startsWith('draining')")
        assert "one that comes now" not in browser.text
    finally:
        file.touch()
    together(threads)
    assert [answer.status for answer in answers] == [200] * 3
    assert server.ended() == 0


def test_a_host_all_of_whose_processes_were_killed(started, opened, tmp_path):
    (tmp_path / "app.py").write_text(APP)
    board = tmp_path / "board"
    agent = started(Agent, board)
    server = started(Serve, tmp_path, f"--board={board}", "--threads=2")
    eventually(lambda: agent.load["capacity"] == 2)
    browser = opened(agent.check)
    browser.eventually("document.title.startsWith('free')")
    server.reap()
    says(browser, "No process is there to serve. Checks will say so, if none comes in a moment.")
    browser.eventually("document.title.startsWith('absent')")
    says(browser, "No process is there to serve: does the app start at all?")
    assert "Nothing is wrong" not in browser.text


def test_a_page_that_many_look_at_keeps_no_check_waiting(host):
    _, port = host(**SCENES["free, 16"])
    answers, threads = many(20, port.address[1], path="/")
    together(threads)
    assert {answer.status for answer in answers} == {200}
    assert ask(port.address[1], path="/readyz").took < 1.0
