"""Whether intervals hold what they say: `python -m benchmarks.repeatability FILE FILE ...`.

The files are `benchmark.json` of the same `saccade benchmark`, run again and again. If a machine is as steady as the
intervals of its rates say, the 95 % interval of a run holds the mean of all runs in about 19 of 20 cases. Fewer show
that the machine changes more slowly than a run takes: with other work, with heat, or with the clock of its processor.

Ratios of a run are of each configuration and the first one of its file, turn by turn: what slows the machine for a
while slows both.
"""

from __future__ import annotations

import json
import math
import statistics
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

import click

from benchmarks.benchmark_results import Benchmark, differing, read
from benchmarks.benchmark_tables import label
from benchmarks.markdown import markdown_table
from benchmarks.windows import Ratio, Spread, paired_ratio
from saccade.errors import ConfigError

_HELD = 0.95
_BY_CHANCE = 0.02
"""So few intervals that hold the mean come by chance in less than one of fifty cases; of ten, seven or fewer."""

_LEAST = 3
_COLUMNS = (
    *("configuration", "images/s, run by run", "median ±", "hold the mean"),
    *("times the first", "median ±", "hold the mean"),
)


class Repeated(NamedTuple):
    """A configuration in every run. The ratios are those to the first configuration, none for itself."""

    name: str
    rates: tuple[Spread, ...]
    ratios: tuple[Ratio, ...]

    @property
    def mean(self) -> float:
        """Images per second, of all runs."""
        return statistics.fmean(rate.mean for rate in self.rates)

    @property
    def mean_ratio(self) -> float:
        """The geometric mean of all runs."""
        return math.exp(statistics.fmean(math.log(ratio.value) for ratio in self.ratios))

    @property
    def agreeing(self) -> int:
        """How many runs have the mean of all in their interval."""
        return sum(rate.low <= self.mean <= rate.high for rate in self.rates)

    @property
    def held(self) -> list[int]:
        """How many rates agree, and how many ratios."""
        return [self.agreeing, *([self.agreeing_ratios] if self.ratios else [])]

    @property
    def agreeing_ratios(self) -> int:
        """The same of the ratios."""
        return sum(ratio.low <= self.mean_ratio <= ratio.high for ratio in self.ratios)


def agree(held: int, runs: int) -> bool:
    """Whether that many intervals of 95 % of so many runs could hold the mean by chance."""
    fewer = sum(math.comb(runs, k) * _HELD**k * (1 - _HELD) ** (runs - k) for k in range(held + 1))
    return fewer >= _BY_CHANCE


def repeated(runs: Sequence[Benchmark]) -> list[Repeated]:
    """What all runs have measured in windows. Raises ConfigError where they are not repetitions of one another."""
    first, *others = runs
    if any(differing(first, other) or _keys(other) != _keys(first) for other in others):
        raise ConfigError("these are not runs of the same command on the same machine: give files that are")
    found: dict[str, list[Spread]] = {}
    for run in runs:
        for row in run.rows:
            if row.images_per_s:
                found.setdefault(label(row), []).append(row.images_per_s)
    if not found:
        raise ConfigError("these runs measured servers alone, which have no windows: give others")
    (first_name, bases), *rest = ((name, tuple(rates)) for name, rates in found.items())
    return [
        Repeated(first_name, bases, ()),
        *(Repeated(name, rates, tuple(map(paired_ratio, bases, rates))) for name, rates in rest),
    ]


def table(found: Sequence[Repeated]) -> str:
    """A line for each configuration."""
    rows = []
    for one in found:
        means, widths = [rate.mean for rate in one.rates], [rate.half_width for rate in one.rates]
        line = [one.name, f"{min(means):.1f} to {max(means):.1f}", f"{statistics.median(widths):.1%}"]
        line.append(f"{one.agreeing} of {len(one.rates)}")
        if one.ratios:
            ratios = [ratio.value for ratio in one.ratios]
            half = statistics.median((ratio.high - ratio.low) / 2 / ratio.value for ratio in one.ratios)
            line += [f"{min(ratios):.2f} to {max(ratios):.2f}", f"{half:.1%}"]
            line.append(f"{one.agreeing_ratios} of {len(ratios)}")
        rows.append((*line, *[""] * (len(_COLUMNS) - len(line))))
    return markdown_table(_COLUMNS, rows)


@click.command()
@click.argument("files", nargs=-1, required=True, type=click.Path(exists=True, dir_okay=False, path_type=Path))
def main(files: tuple[Path, ...]) -> None:
    """Say how many runs of `saccade benchmark` agree. The last line is JSON; exits with 1 where too few do."""
    if len(files) < _LEAST:
        raise click.UsageError(f"agreement is of {_LEAST} runs or more, not of {len(files)}.")
    runs = [read(file) for file in files]
    found = repeated(runs)
    click.echo(table(found))
    record = {
        "benchmark": "repeatability",
        "runs": len(runs),
        "configurations": [one._asdict() | {"rates": [asdict(rate) for rate in one.rates]} for one in found],
        "bundle": runs[0].fingerprint,
        "images": runs[0].images,
        "options": runs[0].options,
        "machine": asdict(runs[0].machine),
    }
    click.echo(json.dumps(record))
    if not all(agree(held, len(runs)) for one in found for held in one.held):
        sys.exit(1)


def _keys(run: Benchmark) -> list[tuple[str, str, str, int, int]]:
    return [row.key for row in run.rows]


if __name__ == "__main__":
    main()
