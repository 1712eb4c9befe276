"""A row of the table: one opened configuration in one scenario, with all that is told of it."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import cycle, islice
from pathlib import Path

from benchmarks.benchmark_results import Latency, Level, Row, Scenario, Server, latency_of
from benchmarks.machine import Energy, device_mib, forget_peak, peak_mib
from benchmarks.pictures import Pictures
from benchmarks.scenarios import Subject, Tally, measure_files, measure_rate, measure_server
from benchmarks.stages import StageTimes, Way, measure_stages
from benchmarks.stopwatch import Stopwatch
from benchmarks.sweep_options import SweepOptions
from benchmarks.windows import NOISY, Spread
from engine.results import ResultsWriter

_STAGE_IMAGES = 64
_STAGE_BATCHES = 3, 16
"""At least and at most, however many images that are."""
_FED = 0.9
"""With files at least this share of the rate with pixels, the host feeds the backend."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Configuration:
    """A subject, how it was opened, and how many images it gets at a time."""

    backend: str
    subject: Subject
    open_s: float
    batch: int


def row_of(scenario: Scenario, configuration: Configuration, pictures: Pictures, options: SweepOptions) -> Row:
    """Measure. Raises BackendError where it does not run, OutputError where a server holds no rate."""
    forget_peak()
    return _SCENARIOS[scenario](configuration, pictures, options)


def _single_stream(configuration: Configuration, pictures: Pictures, options: SweepOptions) -> Row:
    row, _ = _in_windows("single-stream", configuration, pictures, options)
    return row


def _offline(configuration: Configuration, pictures: Pictures, options: SweepOptions) -> Row:
    row, resident = _in_windows("offline", configuration, pictures, options)
    row = replace(row, stages=_stages(configuration, pictures))
    levels: dict[Level, Spread | None] = {"device": resident, "host": row.images_per_s}
    bottleneck = None
    for level in options.levels:
        if level.startswith("files"):
            cold = level == "files-cold"
            files = measure_files(
                configuration.subject, pictures, options.windows, batch=configuration.batch, cold=cold
            )
            levels[level] = files and files.images_per_s
            bottleneck = bottleneck or (files and files.bottleneck)
    known = {level: rate for level, rate in levels.items() if rate and level in options.levels}
    return replace(row, levels=known, bottleneck=bottleneck, warnings=(*row.warnings, *_unfed(known, bottleneck)))


def _server(configuration: Configuration, pictures: Pictures, options: SweepOptions) -> Row:
    first_run_s = _first_run_s(configuration, pictures)
    found = measure_server(
        configuration.subject,
        pictures.pixels,
        replace(options.server, batch=configuration.batch),
        rate=options.rate,
        share=options.share,
        trial_s=options.trial_s,
        hold_s=options.hold_s or options.trial_s,
    )
    held = found.server.held
    answered = (held.requests - held.lost) / held.seconds
    row = _row("server", configuration, found.tally, found.latency, first_run_s=first_run_s, images_per_s=answered)
    return replace(row, server=found.server, warnings=tuple(_overload(found.server)))


_SCENARIOS: Mapping[Scenario, Callable[[Configuration, Pictures, SweepOptions], Row]] = {
    "single-stream": _single_stream,
    "offline": _offline,
    "server": _server,
}


def _in_windows(
    scenario: Scenario, configuration: Configuration, pictures: Pictures, options: SweepOptions
) -> tuple[Row, Spread | None]:
    """The row, and its rate where pixels are on the device already."""
    first_run_s = _first_run_s(configuration, pictures)
    energy = Energy()
    rate, resident, tally = measure_rate(configuration.subject, pictures.batches(configuration.batch), options.windows)
    joules = energy.joules()
    latency = latency_of(tally.seconds)
    row = _row(scenario, configuration, tally, latency, first_run_s=first_run_s, images_per_s=rate.mean)
    row = replace(
        row,
        images_per_s=rate,
        joules_per_image=None if joules is None else joules / tally.captions,
        warnings=tuple(_noise(rate, options)),
    )
    return row, resident


def _first_run_s(configuration: Configuration, pictures: Pictures) -> float:
    batch = pictures.batches(configuration.batch)[0]
    began = time.perf_counter()
    configuration.subject.caption(batch)
    return time.perf_counter() - began


def _row(
    scenario: Scenario,
    configuration: Configuration,
    tally: Tally,
    latency: Latency,
    *,
    first_run_s: float,
    images_per_s: float,
) -> Row:
    subject = configuration.subject
    return Row(
        scenario=scenario,
        backend=configuration.backend,
        precision=subject.backend.precision,
        batch=configuration.batch,
        beam=subject.search.beam,
        runs_on=subject.backend.description,
        open_s=configuration.open_s,
        first_run_s=first_run_s,
        images_per_s=None,
        tokens_per_s=images_per_s * tally.mean_words,
        words=tally.mean_words,
        latency=latency,
        peak_mib=peak_mib(),
        device_mib=device_mib(),
        joules_per_image=None,
        levels={},
        bottleneck=None,
        stages=None,
        server=None,
        warnings=(),
    )


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


def _overload(server: Server) -> Iterator[str]:
    held = server.held
    if held.lost:
        yield f"{held.lost} of {held.requests} requests were lost"
    if held.p99_ms > server.p99_bound_ms:
        yield f"p99 {held.p99_ms:.0f} ms is above the bound of {server.p99_bound_ms:g} ms"
