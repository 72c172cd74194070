"""Who listens: what a process has for its app, and not what it has for checks."""

from __future__ import annotations

import socket
import subprocess
import sys

import pytest
from conftest import ROOT, WARNINGS

from wsgi_busyguard._support.listener import listening

# In a process of its own: another test may have left something that listens.
ALONE = """
import socket
from wsgi_busyguard import Board
from wsgi_busyguard._support import listening_sockets
from wsgi_busyguard._support.listening_sockets import listens
from wsgi_busyguard.board.watcher import Watcher
from wsgi_busyguard.checkport import CheckPort

look = listening_sockets.descriptors
ports = []

def beside_another_thread():
    ports.append(CheckPort(Watcher(Board()), "127.0.0.1:0"))
    return look()

listening_sockets.descriptors = beside_another_thread
print(listens())
listener = socket.create_server(("127.0.0.1", 0))
print(listens())
listener.close()
print(listens(), len(ports))
for port in ports:
    port.listener.close()
"""


def test_a_check_port_that_is_opened_during_the_look_is_no_sign_of_a_server():
    command = [sys.executable, *WARNINGS, "-c", ALONE]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr) == ("False\nTrue\nFalse 3\n", "")


@pytest.mark.parametrize("share", [False, True])
def test_a_listener_is_noted_before_it_listens(share):
    noted = []

    def note(listener):
        noted.append(listener.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))

    with socket.socket(fileno=listening("127.0.0.1:0", share, note).detach()) as listener:
        assert noted == [0]
        assert listener.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN) == 1
