"""The server scenario: every request is answered once, and waits as long as it is told."""

from __future__ import annotations

import math
import time as real_time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from benchmarks.scenarios import Subject, measure_server
from benchmarks.server import Served, ServerOptions, Time, arrivals, highest_rate, serve
from engine.backends.base import open_backend
from saccade.bundle import Bundle
from saccade.errors import ConfigError, OutputError
from saccade.hypotheses import Hypothesis
from saccade.search import SearchOptions
from tests.benchmarks.virtual_time import VirtualTime
from tests.bundles import patchworks

BATCH_S = 0.1


def served(
    due: Sequence[float], options: ServerOptions, *, lost: Callable[[int], bool] = lambda _: False
) -> tuple[Served, list[list[int]]]:
    """What a server does whose every batch takes BATCH_S, and its batches."""
    time = VirtualTime()
    batches: list[list[int]] = []

    def answer(requests: Sequence[int]) -> list[str | None]:
        time.sleep(BATCH_S)
        batches.append(list(requests))
        return [None if lost(number) else "a caption" for number in requests]

    return serve(due, answer, options, Time(time, time.sleep)), batches


def test_a_full_batch_begins_at_once_and_others_when_the_first_has_waited() -> None:
    found, batches = served([1.0, 1.01, 1.02, 5.0], ServerOptions(batch=3, wait_ms=50))
    assert batches == [[0, 1, 2], [3]]
    assert found.latencies_s == pytest.approx([0.12, 0.11, 0.10, 0.15])
    assert (found.lost, found.batches) == (0, [3, 1])


def test_requests_that_come_while_the_server_works_are_answered_together() -> None:
    found, batches = served([0.0, 0.02, 0.04, 0.06, 0.08], ServerOptions(batch=3, wait_ms=0))
    assert batches == [[0], [1, 2, 3], [4]]
    assert found.latencies_s == pytest.approx([0.1, 0.18, 0.16, 0.14, 0.22])


def test_a_server_that_falls_behind_meets_the_same_requests() -> None:
    found, _ = served([0.0] * 100, ServerOptions(batch=10, wait_ms=0))
    assert max(found.latencies_s) == pytest.approx(10 * BATCH_S)
    assert (len(found.latencies_s), found.lost) == (100, 0)


def test_every_request_is_answered_once_and_in_its_turn() -> None:
    due = arrivals(40, seconds=30, seed=3)
    found, batches = served(due, ServerOptions(batch=8))
    assert [number for batch in batches for number in batch] == list(range(len(due)))
    assert max(map(len, batches)) <= 8
    assert len(found.latencies_s) == len(due)


def test_a_request_without_an_answer_is_lost() -> None:
    found, _ = served([0.0] * 7, ServerOptions(batch=4), lost=lambda number: number == 5)
    assert (found.lost, len(found.latencies_s)) == (1, 6)


def test_a_batch_with_too_few_answers_loses_requests() -> None:
    time = VirtualTime()
    found = serve([0.0] * 8, lambda _: ["a caption"] * 3, ServerOptions(batch=4), Time(time, time.sleep))
    assert found.lost == 2


def test_arrivals_are_a_poisson_process_of_the_rate_and_the_same_for_a_seed() -> None:
    times = np.array(arrivals(50, seconds=400, seed=1))
    gaps = np.diff(times)
    assert len(times) == 20_000
    assert gaps.mean() == pytest.approx(1 / 50, rel=0.03)
    assert gaps.std() == pytest.approx(gaps.mean(), rel=0.03)  # as an exponential distribution has it
    assert arrivals(50, seconds=400, seed=1) == times.tolist()
    assert arrivals(50, seconds=400, seed=2) != times.tolist()
    assert len(arrivals(0.1, seconds=1, least=100)) == 100


def test_bisection_finds_the_highest_rate_that_holds() -> None:
    asked: list[float] = []

    def holds(rate: float) -> bool:
        asked.append(rate)
        return rate <= 37

    assert 37 * 0.95 <= highest_rate(holds, below=100) <= 37
    assert len(asked) <= math.ceil(math.log2(100 / (0.05 * 37))) + 1
    assert highest_rate(lambda _: False, below=100) == 0


def test_nonsense_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"batch must be at least 1.*wait_ms must be 0 or more.*p99_ms must be above"):
        ServerOptions(batch=0, wait_ms=-1, p99_ms=0)


class SlowCaptions:
    """Like a subject of which a batch takes 50 ms and 5 ms an image, by a virtual clock."""

    def __init__(self, time: VirtualTime) -> None:
        self._time = time
        self.sizes: set[int] = set()
        self.warmed: list[int] = []

    def caption(self, pixels: NDArray[np.uint8]) -> list[Hypothesis]:
        self._time.sleep(0.05 + 0.005 * len(pixels))
        self.sizes.add(len(pixels))
        return [Hypothesis(tokens=(4, 5), log_prob=-1, score=-1, truncated=False)] * len(pixels)

    def warm_up(self, pixels: NDArray[np.uint8]) -> None:
        self.warmed.append(len(pixels))


@pytest.fixture
def subject(tiny_bundle: Path) -> Iterator[Subject]:
    bundle = Bundle.open(tiny_bundle)
    with open_backend("ort", bundle, threads=1) as backend:
        yield Subject(bundle, backend, SearchOptions(beam=1, max_length=3))


def test_at_80_percent_of_the_highest_rate_no_request_is_lost_and_the_bound_is_kept() -> None:
    time = VirtualTime()
    slow = SlowCaptions(time)
    found = measure_server(
        slow,  # type: ignore[arg-type]
        patchworks(5, seed=0),
        ServerOptions(batch=6, p99_ms=200),
        rate=None,
        share=0.8,
        trial_s=5,
        hold_s=300,
        when=Time(time, time.sleep),
    )
    server = found.server
    # Batches of 6 take 80 ms: no more than 75 requests a second.
    assert server.highest_rate is not None
    assert 30 < server.highest_rate < 75
    assert server.held.rate == pytest.approx(0.8 * server.highest_rate)
    assert server.held.lost == 0
    assert server.held.p99_ms == found.latency.percentile(99) < 200
    assert server.held.seconds == pytest.approx(300, rel=0.05)
    assert server.held.requests == found.latency.requests == found.tally.captions
    assert {trial.p99_ms <= 200 for trial in server.trials} == {True, False}
    assert slow.warmed == [1, 2, 4, 6]
    assert slow.sizes == {1, 2, 4, 6}


def test_a_bound_that_nothing_keeps_is_told() -> None:
    time = VirtualTime()
    with pytest.raises(OutputError, match="no rate keeps a p99 of 1 ms"):
        measure_server(
            SlowCaptions(time),  # type: ignore[arg-type]
            patchworks(5, seed=0),
            ServerOptions(batch=2, p99_ms=1),
            rate=None,
            share=0.8,
            trial_s=1,
            hold_s=1,
            when=Time(time, time.sleep),
        )


def test_a_given_rate_is_held_without_a_search_in_real_time(subject: Subject) -> None:
    began = real_time.perf_counter()
    found = measure_server(
        subject,
        patchworks(5, seed=0),
        ServerOptions(batch=4),
        rate=20,
        share=0.8,
        trial_s=9,
        hold_s=0.5,
    )
    assert (found.server.highest_rate, found.server.trials, found.server.held.rate) == (None, (), 20)
    assert (found.server.held.requests, found.server.held.lost) == (10, 0)
    assert 0 < found.latency.percentile(50) <= found.latency.percentile(99) == found.server.held.p99_ms
    assert found.server.held.seconds <= real_time.perf_counter() - began
