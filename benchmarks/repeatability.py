"""Whether intervals of rates are wide enough: `python -m benchmarks.repeatability BUNDLE`.

Measured: one configuration, opened anew for every run, run after run. If windows vary at random, the 95 % interval of
a run holds the mean of all runs in about 19 of 20 cases. Fewer show that the machine changes more slowly than a run
takes: with other work, with heat, or with the clock of its processor.
"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import click

from benchmarks.machine import this_machine
from benchmarks.pictures import Pictures, pictures_of
from benchmarks.scenarios import Subject, measure_rate
from benchmarks.windows import Spread, WindowOptions
from engine.backends.base import open_backend
from engine.captioner import CaptionOptions
from saccade.bundle import Bundle

_ENOUGH = 0.8
"""Of the runs: with ten that agree, fewer than eight come by chance in one of a hundred cases."""


def agreeing(runs: Sequence[Spread]) -> int:
    """How many runs have the mean of all in their interval."""
    mean = statistics.fmean(run.mean for run in runs)
    return sum(run.low <= mean <= run.high for run in runs)


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--runs", default=10, show_default=True, type=click.IntRange(min=2))
@click.option("--backend", default="auto", show_default=True)
@click.option("--batch", default=8, show_default=True, type=click.IntRange(min=1))
@click.option("--beam", default=3, show_default=True, type=click.IntRange(min=1))
@click.option(
    "--seconds", default=0.5, show_default=True, type=click.FloatRange(min=0, min_open=True), help="A window."
)
@click.option("--windows", default=8, show_default=True, type=click.IntRange(min=2), help="At least.")
@click.option("--images", type=click.Path(exists=True, file_okay=False, path_type=Path), help="[default: random]")
def main(
    bundle: Path, runs: int, backend: str, batch: int, beam: int, seconds: float, windows: int, images: Path | None
) -> None:
    """Measure BUNDLE several times. The last line is JSON; exits with 1 where the runs do not agree."""
    machine, opened = this_machine(), Bundle.open(bundle)
    options = WindowOptions(seconds=seconds, least=windows, most=4 * windows)
    found: list[Spread] = []
    with pictures_of(images, opened.manifest.preprocessing) as pictures:
        for number in range(runs):
            found.append(_run(opened, backend, pictures, batch, beam, options))
            run = found[-1]
            click.echo(f"run {number + 1}: {run.mean:.2f} images/s, {run.low:.2f} to {run.high:.2f}")
    count = agreeing(found)
    click.echo(f"{count} of {runs} intervals hold the mean of all runs")
    record = {
        "benchmark": "repeatability",
        "agreeing": count,
        "runs": [asdict(run) for run in found],
        "bundle": opened.fingerprint,
        "options": click.get_current_context().params,
        "machine": asdict(machine),
    }
    click.echo(json.dumps(record, default=str))
    if count < _ENOUGH * runs:
        sys.exit(1)


def _run(bundle: Bundle, name: str, pictures: Pictures, batch: int, beam: int, options: WindowOptions) -> Spread:
    search = replace(CaptionOptions().search_options(bundle), beam=beam)
    with open_backend(name, bundle) as backend:
        return measure_rate(Subject(bundle, backend, search), pictures.batches(batch), options).images_per_s


if __name__ == "__main__":
    main()
