"""Time that only passes where somebody sleeps: what is measured by it is the same on every machine."""

from __future__ import annotations


class VirtualTime:
    """A clock at 0 seconds."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds
