"""Rates over repeated windows of time, with the interval that they are known to.

Several rates take turns, a window each, until all 95 % intervals are narrow or there were enough windows. So what slows
the machine for a while meets all of them, and the windows of one are spread over the whole time. Where a window is
still like the one before, the interval is wider than Student's for windows at random. What slows the machine for longer
than all turns is in no interval: measure both sides of a ratio in one run.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

from saccade.errors import ConfigError

Piece = Callable[[], tuple[float, float]]
"""Does some work and tells how much it was, and the seconds that count."""

Window = Callable[[], float]
"""Measures a rate for a while."""

Progress = Callable[[int], None]

NOISY = 0.05
"""A coefficient of variation above this says that other work disturbs, or that the windows are too short."""

_LIKENESS_FROM = 8
_MOST_LIKENESS = 0.9

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
    (found,) = in_turns([lambda: rate_of(piece, options.seconds)], options)
    return found


def in_turns(windows: Sequence[Window], options: WindowOptions, *, progress: Progress = lambda _: None) -> list[Spread]:
    """The rates of several kinds of work, a window of each in every turn.

    progress : gets how many windows there were
    """
    turns: list[list[float]] = []
    while True:
        rates: list[float] = []
        for window in windows:
            rates.append(window())
            progress(len(turns) * len(windows) + len(rates))
        turns.append(rates)
        if len(turns) >= options.least:
            found = [spread_of(rates) for rates in zip(*turns, strict=True)]
            if len(turns) >= options.most or all(rate.half_width <= options.stable for rate in found):
                return found


def paired_ratio(one: Spread, other: Spread) -> Ratio:
    """How many times the rate of `one` the other is, turn by turn: what slows a turn slows both.

    The geometric mean, with the interval of the logarithms. Both have as many windows, measured in turns.
    """
    found = spread_of([math.log(second / first) for first, second in zip(one.windows, other.windows, strict=True)])
    return Ratio(math.exp(found.mean), math.exp(found.low), math.exp(found.high))


def rate_of(piece: Piece, seconds: float) -> float:
    """Work per second in one window; it ends with the piece that is begun."""
    work = spent = 0.0
    while spent < seconds:
        done, took = piece()
        work, spent = work + done, spent + took
    return work / spent


def spread_of(rates: Sequence[float]) -> Spread:
    """Mean and interval of the rates of two windows or more."""
    mean, deviation, independent = statistics.fmean(rates), statistics.stdev(rates), _independent(rates)
    half = _student(int(independent) - 1) * deviation / math.sqrt(independent)
    variation = deviation / mean if mean else 0.0
    return Spread(mean=mean, low=mean - half, high=mean + half, variation=variation, windows=tuple(rates))


def ratio_of(one: Spread, other: Spread) -> Ratio:
    """How many times the rate of `one` the rate of `other` is.

    Welch's interval of the difference of logarithms. A bootstrap over as few windows as there are would be too narrow.
    """
    counts = [(rate, _independent(rate.windows)) for rate in (one, other)]
    errors = [(rate.variation**2 / independent, int(independent) - 1) for rate, independent in counts]
    total = sum(error for error, _ in errors)
    parts = sum(error**2 / freedom for error, freedom in errors)
    half = _student(max(int(total**2 / parts), 1)) * math.sqrt(total) if parts else 0.0
    value = other.mean / one.mean
    return Ratio(value, value * math.exp(-half), value * math.exp(half))


def _independent(rates: Sequence[float]) -> float:
    """As many independent windows as tell as much: fewer where each is like the one before, at least two.

    n (1 - r) / (1 + r), with the autocorrelation r of neighbours; below 8 windows it cannot be told from chance.
    """
    count, mean = len(rates), statistics.fmean(rates)
    squares = sum((rate - mean) ** 2 for rate in rates)
    if count < _LIKENESS_FROM or not squares:
        return count
    neighbours = sum((one - mean) * (other - mean) for one, other in pairwise(rates))
    likeness = min(max(neighbours / squares + 1 / count, 0.0), _MOST_LIKENESS)  # without the bias of few windows
    return max(count * (1 - likeness) / (1 + likeness), 2.0)


def _student(freedom: int) -> float:
    return _STUDENT[min(freedom, len(_STUDENT)) - 1]
