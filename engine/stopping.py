"""Signals that end a run: the first asks, the second does not wait."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import click

from saccade.cli import Terminated
from saccade.progress import Reporter

_EXIT_OF_SIGNAL = {signal.SIGINT: 130, signal.SIGTERM: 143}


@contextmanager
def stopped_by_signals(reporter: Reporter) -> Iterator[threading.Event]:
    """An event that SIGINT and SIGTERM set; a second signal ends the process at once, with nothing torn.

    At the end of the block the signal that came is raised, as `click.Abort` or `Terminated`. A signal that is ignored
    stays ignored. For the main thread.
    """
    stop = threading.Event()
    came: list[int] = []

    def handle(number: int, _: FrameType | None) -> None:
        if came:
            os._exit(_EXIT_OF_SIGNAL[signal.Signals(number)])
        came.append(number)
        stop.set()
        reporter.say("stopping: what is begun is finished and kept; once more to stop at once")

    before = {number: signal.getsignal(number) for number in _EXIT_OF_SIGNAL}
    try:
        for number, handler in before.items():
            if handler != signal.SIG_IGN:
                signal.signal(number, handle)
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if came:
        raise click.Abort if came[0] == signal.SIGINT else Terminated
