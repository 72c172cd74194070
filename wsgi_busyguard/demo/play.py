"""From the curtain to the picture: what one run of the command does, and how it ends."""

from __future__ import annotations

import asyncio
import json
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from rich.console import Console

from . import balancers, computing, picture, report, story
from .acts import ACTS
from .narration import LiveNarration, Narration
from .stage import Broken

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Coroutine

    from .figures import Record, Timeline

Told = TypeVar("Told")

# Ctrl-C, a polite kill, a closed terminal.
STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def play(haproxy: str, arguments: argparse.Namespace) -> int:
    """Tell the story, then show the table and the picture; return the exit status."""
    console = Console()
    began = time.monotonic()
    timeline = story.QUICK if arguments.quick else story.FULL
    version = balancers.version(haproxy)
    console.print(_introduction(version), highlight=False, soft_wrap=not console.is_terminal)
    records = _on_a_stage(
        console, arguments.keep, lambda directory: _tell(haproxy, timeline, directory, console)
    )
    if isinstance(records, int):
        return records
    picture.draw(ACTS, records, arguments.picture)
    _conclude(console, records, arguments.picture)
    if arguments.json is not None:
        about = {
            "haproxy": version,
            "quick": arguments.quick,
            "seconds": round(time.monotonic() - began, 1),
            "picture": str(arguments.picture.absolute()),
            **story.figures(),
        }
        told = report.as_json(ACTS, records, **about)
        arguments.json.write_text(json.dumps(told) + "\n")
    return 0


def play_computing(arguments: argparse.Namespace) -> int:
    """Show a site that computes, without the guard and with it; return the exit status."""
    console = Console()
    timeline = computing.QUICK if arguments.quick else computing.FULL
    console.print(computing.INTRODUCTION, highlight=False, soft_wrap=not console.is_terminal)
    outcomes = _on_a_stage(
        console,
        arguments.keep,
        lambda directory: _unless_stopped(computing.tell(timeline, directory, console)),
    )
    if isinstance(outcomes, int):
        return outcomes
    console.print(computing.table(outcomes))
    if arguments.json is not None:
        arguments.json.write_text(json.dumps([one._asdict() for one in outcomes]) + "\n")
    return 0


def _on_a_stage(
    console: Console, keep: bool, tell: Callable[[Path], Coroutine[Any, Any, Told]]
) -> Told | int:
    """Return what ``tell`` does with a directory for it, or the exit status if it cannot."""
    directory = Path(tempfile.mkdtemp(prefix="busyguard-demo-"))
    try:
        return asyncio.run(tell(directory))
    except _Stopped as stopped:
        console.print("stopped; everything that was started has been ended")
        return 128 + stopped.signal
    except Broken as broken:
        print(f"the demo cannot go on: {broken}", file=sys.stderr)
        return 1
    finally:
        if keep:
            console.print(f"configurations and logs: {directory}", highlight=False, soft_wrap=True)
        else:
            shutil.rmtree(directory, ignore_errors=True)


class _Stopped(Exception):
    """Somebody wants us to end."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.signal = number


async def _tell(
    haproxy: str, timeline: Timeline, directory: Path, console: Console
) -> list[Record]:
    kind = LiveNarration if console.is_terminal else Narration
    with kind(console, timeline, story.scenes()) as narration:
        return await _unless_stopped(story.tell(haproxy, timeline, directory, narration))


async def _unless_stopped(story: Coroutine[Any, Any, Told]) -> Told:
    """Tell the story unless a signal comes; either way nothing is left running."""
    loop = asyncio.get_running_loop()
    came: list[int] = []
    telling = asyncio.ensure_future(story)

    def stop(number: int) -> None:
        if not came:  # the second comes while we are at it, which takes no time
            telling.cancel()
        came.append(number)

    for number in STOPPING:
        loop.add_signal_handler(number, stop, number)
    try:
        return await telling
    except asyncio.CancelledError:
        raise _Stopped(came[0]) from None


def _introduction(version: str) -> str:
    return (
        f"Four HAProxies ({version}) in front of {story.SERVERS} Twisted processes with"
        f" {story.THREADS} threads each, which serve a Django site. Its home page asks an outside"
        f" service that takes {story.OUTSIDE} s. {story.RATE:.0f} visits a second are"
        f" {story.LOAD:.0%} of what it can do. A visitor waits {story.PATIENCE:.0f} s and presses"
        f" reload once.\n"
    )


def _conclude(console: Console, records: list[Record], drawn: Path) -> None:
    console.print()
    console.print(report.table(ACTS, records))
    console.print(
        report.small_print(story.PATIENCE, story.possible_in_blip()), style="dim", highlight=False
    )
    console.print()
    for verdict in report.verdicts(ACTS, records):
        console.print(verdict, highlight=False)
    console.print(f"\nThe picture: {drawn.absolute()}", highlight=False, soft_wrap=True)
