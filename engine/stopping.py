"""Signals that end a run: the first asks, the second does not wait."""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType
from typing import Any, Self

import click

from saccade.cli import Terminated
from saccade.progress import Reporter

_EXIT_OF_SIGNAL = {signal.SIGINT: 130, signal.SIGTERM: 143}


class Signals:
    """Inside its block the first SIGINT or SIGTERM sets `stop`, and a second one ends the process at once.

    What is written then is not torn. Outside the block signals do what they did; one that is ignored stays ignored. For
    the main thread.
    """

    def __init__(self, reporter: Reporter) -> None:
        self.stop = threading.Event()
        self._reporter = reporter
        self._came: int | None = None
        self._before: dict[signal.Signals, Any] = {}

    def raise_what_came(self) -> None:
        """Raise `click.Abort` or `Terminated` where a signal came."""
        if self._came is not None:
            raise click.Abort if self._came == signal.SIGINT else Terminated

    def __enter__(self) -> Self:
        self._before = {number: signal.getsignal(number) for number in _EXIT_OF_SIGNAL}
        for number, handler in self._before.items():
            if handler != signal.SIG_IGN:
                signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, _: FrameType | None) -> None:
        if self._came is not None:
            self._reporter.show_cursor()
            os._exit(_EXIT_OF_SIGNAL[signal.Signals(number)])
        self._came = number
        self.stop.set()
        self._reporter.say("stopping: what is begun is finished and kept; once more to stop at once")
