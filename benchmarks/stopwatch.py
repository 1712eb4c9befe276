"""Where the time of one thread goes, by stage."""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Clock = Callable[[], float]
"""Seconds since some moment."""


class Stopwatch:
    """Seconds of stages. While one stage is inside another, only the time of the inner one runs: they add up."""

    def __init__(self, clock: Clock = time.perf_counter) -> None:
        self.clock = clock
        self.spent: defaultdict[str, float] = defaultdict(float)
        self.calls: Counter[str] = Counter()
        self._running: list[str] = []
        self._since = 0.0

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Count the time of the block."""
        self._switch()
        self._running.append(name)
        self.calls[name] += 1
        try:
            yield
        finally:
            self._switch()
            self._running.pop()

    def reset(self) -> None:
        """Forget what was counted."""
        self.spent.clear()
        self.calls.clear()

    def _switch(self) -> None:
        now = self.clock()
        if self._running:
            self.spent[self._running[-1]] += now - self._since
        self._since = now
