"""A row of the table: one opened configuration in one scenario, with all that is told of it."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import cycle, islice
from pathlib import Path

from benchmarks.benchmark_results import Level, Row, Scenario, Server, latency_of
from benchmarks.machine import MemoryUse, forget_peak
from benchmarks.pictures import Pictures, forget
from benchmarks.scenarios import FromFiles, InARow, Subject, measure_server
from benchmarks.stages import StageTimes, Way, measure_stages
from benchmarks.stopwatch import Stopwatch
from benchmarks.sweep_options import SweepOptions
from benchmarks.windows import NOISY, Spread
from engine.results import ResultsWriter

_STAGE_IMAGES = 64
_STAGE_BATCHES = 3, 16
"""At least and at most, however many images that are."""
_BATCHES_OF_FILES = 4
_FED = 0.9
"""With files at least this share of the rate with pixels, the host feeds the backend."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Configuration:
    """A subject, how it was opened, and how many images it gets at a time.

    watch : on the backend, while rates are measured
    memory : since before it was opened
    """

    scenario: Scenario
    backend: str
    subject: Subject
    watch: Stopwatch
    memory: MemoryUse
    open_s: float
    batch: int

    @property
    def name(self) -> str:
        """In words, as far as it was asked for."""
        precision, beam = self.subject.backend.precision, self.subject.search.beam
        return f"{self.backend} {precision}, {self.scenario}, batch {self.batch}, beam {beam}"

    def first_row(self, pictures: Pictures) -> Row:
        """What is told of its first batch. Raises BackendError where it does not run."""
        forget_peak()
        batch = pictures.batches(self.batch)[0]
        began = time.perf_counter()
        found = self.subject.caption(batch)
        first_run_s = time.perf_counter() - began
        return Row(
            scenario=self.scenario,
            backend=self.backend,
            precision=self.subject.backend.precision,
            batch=self.batch,
            beam=self.subject.search.beam,
            runs_on=self.subject.backend.description,
            open_s=self.open_s,
            first_run_s=first_run_s,
            images_per_s=None,
            tokens_per_s=0.0,
            words=sum(len(one.tokens) for one in found) / len(found),
            latency=latency_of([first_run_s]),
            peak_mib=self.memory.peak_mib(),
            device_mib=self.memory.device_mib(),
        )


class InWindows:
    """*Offline* or *single stream*, whose rates are measured window by window, in turns with others.

    of_pixels : measures pixels of the host
    of_files : measures files, by level; of *offline* alone
    """

    def __init__(self, configuration: Configuration, pictures: Pictures, options: SweepOptions) -> None:
        """Run it, and everything that is told of it but for rates. Raises BackendError where it does not run."""
        row = configuration.first_row(pictures)
        self.configuration = configuration
        self.of_pixels = InARow(configuration.subject, pictures.batches(configuration.batch), configuration.watch)
        self.of_files: dict[Level, FromFiles] = {}
        if configuration.scenario == "offline":
            row = replace(row, stages=_stages(configuration, pictures))
            self.of_files = dict(_files(configuration, pictures, options))
        memory = configuration.memory
        self._row = replace(row, peak_mib=memory.peak_mib(), device_mib=memory.device_mib())
        self._options = options
        self._few = tuple(_few(len(pictures.paths), configuration.batch)) if self.of_files else ()

    def row(self, of_pixels: Spread, of_files: Mapping[Level, Spread]) -> Row:
        """The whole row, with what was measured."""
        tally = self.of_pixels.tally
        levels: dict[Level, Spread | None] = {}
        if self._row.scenario == "offline":
            levels = {"device": self.of_pixels.resident(of_pixels), "host": of_pixels, **of_files}
        known = {level: rate for level, rate in levels.items() if rate and level in self._options.levels}
        bottleneck = next((files.bottleneck for files in self.of_files.values()), None)
        joules = [one for one in tally.joules if one is not None]
        return replace(
            self._row,
            images_per_s=of_pixels,
            tokens_per_s=of_pixels.mean * tally.mean_words,
            words=tally.mean_words,
            latency=latency_of(tally.seconds),
            joules_per_image=sum(joules) / tally.captions if joules else None,
            levels=known,
            bottleneck=bottleneck,
            warnings=(*_noise(of_pixels, self._options), *_unfed(known, bottleneck), *self._few),
        )


