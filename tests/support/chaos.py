"""What the tests of chaos share: who asks all the while, what is wrong to say, and scarcity."""

from __future__ import annotations

import contextlib
import os
import random
import resource
import signal
import threading
import time
from bisect import bisect_right
from operator import attrgetter
from pathlib import Path
from typing import NamedTuple

from support.client import PATIENCE, Line, eventually, request

# Seconds within which a visitor is served well, and after which nobody may say that all is well.
WELL, DAMPED = 1.0, 2.0

# Seconds for which a process is stopped or has nothing left: so long a request that it has waits.
STOPPED = 0.5

# For how many seconds a check may say what is not so.
WRONG_AT_MOST = 1.0

# MB that a process may have more than at first, as its caches fill.
MEMORY = 10

ENDED = attrgetter("ended")


def dice(pytestconfig):
    """Return dice, which are always the same unless the tests are told to go on for longer."""
    seed = pytestconfig.getoption("--seed")
    if not seed:
        longer = pytestconfig.getoption("--seconds")
        seed = random.SystemRandom().randrange(1, 1 << 32) if longer else 1
    print(f"--seed {seed}")
    return random.Random(seed)


class Asked(NamedTuple):
    """When it was asked, when the answer was there, what it was: -1 for none.

    Of a visitor also the port it asked from, and when its request was sent.
    """

    began: float
    ended: float
    status: int
    text: str
    port: int = 0
    spoke: float = 0.0


class Asking:
    """So many who ask again and again, each one after the other.

    :ivar answers: a list for each of them.
    """

    def __init__(self, count, pause, ask):
        self.answers = [[] for _ in range(count)]
        self._pause, self._ask = pause, ask
        self._end = threading.Event()
        self._threads = [
            threading.Thread(target=self._go_on, args=(answers,), daemon=True)
            for answers in self.answers
        ]

    def _go_on(self, answers):
        while not self._end.wait(self._pause):
            answers.append(self._asked())

    def _asked(self):
        began = time.monotonic()
        try:
            status, text = told_by(self._ask())
        except (OSError, ValueError) as error:  # reset, or cut off in the middle
            status, text = -1, repr(error)
        return Asked(began, time.monotonic(), status, text)

    @property
    def all(self):
        return [asked for answers in self.answers for asked in answers]

    def came(self, each=10):
        """Wait until each has been answered so often again."""
        before = [len(answers) for answers in self.answers]
        wanted = [count + each for count in before]
        eventually(lambda: [len(answers) for answers in self.answers] >= wanted)

    def __enter__(self):
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self._end.set()
        for thread in self._threads:
            thread.join(2 * PATIENCE)
        assert not any(thread.is_alive() for thread in self._threads), "somebody hangs"
        hung = [asked for asked in self.all if asked.ended - asked.began >= PATIENCE]
        assert hung == [], "somebody got no answer"


def told_by(answer):
    """Return the status and the text of an answer: none is one that says nothing."""
    return answer.status or -1, answer.body.decode(errors="replace")


class Visitors(Asking):
    """So many who ask a site, or a balancer, for a page, and know who of them asked when.

    :ivar site: the port of the site.
    """

    def __init__(self, count, site):
        super().__init__(count, 0.01, None)
        self.site = site

    def _asked(self):
        began = spoke = time.monotonic()
        port = 0
        try:
            with Line(self.site) as line:
                port = line.socket.getsockname()[1]
                line.send(request(path="/sleep/0.02"))
                spoke = time.monotonic()
                status, text = told_by(line.answer())
        except (OSError, ValueError) as error:
            status, text = -1, repr(error)
        return Asked(began, time.monotonic(), status, text, port, spoke)


def is_wrong(said, visitors):
    """Whether a check was told what is not so, by how visitors fared at that moment.

    That the server is to have no requests, though all were served well within the last second; or
    that it is, though nobody has been served for longer than ``damped`` bears, and a second.
    """
    now, recent, waiting = said.ended, [], []
    for answers in visitors:
        after = bisect_right(answers, now, key=ENDED)
        recent += answers[bisect_right(answers, now - WELL, key=ENDED) : after]
        under_way = after < len(answers) and answers[after].began < now
        waiting.append(now - answers[after].began if under_way else 0.0)
    if said.status == 200:
        return min(waiting) > DAMPED + WELL
    well = all(a.status == 200 and a.ended - a.began <= WELL for a in recent)
    return bool(recent) and well and max(waiting) <= WELL


def longest_wrong(checks, visitors):
    """Return for how long a check was told what is not so, and what, where it was longest."""
    longest, stretch = [], []
    for said in checks:
        stretch = [*stretch, said] if is_wrong(said, visitors) else []
        if stretch and _lasted(stretch) > _lasted(longest):
            longest = stretch
    return _lasted(longest), longest


def _lasted(stretch):
    return stretch[-1].ended - stretch[0].ended if stretch else 0.0


def lost(visitors):
    """Return what visitors lost."""
    return [asked for asked in visitors.all if asked.status != 200]


def outside(asked, times):
    """Return what was not under way at any of these times, each from when to when."""
    return [
        one
        for one in asked
        if not any(one.began <= after and one.ended >= before for *_, before, after in times)
    ]


def told(asking):
    """Return the answers, without those that a process had not given when it ended."""
    return [asked for asked in asking.all if asked.status >= 0]


class Sent(NamedTuple):
    """Which process was sent a signal, from when to when."""

    pid: int
    before: float
    after: float


def sent(pid, number):
    """Send a signal, and return to whom and when that was."""
    before = time.monotonic()
    os.kill(pid, number)
    return Sent(pid, before, time.monotonic())


def stopped(pid, seconds=STOPPED):
    """Have a process stand still for a moment."""
    os.kill(pid, signal.SIGSTOP)
    time.sleep(seconds)
    os.kill(pid, signal.SIGCONT)


@contextlib.contextmanager
def limited(pids, what, to):
    """Have these processes live with a limit for a moment."""
    before = {}
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            soft, hard = resource.prlimit(pid, what)
            resource.prlimit(pid, what, (to(pid), hard))
            before[pid] = soft, hard
    try:
        yield
    finally:
        for pid, limits in before.items():
            with contextlib.suppress(ProcessLookupError):
                resource.prlimit(pid, what, limits)


def descriptors(pid):
    return len(os.listdir(f"/proc/{pid}/fd"))


def lowest_free(pid):
    """Return the number that the next descriptor of a process would get."""
    taken = set(map(int, os.listdir(f"/proc/{pid}/fd")))
    return min(set(range(len(taken) + 1)) - taken)


def beats(pid):
    """Return how many files a gunicorn master has by which its workers beat: one for each."""
    files = Path(f"/proc/{pid}/fd").iterdir()
    return sum("wgunicorn-" in os.readlink(file) for file in files)


def held(pid):
    """Return how many descriptors and threads a process has, and its memory in MB.

    However many workers a gunicorn master has.
    """
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    threads = len(os.listdir(f"/proc/{pid}/task"))
    return descriptors(pid) - beats(pid), threads, pages * resource.getpagesize() / 1e6


def flat(pid, before):
    """Wait until a process holds no more than before; memory it may have found a use for."""

    def is_flat():
        now = held(pid)
        return now[0] <= before[0] and now[1] <= before[1] and now[2] <= before[2] + MEMORY

    eventually(is_flat)
