"""The processes of an act: started, listened to, and ended whatever happens.

Each has a process group of its own, so that a Ctrl-C reaches only the one who tells the story, and
so that everything a child may have started ends with it.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
from typing import TYPE_CHECKING, Any

from . import parent_death

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Coroutine, Sequence
    from pathlib import Path

PATIENCE = 20.0  # seconds that a child may take to say its ports
LAST_WORDS = 5  # lines of a log that are shown when a child fails


class Broken(Exception):
    """The stage cannot go on: a process did not start, or ended in the middle of it."""


class Child:
    """A process of the stage.

    :ivar hello: the first line it said, where it says any.
    """

    def __init__(self, name: str, process: asyncio.subprocess.Process, log: Path) -> None:
        self.name = name
        self.hello: dict[str, Any] = {}
        self._process = process
        self._log = log

    def __repr__(self) -> str:
        return f"<Child {self.name} {self._process.pid}>"

    async def greet(self) -> None:
        """Wait for its first line."""
        try:
            self.hello = await asyncio.wait_for(anext(self.lines()), PATIENCE)
        except (asyncio.TimeoutError, StopAsyncIteration):
            raise Broken(f"{self.name} did not start; {self._last_words()}") from None

    async def lines(self) -> AsyncIterator[dict[str, Any]]:
        """Yield what it says."""
        assert self._process.stdout is not None
        while line := await self._process.stdout.readline():
            yield json.loads(line)

    def tell(self, line: str) -> None:
        """Tell it something."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{line}\n".encode())

    def look(self) -> None:
        """Raise :exc:`Broken` if it has ended."""
        if self._process.returncode is not None:
            status = self._process.returncode
            raise Broken(f"{self.name} ended with status {status}; {self._last_words()}")

    def kill(self) -> None:
        """End it and whatever it started, now; it holds nothing that would have to be saved."""
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)

    async def gone(self) -> None:
        """Wait until it has ended."""
        await self._process.wait()

    def _last_words(self) -> str:
        words = self._log.read_text(errors="replace").strip().splitlines()[-LAST_WORDS:]
        return "its last words: " + " | ".join(words) if words else "it left no word"


class ActProcesses:
    """The processes of an act; use it in ``async with``.

    :param directory: for logs and the like.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._children: list[Child] = []

    async def __aenter__(self) -> ActProcesses:
        return self

    async def __aexit__(self, *_: object) -> None:
        for child in self._children:
            child.kill()  # all of them before the first wait: a second Ctrl-C may come
        for child in self._children:
            await child.gone()

    async def python(self, name: str, module: str, *arguments: object) -> Child:
        """Start a module of the demo and wait until it has said its first line."""
        command = [sys.executable, "-m", f"{__package__}.{module}", *map(str, arguments)]
        child = await self._start(name, command)
        await child.greet()
        return child

    async def program(self, name: str, command: Sequence[str], fds: Sequence[int] = ()) -> Child:
        """Start a program that inherits ``fds``, and dies with us; what it says goes to its log."""
        bound = [sys.executable, "-I", "-S", parent_death.__file__, str(os.getpid()), *command]
        return await self._start(name, bound, fds=fds, speaks=False)

    async def _start(
        self, name: str, command: Sequence[str], *, fds: Sequence[int] = (), speaks: bool = True
    ) -> Child:
        log = self.directory / f"{name}.log"
        with log.open("ab") as words:
            process = await asyncio.create_subprocess_exec(
                *command,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE if speaks else words,
                stderr=words,
                start_new_session=True,
                pass_fds=fds,
            )
            # Nothing is awaited in between: a child that has started is one that will be ended.
            child = Child(name, process, log)
            self._children.append(child)
        return child

    def look(self) -> None:
        """Raise :exc:`Broken` if a process has ended."""
        for child in self._children:
            child.look()


async def beside(main: Coroutine[Any, Any, None], *others: Coroutine[Any, Any, None]) -> None:
    """Run ``main``, and the others for as long as it lasts; whatever one raises ends all."""
    tasks = [asyncio.ensure_future(one) for one in (main, *others)]
    running = set(tasks)
    try:
        while tasks[0] in running:
            ended, running = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
            for task in ended:
                task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
