from __future__ import annotations

import pytest

from .processes import Process, Site


@pytest.fixture
def started():
    """Starts processes and, whatever happens, reaps them."""
    processes = []

    def start(kind, *arguments, **options):
        process = kind(*arguments, **options)
        processes.append(process)
        return process

    yield start
    for process in processes:
        process.reap()


@pytest.fixture
def site(started):
    """Starts a guarded Twisted site with these options."""
    return lambda **options: started(Site, **options)


@pytest.fixture
def process(started):
    """Starts a process from a command line."""
    return lambda *command, **options: started(Process, command, **options)
