"""Runs of one command agree, or the check says that they do not."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from benchmarks.benchmark_results import Benchmark, write
from benchmarks.repeatability import agree, main, repeated
from benchmarks.windows import spread_of
from saccade.errors import ConfigError
from tests.benchmarks.made_up import benchmark, row


def runs(*speeds: float) -> list[Benchmark]:
    """Two configurations, the second twice as fast, on a machine that has these speeds."""
    return [
        benchmark(
            row(images_per_s=spread_of([99 * speed, 101 * speed, 100 * speed])),
            row(batch=16, images_per_s=spread_of([198 * speed, 202.01 * speed, 200 * speed])),
        )
        for speed in speeds
    ]


def checked(found: list[Benchmark], folder: Path) -> Result:
    for number, run in enumerate(found):
        write(run, folder / f"{number}.json")
    return CliRunner().invoke(main, [str(folder / f"{number}.json") for number in range(len(found))])


def test_runs_agree_where_their_intervals_hold_the_mean_of_all(tmp_path: Path) -> None:
    outcome = checked(runs(0.99, 1.0, 1.01), tmp_path)
    assert outcome.exit_code == 0, outcome.output
    record = json.loads(outcome.output.splitlines()[-1])
    assert [len(one["rates"]) for one in record["configurations"]] == [3, 3]
    assert outcome.output.count("| 3 of 3 |") == 3  # two rates and a ratio
    assert "| 99.0 to 101.0 |" in outcome.output


def test_rates_that_drift_apart_fail_and_their_ratio_stays(tmp_path: Path) -> None:
    outcome = checked(runs(1.0, 1.1, 1.2, 1.3, 1.4), tmp_path)
    assert outcome.exit_code == 1
    _, base, other = outcome.output.splitlines()[1:4]
    assert base.count("1 of 5") == other.count("1 of 5") == 1
    assert "5 of 5" in other
    _, found = repeated(runs(1.0, 1.5))
    assert found.mean_ratio == pytest.approx(2, rel=0.01)


def test_what_is_no_repetition_is_refused(tmp_path: Path) -> None:
    one, other = runs(1.0, 1.0)
    fewer = replace(other, rows=other.rows[:1])
    servers = [replace(run, rows=(row(scenario="server", images_per_s=None),)) for run in (one, other)]
    with pytest.raises(ConfigError, match="servers alone"):
        repeated(servers)
    elsewhere = replace(other, fingerprint="another")
    for strange in (fewer, elsewhere):
        with pytest.raises(ConfigError, match="not runs of the same command"):
            repeated([one, strange])
    outcome = checked([one, other], tmp_path)
    assert outcome.exit_code == 2
    assert "of 3 runs or more" in outcome.output


def test_too_few_are_those_that_hardly_come_by_chance() -> None:
    """Of ten at 95 %: seven or fewer in 1.15 % of the cases, eight or fewer in 8.6 %."""
    assert [agree(held, 10) for held in (7, 8, 10)] == [False, True, True]
    assert [agree(held, 3) for held in (1, 2)] == [False, True]
