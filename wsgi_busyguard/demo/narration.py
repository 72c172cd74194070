"""Says in words what is happening: a live view in a terminal, plain lines elsewhere."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Group
from rich.live import Live
from rich.progress import BarColumn, Progress, TaskID, TextColumn
from rich.text import Text

if TYPE_CHECKING:
    from rich.console import Console

    from .acts import Act
    from .figures import Record, Timeline

LATELY = 2.0  # seconds that the figures of a moment look back
EVERY = 3.0  # seconds between two plain lines


class Narration:
    """Says it in plain lines.

    :param scenes: the words for ``before``, ``blip``, ``after`` and ``end``.
    """

    def __init__(self, console: Console, timeline: Timeline, scenes: dict[str, str]) -> None:
        self.console = console
        self.timeline = timeline
        self.scenes = scenes
        self._said = 0.0

    def __enter__(self) -> Narration:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def curtain(self, act: Act) -> None:
        """Announce an act."""
        self._said = 0.0
        self._say(f"Act {act.name}: {act.title} ({act.text})")

    def scene(self, name: str) -> None:
        """Say what happens now."""
        self._say(f"  {self.scenes[name]}")

    def moment(self, at: float, record: Record) -> None:
        """Say how it goes at this moment."""
        if at - self._said >= EVERY:
            self._said = at
            self._say(f"    {at:4.1f} s: {figures_of(at, record)}")

    def applause(self, act: Act, record: Record) -> None:
        """Say how an act ended."""
        self._say(f"  {outcome(record)}")

    def _say(self, line: str) -> None:
        # A terminal breaks a line that is too long in the middle of a word; a file keeps it whole.
        whole = not self.console.is_terminal
        self.console.print(line, highlight=False, markup=False, soft_wrap=whole)


class LiveNarration(Narration):
    """Says it in a view that changes."""

    def __init__(self, console: Console, timeline: Timeline, scenes: dict[str, str]) -> None:
        super().__init__(console, timeline, scenes)
        self._bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(30),
            TextColumn("{task.completed:.0f} of {task.total:.0f} s"),
            TextColumn("{task.fields[outcome]}"),
            console=console,
        )
        self._bar = TaskID(0)
        self._text = Text(style="dim")
        self._scene = Text()
        self._moment = Text()
        self._live = Live(
            Group(self._bars, Text(), self._text, self._scene, self._moment),
            console=console,
            refresh_per_second=5,
        )

    def __enter__(self) -> LiveNarration:
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.update(self._bars)
        self._live.stop()

    def curtain(self, act: Act) -> None:
        """Announce an act."""
        self._bar = self._bars.add_task(
            f"[bold]Act {act.name}: {act.title}[/bold]", total=self.timeline.end, outcome=""
        )
        self._text.plain = act.text
        self._scene.plain = "setting the stage"
        self._moment.plain = ""

    def scene(self, name: str) -> None:
        """Say what happens now."""
        self._scene.plain = self.scenes[name]
        self._scene.style = "bold red" if name == "blip" else "green"

    def moment(self, at: float, record: Record) -> None:
        """Say how it goes at this moment."""
        self._bars.update(self._bar, completed=min(at, self.timeline.end))
        self._moment.plain = figures_of(at, record)

    def applause(self, act: Act, record: Record) -> None:
        """Say how an act ended."""
        self._bars.update(self._bar, completed=self.timeline.end, outcome=outcome(record))


def figures_of(at: float, record: Record) -> str:
    """Return the figures of a moment, in words."""
    lately = max(0.0, at - LATELY)
    span = max(at - lately, 0.1)
    came = [v for v in record.visits if v.arrived >= lately]
    pages = [v for v in record.visits if v.took is not None and v.arrived + v.took >= lately]
    queued = {queue.server: queue.queued for queue in record.queues[-10:]}
    words = [
        f"{len(came) / span:.0f} visits and {len(pages) / span:.0f} pages a second",
        f"{sum(queued.values())} wait in the servers",
    ]
    if record.balances:
        last = record.balances[-1]
        words += [f"{last.waiting} in HAProxy", f"{last.up} of {last.of} ways to a server open"]
    words.append(_check(at, record))
    return ", ".join(words)


def outcome(record: Record) -> str:
    """Return how an act ended, in words."""
    seconds = record.recovery()
    if seconds is None:
        return f"not well again in {record.timeline.after:.0f} s"
    return f"well again {seconds:.1f} s after the blip"


def _check(at: float, record: Record) -> str:
    missing = [at - check.asked for check in record.checks if not check.answered and not check.took]
    if missing and max(missing) > 1:
        return f"a health check has waited for {max(missing):.1f} s"
    answered = [check.took for check in record.checks if check.answered]
    return f"a health check takes {answered[-1] * 1000:.0f} ms" if answered else "no check yet"
