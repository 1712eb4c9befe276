"""Narration to stderr: a live bar on a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

PLAIN_INTERVAL_S = 10.0
"""Seconds between two lines where stderr is no terminal."""


class Update(Protocol):
    """Says how many are done so far; further figures are shown beside it."""

    def __call__(self, done: int, /, *, total: int | None = None, **figures: float) -> None:
        """`done` counts from the start of the task; `total` is a total that became known, or changed, since."""
        ...


class Reporter:
    """Shows tasks one after the other."""

    def __init__(self, *, quiet: bool = False, plain: bool = False) -> None:
        """`plain` gives lines on a terminal too: a bar would mix with what is written to stdout meanwhile."""
        self.is_quiet = quiet
        self._console = Console(stderr=True, quiet=quiet, emoji=False)
        self._plain = plain or not self._console.is_terminal

    def say(self, text: str) -> None:
        """One line, between tasks."""
        self._console.print(text, highlight=False, soft_wrap=True, markup=False)

    def show_cursor(self) -> None:
        """Undo what a bar does to a terminal, where the process ends inside its block."""
        self._console.show_cursor()

    @contextmanager
    def task(self, name: str, total: int | None, *, unit: str) -> Iterator[Update]:
        """Show progress towards `total` (None if unknown) with the rate in units per second and the time left."""
        show = self._lines if self._plain else self._bar
        with show(name, total, unit) as update:
            yield update

    @contextmanager
    def _bar(self, name: str, total: int | None, unit: str) -> Iterator[Update]:
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[figures]}"),
            TimeRemainingColumn(elapsed_when_finished=True),
        )
        with Progress(*columns, console=self._console) as progress:
            bar = progress.add_task(name, total=total, figures="")
            began = time.monotonic()

            def update(done: int, /, *, total: int | None = None, **figures: float) -> None:
                progress.update(bar, completed=done, total=total, figures=_figures(done, began, unit, figures))

            yield update

    @contextmanager
    def _lines(self, name: str, total: int | None, unit: str) -> Iterator[Update]:
        began = last = time.monotonic()
        first_total = total

        def update(done: int, /, *, total: int | None = None, **figures: float) -> None:
            nonlocal last
            total = first_total if total is None else total
            now = time.monotonic()
            if now - last < PLAIN_INTERVAL_S and done != total:
                return
            last = now
            left = f", {(total - done) * (now - began) / done:.0f} s left" if total and done else ""
            of = f" of {total}" if total else ""
            self._console.print(
                f"{name}: {done}{of}, {_figures(done, began, unit, figures)}{left}", highlight=False, soft_wrap=True
            )

        yield update


def _figures(done: int, began: float, unit: str, figures: dict[str, float]) -> str:
    rate = done / max(time.monotonic() - began, 1e-9)
    return ", ".join((f"{rate:.1f} {unit}/s", *(_figure(name, value) for name, value in figures.items())))


def _figure(name: str, value: float) -> str:
    return f"{name} {value}" if isinstance(value, int) else f"{name} {value:.3f}"
