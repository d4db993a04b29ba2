"""What the run shows on the terminal: its phases, bars for what takes long, a line for each thing that happened."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn
from rich.table import Table
from rich.text import Text

from rtrec_ray.clock import monotonic_s
from rtrec_ray.demo.record import Check, Phase
from rtrec_ray.demo.words import minutes


class Screen:
    """Writes to `console`; lines may come from any thread. Bars are shown on a terminal only.

    `shortest_s`: a phase that took less is not kept: waiting for what was already there is no part of the run.
    """

    def __init__(self, console: Console, *, began_s: float, shortest_s: float = 0.5) -> None:
        self._console = console
        self._began_s = began_s
        self._shortest_s = shortest_s
        self._phases: list[Phase] = []
        self._bars = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(bar_width=32),
            TextColumn("{task.fields[state]}"),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )

    def __enter__(self) -> Screen:
        self._bars.start()
        return self

    def __exit__(self, *_ended: object) -> None:
        self._bars.stop()

    @property
    def phases(self) -> tuple[Phase, ...]:
        """The phases that are over."""
        return tuple(self._phases)

    def say(self, text: str, *, style: str = "") -> None:
        """Write a line with the time since the run began."""
        line = Text.assemble((f"{minutes(self._now_s()):>5}  ", "dim"), (text, style))
        self._console.print(line, soft_wrap=True)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """A phase of the run, for as long as the block takes."""
        start_s, bar = self._now_s(), self._bars.add_task(name, total=None, state="")
        self.say(name, style="bold")
        try:
            yield
        finally:
            self._bars.remove_task(bar)
        phase = Phase(name=name, start_s=start_s, end_s=self._now_s())
        if phase.end_s - phase.start_s >= self._shortest_s:
            self._phases.append(phase)

    def add_bar(self, name: str, *, total: float) -> TaskID:
        """A bar until the end of the run."""
        return self._bars.add_task(name, total=total, state="")

    def move(self, bar: TaskID, *, done: float, state: str) -> None:
        """Move a bar to `done`, with a word on it."""
        self._bars.update(bar, completed=done, state=state)

    def _now_s(self) -> float:
        return monotonic_s() - self._began_s


def print_outcome(console: Console, checks: Sequence[Check], *, lines: Sequence[str], page: str) -> None:
    """The checks as a table, the figures in lines, and where the report is."""
    table = Table(box=None, pad_edge=False, show_header=False)
    for check in checks:
        mark = Text("✓", style="bold green") if check.ok else Text("✗", style="bold red")
        table.add_row(mark, check.stage, Text(check.figure, style="" if check.ok else "red"))
    console.print(table)
    for line in lines:
        console.print(line, soft_wrap=True)
    console.print(f"report: {page}", soft_wrap=True, highlight=False)
