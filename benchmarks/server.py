"""A server under load: requests of one image arrive at random times, and wait together for a batch.

The times of arrival are drawn beforehand and wait for nobody: a server that falls behind meets the same requests as a
quick one, and the time that they wait counts from when they came. One thread serves; what a network adds is left out.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from benchmarks.stopwatch import Clock
from saccade.errors import ConfigError

Answer = Callable[[Sequence[int]], Sequence[Any]]
"""Captions requests, by their numbers, and gives an answer to each: what is missing at the end, or None, is lost."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerOptions:
    """What a server does with requests, and what is asked of it.

    batch : requests answered together, at most
    wait_ms : a request waits so long for others before a batch that is not full is begun
    p99_ms : the 99th percentile of latencies has to stay below
    seed : of the times of arrival
    """

    batch: int = 16
    wait_ms: float = 10.0
    p99_ms: float = 500.0
    seed: int = 0

    def __post_init__(self) -> None:
        problems = []
        if self.batch < 1:
            problems.append(f"batch must be at least 1, got {self.batch}")
        if not self.wait_ms >= 0:
            problems.append(f"wait_ms must be 0 or more, got {self.wait_ms}")
        if not self.p99_ms > 0:
            problems.append(f"p99_ms must be above 0, got {self.p99_ms}")
        if problems:
            raise ConfigError("invalid server: " + "; ".join(problems))


class Time(NamedTuple):
    """How time is told, and waited for."""

    clock: Clock = time.perf_counter
    sleep: Callable[[float], None] = time.sleep


class Served(NamedTuple):
    """What became of requests.

    latencies_s : from arrival to answer, of those that were answered, in the order of arrival
    lost : requests without an answer
    batches : how many requests were answered together
    """

    latencies_s: list[float]
    lost: int
    batches: list[int]


def arrivals(rate: float, *, seconds: float, least: int = 1, seed: int = 0) -> list[float]:
    """Times from 0 at which requests arrive, so many per second by a Poisson process.

    They fill the seconds, or longer until there are `least` of them.
    """
    rng = np.random.default_rng(seed)
    count = max(least, int(rate * seconds))
    times: list[float] = np.cumsum(rng.exponential(1 / rate, count)).tolist()
    return times


def serve(due: Sequence[float], answer: Answer, options: ServerOptions, when: Time | None = None) -> Served:
    """Answer requests that arrive at the times `due`, counted from now."""
    when = when or Time()
    answered: dict[int, float] = {}
    batches: list[int] = []
    start, first = when.clock(), 0
    while first < len(due):
        last = _gather(due, first, start, options, when)
        requests = range(first, last)
        answers = answer(requests)
        now = when.clock() - start
        answered |= {
            number: now - due[number] for number, one in zip(requests, answers, strict=False) if one is not None
        }
        batches.append(len(requests))
        first = last
    return Served([answered[number] for number in sorted(answered)], len(due) - len(answered), batches)


def highest_rate(holds: Callable[[float], bool], *, below: float, precision: float = 0.05) -> float:
    """The highest rate that holds, by bisection; 0 where none does.

    below : a rate that is too high
    precision : of the answer, as a share of it
    """
    low, high = 0.0, below
    while high - low > precision * high and high > below / 100:
        middle = (low + high) / 2
        low, high = (middle, high) if holds(middle) else (low, middle)
    return low


def _gather(due: Sequence[float], first: int, start: float, options: ServerOptions, when: Time) -> int:
    """Wait for the batch that begins with a request; returns the number after its last one."""
    full = first + options.batch - 1
    patient_until = due[first] + options.wait_ms / 1000
    begin = min(patient_until, due[full]) if full < len(due) else patient_until
    while (left := start + begin - when.clock()) > 0:
        when.sleep(left)
    now = when.clock() - start
    last = first
    while last < len(due) and last <= full and due[last] <= now:
        last += 1
    return last
