"""Rates over repeated windows of time, with the interval that they are known to.

A rate is measured window after window until its 95 % interval (Student's t over the windows) is narrow, or there were
enough. What slows the machine for longer than all windows of a rate is in none of its intervals: measure again, or
measure both sides of a ratio in one run.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from saccade.errors import ConfigError

Piece = Callable[[], tuple[float, float]]
"""Does some work and tells how much it was, and the seconds that count."""

NOISY = 0.05
"""A coefficient of variation above this says that other work disturbs, or that the windows are too short."""

_STUDENT = (
    *(12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131),
    *(2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042),
)
"""The 97.5 % quantile of Student's t by degrees of freedom, 1 to 30."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WindowOptions:
    """How long a rate is measured.

    seconds : of a window, at least; it ends with the piece of work that is begun
    least, most : windows; the most is reached where the interval stays wide. To stop early makes intervals too narrow:
        after 8 they still hold the truth in 94 of 100 cases, after 3 in 90
    stable : half the width of the interval, as a share of the rate, at which to stop
    """

    seconds: float = 1.0
    least: int = 8
    most: int = 30
    stable: float = 0.02

    def __post_init__(self) -> None:
        problems = []
        if not self.seconds > 0:
            problems.append(f"seconds must be above 0, got {self.seconds}")
        if self.least < 2:
            problems.append(f"least must be at least 2, one window has no interval, got {self.least}")
        if self.most < self.least:
            problems.append(f"most must be at least {self.least}, which is least, got {self.most}")
        if problems:
            raise ConfigError("invalid windows: " + "; ".join(problems))


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """A rate: the mean of its windows.

    low, high : its 95 % interval
    variation : coefficient of variation of the windows
    """

    mean: float
    low: float
    high: float
    variation: float
    windows: tuple[float, ...]

    @property
    def half_width(self) -> float:
        """Half the width of the interval, as a share of the rate."""
        return (self.high - self.low) / 2 / self.mean if self.mean else 0.0


class Ratio(NamedTuple):
    """A ratio of two rates and its 95 % interval."""

    value: float
    low: float
    high: float

    @property
    def differs(self) -> bool:
        """Whether the interval leaves out 1."""
        return not self.low <= 1 <= self.high


def repeat(piece: Piece, options: WindowOptions) -> Spread:
    """The rate of a piece of work per second. Warm it up before."""
    rates: list[float] = []
    while True:
        rates.append(_window(piece, options.seconds))
        if len(rates) >= options.least:
            found = spread_of(rates)
            if found.half_width <= options.stable or len(rates) >= options.most:
                return found


def spread_of(rates: Sequence[float]) -> Spread:
    """Mean and interval of the rates of two windows or more."""
    mean, deviation = statistics.fmean(rates), statistics.stdev(rates)
    half = _student(len(rates) - 1) * deviation / math.sqrt(len(rates))
    variation = deviation / mean if mean else 0.0
    return Spread(mean=mean, low=mean - half, high=mean + half, variation=variation, windows=tuple(rates))


def ratio_of(one: Spread, other: Spread) -> Ratio:
    """How many times the rate of `one` the rate of `other` is.

    Welch's interval of the difference of logarithms. A bootstrap over as few windows as there are would be too narrow.
    """
    errors = [(rate.variation**2 / len(rate.windows), len(rate.windows) - 1) for rate in (one, other)]
    total = sum(error for error, _ in errors)
    parts = sum(error**2 / freedom for error, freedom in errors)
    half = _student(max(int(total**2 / parts), 1)) * math.sqrt(total) if parts else 0.0
    value = other.mean / one.mean
    return Ratio(value, value * math.exp(-half), value * math.exp(half))


def _window(piece: Piece, seconds: float) -> float:
    work = spent = 0.0
    while spent < seconds:
        done, took = piece()
        work, spent = work + done, spent + took
    return work / spent


def _student(freedom: int) -> float:
    return _STUDENT[min(freedom, len(_STUDENT)) - 1]
