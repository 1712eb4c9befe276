"""Runs of one configuration agree, or the command says that they do not."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from benchmarks import repeatability
from benchmarks.windows import Spread, spread_of
from engine.backends.base import Backend, open_backend
from saccade.bundle import Bundle


def test_each_run_opens_the_backend_anew_and_is_told(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []

    def counted(name: str, bundle: Bundle) -> Backend:
        opened.append(name)
        return open_backend(name, bundle)

    monkeypatch.setattr(repeatability, "open_backend", counted)
    given = "--runs 3 --backend ort --batch 2 --beam 1 --seconds 0.01 --windows 2"
    outcome = CliRunner().invoke(repeatability.main, [str(tiny_bundle), *given.split()])
    record = json.loads(outcome.output.splitlines()[-1])
    assert opened == ["ort"] * 3
    assert len(record["runs"]) == 3
    assert all(2 <= len(run["windows"]) <= 8 and run["mean"] > 0 for run in record["runs"])
    assert record["bundle"] == Bundle.open(tiny_bundle).fingerprint
    assert record["options"] == {
        "bundle": str(tiny_bundle),
        "runs": 3,
        "backend": "ort",
        "batch": 2,
        "beam": 1,
        "seconds": 0.01,
        "windows": 2,
        "images": None,
    }


@pytest.mark.parametrize(("drift", "agreeing", "code"), [(0.0, 5, 0), (10.0, 1, 1)])
def test_runs_that_drift_apart_fail(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch, drift: float, agreeing: int, code: int
) -> None:
    runs: Iterator[Spread] = (spread_of([99.0 + drift * n, 101.0 + drift * n, 100.0 + drift * n]) for n in range(5))
    monkeypatch.setattr(repeatability, "_run", lambda *_: next(runs))
    outcome = CliRunner().invoke(repeatability.main, [str(tiny_bundle), "--runs", "5"])
    assert outcome.exit_code == code
    assert json.loads(outcome.output.splitlines()[-1])["agreeing"] == agreeing
    assert f"{agreeing} of 5 intervals hold the mean of all runs" in outcome.output
