"""What `saccade benchmark` is to measure."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import get_args

from benchmarks.benchmark_results import Level, Scenario
from benchmarks.server import ServerOptions
from benchmarks.windows import WindowOptions
from engine.backends.base import BACKENDS
from saccade.bundle import Precision
from saccade.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepOptions:
    """Backends, precisions, batches, beams and scenarios, every one with every other.

    precisions : None is the best that a backend has here without 8-bit integers
    levels : inputs of *offline* beside pixels of the host
    rate : requests per second that a server is to hold; None is `share` of the highest that keeps the bound
    hold_s : seconds that it holds them; None is as long as the windows of a rate, at least
    threads : for the arithmetic, 0 leaves it to the runtime
    """

    backends: tuple[str, ...]
    precisions: tuple[Precision | None, ...] = (None,)
    batches: tuple[int, ...] = (1, 8, 16)
    beams: tuple[int, ...] = (3,)
    scenarios: tuple[Scenario, ...] = ("single-stream", "offline")
    levels: tuple[Level, ...] = get_args(Level)
    windows: WindowOptions = field(default_factory=WindowOptions)
    server: ServerOptions = field(default_factory=ServerOptions)
    rate: float | None = None
    share: float = 0.8
    hold_s: float | None = None
    threads: int = 0

    def __post_init__(self) -> None:
        problems = [f"unknown backend {name!r}" for name in self.backends if name not in BACKENDS]
        lists = {"batches": self.batches, "beams": self.beams}
        problems += [f"{name} must be 1 or more" for name, values in lists.items() if not values or min(values) < 1]
        if not (self.rate is None or self.rate > 0):
            problems.append(f"rate must be above 0, got {self.rate}")
        if not self.share > 0:
            problems.append(f"share must be above 0, got {self.share}")
        if problems:
            raise ConfigError("invalid benchmark: " + "; ".join(problems))

    @property
    def trial_s(self) -> float:
        """Seconds of one trial of a server's rate."""
        return self.windows.seconds * self.windows.least
