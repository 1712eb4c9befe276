"""Every backend, precision, beam, scenario and batch that was asked for, one after the other."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import replace

from benchmarks.benchmark_results import SCHEMA, Benchmark, Row, Scenario, Unavailable
from benchmarks.machine import Machine, this_machine
from benchmarks.pictures import Pictures
from benchmarks.scenario_rows import Configuration, row_of
from benchmarks.scenarios import Subject
from benchmarks.sweep_options import SweepOptions
from engine.backends.base import open_backend
from engine.captioner import CaptionOptions
from saccade.bundle import Bundle, Precision
from saccade.errors import BackendError, BundleError, OutputError
from saccade.structure import unstructure

_BUSY = 0.5
"""Load per core, before anything was measured, above which other work disturbs."""

Found = Callable[[Row | Unavailable], None]


def sweep(bundle: Bundle, pictures: Pictures, options: SweepOptions, *, found: Found = lambda _: None) -> Benchmark:
    """Measure everything. What does not run here is told of; `found` gets each result as it is there."""
    machine = this_machine()
    results: list[Row | Unavailable] = []
    for name in options.backends:
        for precision in options.precisions:
            for result in _of_backend(name, precision, bundle, pictures, options):
                results.append(result)
                found(result)
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


def count(options: SweepOptions) -> int:
    """How many results there are, where every backend runs."""
    return len(options.backends) * len(options.precisions) * len(options.beams) * len(list(_loads(options)))


def _of_backend(
    name: str, precision: Precision | None, bundle: Bundle, pictures: Pictures, options: SweepOptions
) -> Iterator[Row | Unavailable]:
    began = time.perf_counter()
    try:
        backend = open_backend(name, bundle, threads=options.threads, precision=precision)
    except (BackendError, BundleError) as error:
        yield Unavailable(name=f"{name} {precision}" if precision else name, reason=str(error))
        return
    open_s = time.perf_counter() - began
    with backend:
        for beam in options.beams:
            search = replace(CaptionOptions().search_options(bundle), beam=beam)
            subject = Subject(bundle, backend, search)
            for scenario, batch in _loads(options):
                configuration = Configuration(backend=name, subject=subject, open_s=open_s, batch=batch)
                try:
                    yield row_of(scenario, configuration, pictures, options)
                except (BackendError, OutputError) as error:
                    label = f"{name} {backend.precision}, {scenario}, batch {batch}, beam {beam}"
                    yield Unavailable(name=label, reason=str(error))


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
