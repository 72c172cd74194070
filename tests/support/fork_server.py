"""Forks for each program of the tests, from a Python that has imported what they all import.

``fork_server.py SOCKET MODULE...``. A Twisted site takes most of a second of CPU until it serves,
nearly all of it for modules that are not ours, and the tests start hundreds. Only such modules are
imported here: a program imports ours as ever, after the fork.

A program comes over the socket as JSON: ``argv``, ``env``, ``cwd``; and with it three descriptors:
its standard output, its standard error, and where its process id is written, and later its exit
code. When the socket ends, so does everything here.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import os
import runpy
import signal
import socket
import sys
import types

PR_SET_PDEATHSIG = 1


def die_with_parent():
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def is_program(control):
    """Fork for each program that comes; return whether this is a program's process, and which.

    Each has a parent of its own, which waits for its end and tells it.
    """
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for those parents
    while True:
        message, descriptors, *_ = socket.recv_fds(control, 1 << 20, 3)
        if not message:
            return None
        if os.fork() == 0:
            break
        for descriptor in descriptors:
            os.close(descriptor)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    die_with_parent()
    output, errors, written = descriptors
    pid = os.fork()
    if pid == 0:
        os.setsid()
        die_with_parent()
        os.write(written, b"%d\n" % os.getpid())
        os.dup2(output, 1)
        os.dup2(errors, 2)
        os.closerange(3, 1 << 16)
        return json.loads(message)
    control.close()
    os.close(output)
    os.close(errors)
    _, status = os.waitpid(pid, 0)
    os.write(written, b"%d\n" % os.waitstatus_to_exitcode(status))
    os._exit(0)


def run(argv, env, cwd):
    """Run a script, the code after ``-c`` or the module after ``-m``, as ``python`` would."""
    os.environ.clear()
    os.environ.update(env)
    os.chdir(cwd)
    if argv[0] == "-m":
        sys.argv[:], sys.path[0] = argv[1:], os.getcwd()
        runpy.run_module(argv[1], run_name="__main__", alter_sys=True)
        return
    main = sys.modules["__main__"] = types.ModuleType("__main__")
    if argv[0] == "-c":
        name, code, folder = "<string>", argv.pop(1), ""
    else:
        name = main.__file__ = argv[0]
        folder = os.path.dirname(name)
        with open(name) as file:
            code = file.read()
    sys.argv[:], sys.path[0] = argv, folder
    exec(compile(code, name, "exec", dont_inherit=True), main.__dict__)


def main():
    with socket.socket(fileno=int(sys.argv[1])) as control:
        for name in sys.argv[2:]:
            importlib.import_module(name)
        program = is_program(control)
        if program is not None:
            control.detach()  # it is closed already
    if program is not None:
        run(**program)


main()
