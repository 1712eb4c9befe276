"""Every backend, precision, beam, scenario and batch that was asked for.

All backends are opened first. Then all configurations take turns, so that what else the machine does meets all of them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from itertools import product
from typing import TypeVar

from benchmarks.benchmark_results import SCHEMA, Benchmark, Level, Row, Scenario, Unavailable
from benchmarks.machine import Machine, MemoryUse, forget_peak, peak_mib, this_machine
from benchmarks.pictures import Pictures
from benchmarks.scenario_rows import Configuration, InWindows, Serving
from benchmarks.scenarios import Subject
from benchmarks.stopwatch import Stopwatch
from benchmarks.sweep_options import SweepOptions
from benchmarks.timed_backend import timed_transfers
from benchmarks.windows import Spread, in_turns
from engine.backends.base import open_backend
from engine.captioner import CaptionOptions
from saccade.bundle import Bundle
from saccade.errors import BackendError, BundleError, OutputError
from saccade.progress import Reporter
from saccade.structure import unstructure

Key = TypeVar("Key")

_BUSY = 0.5
"""Load per core, before anything was measured, above which other work disturbs."""

Prepared = InWindows | Serving | Unavailable
Rate = Spread | BackendError


def sweep(bundle: Bundle, pictures: Pictures, options: SweepOptions, reporter: Reporter) -> Benchmark:
    """Measure everything. What does not run here is told of."""
    machine = this_machine()
    with ExitStack() as opened:
        prepared: list[Prepared] = []
        with reporter.task("preparing", _count(options), unit="configurations") as update:
            for one in _prepare(bundle, pictures, options, opened):
                prepared.append(one)
                update(len(prepared))
        results = _measure(prepared, options, reporter)
    return Benchmark(
        schema=SCHEMA,
        bundle=str(bundle.path),
        fingerprint=bundle.fingerprint,
        encoder=bundle.manifest.encoder,
        images=pictures.source,
        images_digest=pictures.digest,
        max_length=bundle.manifest.max_length,
        threads=options.threads,
        options=unstructure(options),
        machine=machine,
        rows=tuple(result for result in results if isinstance(result, Row)),
        unavailable=tuple(result for result in results if isinstance(result, Unavailable)),
        warnings=tuple(_warnings(machine)),
    )


def _prepare(bundle: Bundle, pictures: Pictures, options: SweepOptions, opened: ExitStack) -> Iterator[Prepared]:
    """Every configuration, after its first runs. The stack closes its backend."""
    forget_peak()
    bare_mib = peak_mib()
    for name, precision in product(options.backends, options.precisions):
        memory, began = MemoryUse(bare_mib=bare_mib), time.perf_counter()
        try:
            backend = open_backend(name, bundle, threads=options.threads, precision=precision)
        except (BackendError, BundleError) as error:
            yield Unavailable(name=f"{name} {precision}" if precision else name, reason=str(error))
            continue
        opened.enter_context(backend)
        open_s, watch = time.perf_counter() - began, Stopwatch()
        for beam, (scenario, batch) in product(options.beams, _loads(options)):
            search = replace(CaptionOptions().search_options(bundle), beam=beam)
            configuration = Configuration(
                scenario=scenario,
                backend=name,
                subject=Subject(bundle, backend, search),
                watch=watch,
                memory=memory,
                open_s=open_s,
                batch=batch,
            )
            try:
                yield (Serving if scenario == "server" else InWindows)(configuration, pictures, options)
            except BackendError as error:
                yield Unavailable(name=configuration.name, reason=str(error))


def _measure(prepared: Sequence[Prepared], options: SweepOptions, reporter: Reporter) -> list[Row | Unavailable]:
    """What each of them comes to."""
    in_windows = [one for one in prepared if isinstance(one, InWindows)]
    of_pixels = _of_pixels(in_windows, options, reporter)
    of_files = _of_files([one for one in in_windows if isinstance(of_pixels[one], Spread)], options, reporter)
    serving = [one for one in prepared if isinstance(one, Serving)]
    served: dict[Serving, Row | Unavailable] = {}
    with reporter.task("serving", len(serving), unit="servers") as update:
        for one in serving:
            served[one] = _served(one)
            update(len(served))
    results: list[Row | Unavailable] = []
    for each in prepared:
        if isinstance(each, InWindows):
            results.append(_row(each, of_pixels[each], of_files.get(each, {})))
        else:
            results.append(served[each] if isinstance(each, Serving) else each)
    return results


def _row(one: InWindows, of_pixels: Rate, of_files: Mapping[Level, Rate]) -> Row | Unavailable:
    known: dict[Level, Spread] = {}
    for level, rate in of_files.items():
        if isinstance(rate, BackendError):
            return Unavailable(name=one.configuration.name, reason=str(rate))
        known[level] = rate
    if isinstance(of_pixels, BackendError):
        return Unavailable(name=one.configuration.name, reason=str(of_pixels))
    return one.row(of_pixels, known)


def _of_pixels(configurations: Sequence[InWindows], options: SweepOptions, reporter: Reporter) -> dict[InWindows, Rate]:
    watched = {one.configuration.watch: one.configuration.subject.backend for one in configurations}
    with ExitStack() as stack:
        for watch, backend in watched.items():
            stack.enter_context(timed_transfers(backend, watch))
        return _in_turns({one: one.of_pixels.window for one in configurations}, "pixels", options, reporter)


def _of_files(
    configurations: Sequence[InWindows], options: SweepOptions, reporter: Reporter
) -> dict[InWindows, dict[Level, Rate]]:
    windows = {(one, level): files.window for one in configurations for level, files in one.of_files.items()}
    found: dict[InWindows, dict[Level, Rate]] = {one: {} for one in configurations}
    for (one, level), rate in _in_turns(windows, "files", options, reporter).items():
        found[one][level] = rate
    return found


def _in_turns(
    windows: Mapping[Key, Callable[[float], float]], what: str, options: SweepOptions, reporter: Reporter
) -> dict[Key, Rate]:
    """The rates of all windows, which get their seconds in turns, or why one failed; the others go on."""
    if not windows:
        return {}
    failed: dict[Key, BackendError] = {}

    def measured(key: Key) -> float:
        if key not in failed:
            try:
                return windows[key](options.windows.seconds)
            except BackendError as error:
                failed[key] = error
        return 1.0  # the rate of what failed is not told

    with reporter.task(f"measuring {what}", options.windows.most * len(windows), unit="windows") as update:
        rates = in_turns([partial(measured, key) for key in windows], options.windows, progress=update)
    return {**dict(zip(windows, rates, strict=True)), **failed}


def _served(serving: Serving) -> Row | Unavailable:
    try:
        return serving.row()
    except (BackendError, OutputError) as error:
        return Unavailable(name=serving.configuration.name, reason=str(error))


def _count(options: SweepOptions) -> int:
    """How many configurations there are, where every backend runs."""
    return len(options.backends) * len(options.precisions) * len(options.beams) * len(list(_loads(options)))


def _loads(options: SweepOptions) -> Iterator[tuple[Scenario, int]]:
    """Scenarios and their batches: single stream has one image at a time, a server the largest batch."""
    for scenario in options.scenarios:
        batches = {"single-stream": (1,), "offline": options.batches, "server": (max(options.batches),)}
        yield from ((scenario, batch) for batch in batches[scenario])


def _warnings(machine: Machine) -> Iterator[str]:
    if machine.load > _BUSY * machine.cores:
        yield f"the load was {machine.load:g} on {machine.cores} cores before: other work disturbs all figures"
    if machine.changed:
        yield "the code differs from its commit"