class Serving:
    """A *server*, which has the machine for itself."""

    def __init__(self, configuration: Configuration, pictures: Pictures, options: SweepOptions) -> None:
        """Run its first batch. Raises BackendError where it does not run."""
        self.configuration = configuration
        self._pictures, self._options = pictures, options
        self._row = configuration.first_row(pictures)

    def row(self) -> Row:
        """Measure. Raises BackendError where it does not run, OutputError where it holds no rate."""
        options = self._options
        found = measure_server(
            self.configuration.subject,
            self._pictures.pixels,
            replace(options.server, batch=self.configuration.batch),
            rate=options.rate,
            share=options.share,
            trial_s=options.trial_s,
            hold_s=options.hold_s or options.trial_s,
        )
        held, words = found.server.held, found.tally.mean_words
        return replace(
            self._row,
            tokens_per_s=(held.requests - held.lost) / held.seconds * words,
            words=words,
            latency=found.latency,
            server=found.server,
            warnings=tuple(_overload(found.server)),
        )


def _files(
    configuration: Configuration, pictures: Pictures, options: SweepOptions
) -> Iterator[tuple[Level, FromFiles]]:
    """Of each level of files that is wanted and that the system has; one that is cached was run once."""
    subject, batch = configuration.subject, configuration.batch
    if "files-warm" in options.levels:
        warm = FromFiles(subject, pictures, batch=batch, cold=False)
        warm.run()
        yield "files-warm", warm
    if "files-cold" in options.levels and forget(pictures.paths):
        yield "files-cold", FromFiles(subject, pictures, batch=batch, cold=True)


def _stages(configuration: Configuration, pictures: Pictures) -> StageTimes:
    subject = configuration.subject
    batches = cycle(pictures.path_batches(configuration.batch))
    least, most = _STAGE_BATCHES
    count = min(max(_STAGE_IMAGES // configuration.batch, least), most)
    with (
        tempfile.TemporaryDirectory(prefix="saccade-benchmark-") as folder,
        ResultsWriter(Path(folder), {}, {}) as writer,
    ):
        way = Way(subject.bundle, subject.backend, subject.search, writer.commit)
        return measure_stages(way, list(islice(batches, count)), Stopwatch())


def _noise(rate: Spread, options: SweepOptions) -> Iterator[str]:
    if rate.variation > NOISY or rate.half_width > options.windows.stable:
        yield (
            f"noisy: {len(rate.windows)} windows vary by {rate.variation:.0%}, and the rate is known to "
            f"±{rate.half_width:.1%}; end other work, or measure longer with --seconds and --windows"
        )


def _unfed(levels: Mapping[Level, Spread], bottleneck: str | None) -> Iterator[str]:
    files, host = levels.get("files-warm"), levels.get("host")
    if files and host and files.mean < _FED * host.mean and bottleneck in ("scan", "read", "decode"):
        yield (
            f"the host does not feed the backend: with files {files.mean / host.mean:.0%} of the rate, "
            f"and {bottleneck} has the least rest"
        )


def _few(images: int, batch: int) -> Iterator[str]:
    if images < _BATCHES_OF_FILES * batch:
        yield f"{images} files are {images / batch:.1f} batches: runs are mostly their beginnings and ends; give more"


def _overload(server: Server) -> Iterator[str]:
    held = server.held
    if held.lost:
        yield f"{held.lost} of {held.requests} requests were lost"
    if held.p99_ms > server.p99_bound_ms:
        yield f"p99 {held.p99_ms:.0f} ms is above the bound of {server.p99_bound_ms:g} ms"
