"""One opened configuration under load: images in a row, files, and requests that arrive at random.

Warm-up is left out everywhere. Rates are of pixels in memory of the host unless a level says otherwise.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import cycle
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from benchmarks.benchmark_results import Latency, Load, Server, latency_of
from benchmarks.machine import Energy
from benchmarks.pictures import Pictures, forget
from benchmarks.server import Served, ServerOptions, Time, arrivals, highest_rate, serve
from benchmarks.stopwatch import Clock, Stopwatch
from benchmarks.windows import Spread, rate_of, spread_of
from engine.backends.base import Backend
from engine.captioner import Captioner, CaptionOptions
from engine.pipeline import Stages
from saccade.bundle import Bundle
from saccade.errors import OutputError
from saccade.hypotheses import Hypothesis
from saccade.search import SearchOptions, search

Pixels = NDArray[np.uint8]

_WARM_UP = 3
_TRIAL_REQUESTS = 100
"""A trial of a rate has at least so many, or its 99th percentile would say nothing."""
_OVERLOAD = 1.5


@dataclass(slots=True)
class Tally:
    """What captions were found, how long each batch took, and the energy of each window where the machine tells."""

    captions: int = 0
    words: int = 0
    seconds: list[float] = field(default_factory=list)
    joules: list[float | None] = field(default_factory=list)

    @property
    def mean_words(self) -> float:
        """In a caption."""
        return self.words / max(self.captions, 1)


@dataclass(frozen=True, slots=True)
class Subject:
    """An opened bundle with the options of a search."""

    bundle: Bundle
    backend: Backend
    search: SearchOptions

    def caption(self, pixels: Pixels) -> list[Hypothesis]:
        """The best caption of each image, of which the sentence was made as well."""
        decoding = self.backend.begin(pixels, self.search, with_alphas=False)
        best = [found[0] for found in search(decoding, self.bundle.vocabulary, self.search)]
        for one in best:
            self.bundle.vocabulary.sentence(one.tokens)
        return best

    def warm_up(self, pixels: Pixels) -> None:
        """Caption a batch some times."""
        for _ in range(_WARM_UP):
            self.caption(pixels)


class InARow:
    """Pixels batch after batch: *offline*, and with batches of one image *single stream*."""

    def __init__(
        self, subject: Subject, batches: Sequence[Pixels], watch: Stopwatch, *, clock: Clock = time.perf_counter
    ) -> None:
        """The watch is on the backend, by `timed_transfers`, while windows are measured."""
        self.tally = Tally()
        self._subject, self._watch, self._clock = subject, watch, clock
        self._first, self._following = batches[0], cycle(batches)
        self._uploading = 0.0

    def window(self, seconds: float) -> float:
        """Images per second for so long. Batches before do not count: other work may have had its turn."""
        for _ in range(1 if self.tally.captions else _WARM_UP):
            self._subject.caption(self._first)
        energy, uploading = Energy(), self._watch.spent["upload"]
        rate = rate_of(self._piece, seconds)
        self.tally.joules.append(energy.joules())
        self._uploading += self._watch.spent["upload"] - uploading
        return rate

    def resident(self, rate: Spread) -> Spread | None:
        """The rate as if the pixels were on the device already: the time of their upload does not count.

        None for a backend whose uploads cannot be told from its encoding.
        """
        if not self._watch.calls["upload"]:
            return None
        seconds = sum(self.tally.seconds)
        return spread_of([seconds / (seconds - self._uploading) * one for one in rate.windows])

    def _piece(self) -> tuple[float, float]:
        began = self._clock()
        found = self._subject.caption(next(self._following))
        spent = self._clock() - began
        self.tally.captions += len(found)
        self.tally.words += sum(len(one.tokens) for one in found)
        self.tally.seconds.append(spent)
        return len(found), spent


class FromFiles:
    """Whole runs of the engine over all files, its threads and queues included, without writing.

    bottleneck : the stage that had the least rest in the last run
    """

    def __init__(self, subject: Subject, pictures: Pictures, *, batch: int, cold: bool) -> None:
        """With `cold`, files are dropped from the page cache before each run."""
        self.bottleneck = ""
        self._captioner = Captioner(subject.bundle, subject.backend, CaptionOptions(search=subject.search, batch=batch))
        self._paths = pictures.paths
        self._cold = cold
        self._is_warm = False

    def run(self) -> tuple[float, float]:
        """Caption all files once; returns how many, and the seconds."""
        if self._cold:
            forget(self._paths)
        stages, began = Stages(), time.perf_counter()
        done = sum(1 for _ in self._captioner.caption(self._paths, stages=stages))
        spent = time.perf_counter() - began
        self.bottleneck = stages.bottleneck
        return done, spent

    def window(self, seconds: float) -> float:
        """Images per second for so long. A run before the first one does not count."""
        if not self._is_warm:
            self.run()
            self._is_warm = True
        return rate_of(self.run, seconds)


class ServerRun(NamedTuple):
    """What a server held, and the latencies while it did."""

    server: Server
    latency: Latency
    tally: Tally


def measure_server(
    subject: Subject,
    pixels: Pixels,
    options: ServerOptions,
    *,
    rate: float | None,
    share: float,
    trial_s: float,
    hold_s: float,
    when: Time | None = None,
) -> ServerRun:
    """Requests that arrive at random, answered in batches of what waits.

    rate : to hold; None finds the highest that keeps the bound, in trials of `trial_s` seconds, and holds `share` of it
    hold_s : seconds to hold it
    A batch is filled up to a power of two, so that there are few sizes; each was warmed up before.
    Raises OutputError where no rate keeps the bound.
    """
    trials = _Trials(subject, pixels, options, when or Time())
    highest = None
    if rate is None:
        highest = highest_rate(lambda tried: trials.holds(tried, trial_s), below=_OVERLOAD * trials.capacity())
        rate = share * highest
    else:
        trials.capacity()
    if not rate:
        raise OutputError(f"no rate keeps a p99 of {options.p99_ms:g} ms: allow more with --p99-bound-ms")
    served, tally = trials.load(rate, hold_s)
    if not served.latencies_s:
        raise OutputError("the server answered no request: look at the backend with `saccade doctor`")
    *before, held = trials.loads
    server = Server(
        p99_bound_ms=options.p99_ms,
        wait_ms=options.wait_ms,
        highest_rate=highest,
        trials=tuple(before),
        held=held,
        mean_batch=float(np.mean(served.batches)),
    )
    return ServerRun(server, latency_of(served.latencies_s), tally)


class _Trials:
    """Loads that a server was given, one after the other."""

    def __init__(self, subject: Subject, pixels: Pixels, options: ServerOptions, when: Time) -> None:
        self._subject, self._pixels, self._options, self._when = subject, pixels, options, when
        self.loads: list[Load] = []

    def capacity(self) -> float:
        """Requests per second in full batches, after every size of batch was warmed up."""
        batch = self._options.batch
        for size in _sizes(batch):
            self._subject.warm_up(self._taken(range(size)))
        began = self._when.clock()
        for _ in range(_WARM_UP):
            self._subject.caption(self._taken(range(batch)))
        return _WARM_UP * batch / (self._when.clock() - began)

    def holds(self, rate: float, seconds: float) -> bool:
        """Whether no request is lost, and the bound is kept."""
        self.load(rate, seconds, least=_TRIAL_REQUESTS)
        return self.loads[-1].lost == 0 and self.loads[-1].p99_ms <= self._options.p99_ms

    def load(self, rate: float, seconds: float, *, least: int = 1) -> tuple[Served, Tally]:
        """Give it so many requests per second, and at least so many."""
        tally = Tally()
        due = arrivals(rate, seconds=seconds, least=least, seed=self._options.seed + len(self.loads))
        began = self._when.clock()
        served = serve(due, lambda requests: self._answer(requests, tally), self._options, self._when)
        self.loads.append(_load(rate, self._when.clock() - began, served))
        return served, tally

    def _answer(self, requests: Sequence[int], tally: Tally) -> Sequence[Hypothesis]:
        size = next(size for size in _sizes(self._options.batch) if size >= len(requests))
        filled = [*requests, *[requests[-1]] * (size - len(requests))]
        answers = self._subject.caption(self._taken(filled))[: len(requests)]
        tally.captions += len(answers)
        tally.words += sum(len(one.tokens) for one in answers)
        return answers

    def _taken(self, numbers: Sequence[int]) -> Pixels:
        return self._pixels[[number % len(self._pixels) for number in numbers]]


def _sizes(batch: int) -> list[int]:
    """Powers of two below the batch, and the batch."""
    return [*(2**power for power in range((batch - 1).bit_length())), batch]


def _load(rate: float, seconds: float, served: Served) -> Load:
    latencies = served.latencies_s
    return Load(
        rate=rate,
        seconds=seconds,
        requests=len(latencies) + served.lost,
        lost=served.lost,
        p99_ms=latency_of(latencies).percentile(99) if latencies else 0.0,
    )
