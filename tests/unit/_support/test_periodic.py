"""What is done again and again: by one thread, until it is stopped or nobody has its owner."""

from __future__ import annotations

import gc
import os
import threading
import weakref

import pytest

from wsgi_busyguard._support import launcher
from wsgi_busyguard._support.launcher import relaunch
from wsgi_busyguard._support.periodic import Periodic


class Owner:
    def __init__(self, pause=0.001, **options):
        self.calls, self.ended, self.raises = 0, 0, False
        self.periodic = Periodic(self.work, pause, "owner", at_end=self.end, **options)

    def work(self):
        self.calls += 1
        if self.raises:
            raise OSError("the work")

    def end(self):
        self.ended += 1


@pytest.fixture
def own():
    owners = []

    def own(**options):
        owners.append(Owner(**options))
        return owners[-1]

    yield own
    for owner in owners:
        owner.periodic.stop(wait=True)


def threads(name="owner"):
    return [thread for thread in threading.enumerate() if thread.name == name]


def test_it_works_until_it_is_stopped_and_can_begin_again(own, until):
    owner = own()
    for times in (1, 2):
        owner.periodic.start()
        before = owner.calls
        until(lambda before=before: owner.calls > before + 2)
        owner.periodic.stop(wait=True)
        assert (owner.periodic.running, owner.ended, threads()) == (False, times, [])


def test_it_is_one_thread_however_many_start_it_at_once(own, hurry, start, until):
    owner = own(pause=60.0)
    for thread in [start(owner.periodic.start) for _ in range(8)]:
        thread.join()
    assert len(threads()) == 1


def test_it_outlives_what_the_work_raises_and_says_so_once_a_streak(own, until, caplog):
    owner = own(failing="could not do it")
    owner.raises = True
    owner.periodic.start()
    until(lambda: owner.calls > 5)
    owner.raises = False
    before = owner.calls
    until(lambda: owner.calls > before + 1)
    owner.raises = True
    before = owner.calls
    until(lambda: owner.calls > before + 2)
    owner.periodic.stop(wait=True)
    assert [record.message for record in caplog.records] == ["could not do it"] * 2


def test_the_first_call_is_at_once_or_after_the_first_pause(own, until):
    now, later = own(pause=60.0, at_once=True), own(pause=60.0)
    now.periodic.start()
    later.periodic.start()
    until(lambda: now.calls == 1)
    assert later.calls == 0
    later.periodic.wake()
    until(lambda: later.calls == 1)
    now.periodic.wake()
    until(lambda: now.calls == 2)


def test_the_work_may_set_the_pause_and_stop_itself(until):
    def work():
        calls.append(None)
        periodic.pause = 0.001
        if len(calls) == 3:
            periodic.stop(wait=True)

    calls = []
    periodic = Periodic(work, 60.0, "itself", at_once=True)
    periodic.start()
    until(lambda: not threads("itself"))
    assert len(calls) == 3


def test_the_thread_ends_when_nobody_has_its_owner(until):
    owner = Owner()
    owner.periodic.start()
    begun = weakref.ref(owner)
    until(lambda: begun().calls)
    del owner
    until(lambda: gc.collect() is not None and not threads())


def test_what_is_stopped_before_there_was_a_thread_does_not_begin(own, monkeypatch):
    def none_to_be_had(*_, **__):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(launcher, "RETRY_SECONDS", 0.0)
    owner, other = own(), own()
    with monkeypatch.context() as scarce:
        scarce.setattr(threading.Thread, "start", none_to_be_had)
        owner.periodic.start()
        other.periodic.start()
        assert (owner.periodic.running, owner.periodic.wanted) == (False, True)
        owner.periodic.stop()
    monkeypatch.setattr(launcher, "_due_at", 0.0)
    relaunch()
    assert (owner.periodic.running, other.periodic.running) == (False, True)


@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")
@pytest.mark.parametrize("in_children", [True, False])
def test_in_a_child_it_goes_on_if_it_is_to(own, until, in_children):
    owner = own(in_children=in_children)
    owner.periodic.start()
    until(lambda: owner.calls)
    pid = os.fork()
    if pid == 0:
        code = 2
        try:
            owner.calls = 0
            if in_children:
                until(lambda: owner.calls > 2)
            code = owner.periodic.running is not in_children
        finally:
            os._exit(code)
    assert os.waitpid(pid, 0)[1] == 0
    assert owner.periodic.running
