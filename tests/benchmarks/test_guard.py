"""The guard sees what became slow, and nothing else."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from benchmarks import guard
from benchmarks.guard import FIGURES, fallen, main, measure, medians, ratios
from engine.backends.ort import _Graph
from saccade.bundle import Bundle
from saccade.errors import DataError

SECONDS = {"batch": 2.0, "one by one": 6.0, "greedy": 1.0, "encode": 1.5, "search": 0.5, "eager": 8.0}
COMMITTED = {"batch_16": 3.0, "ort": 4.0, "beam_1": 2.0, "encode": 3.0}


def test_ratios_are_higher_where_saccade_is_faster() -> None:
    assert ratios(SECONDS) == COMMITTED


@pytest.mark.parametrize(
    ("slower", "fell"),
    [
        ({"one by one": 0.5}, ["batch_16"]),  # batches bring less than they did
        ({"batch": 2.0}, ["batch_16", "ort"]),
        ({"greedy": 2.0}, ["beam_1"]),
        ({"search": 2.0}, ["encode"]),
        ({"encode": 1.5, "batch": 1.4}, []),
        (dict.fromkeys(SECONDS, 10.0), []),  # a slower machine
    ],
)
def test_only_the_ratio_of_what_became_slow_falls(slower: dict[str, float], fell: list[str]) -> None:
    seconds = {name: value * slower.get(name, 1.0) for name, value in SECONDS.items()}
    assert fallen(ratios(seconds), COMMITTED) == fell


def test_figures_of_another_guard_are_refused() -> None:
    with pytest.raises(DataError, match="renew it with"):
        fallen(COMMITTED, {"ort": 4.0})


def test_sides_take_turns_and_the_first_turn_does_not_count() -> None:
    turns: list[str] = []

    def side(name: str) -> Callable[[], float]:
        seconds = count(100, -10)  # 100, 90, 80, 70

        def turn() -> float:
            turns.append(name)
            return next(seconds)

        return turn

    assert medians({"a": side("a"), "b": side("b")}, rounds=3) == {"a": 80, "b": 80}
    assert turns == ["a", "b"] * 4


def test_committed_figures_are_those_that_are_measured() -> None:
    assert json.loads(FIGURES.read_text())["ratios"].keys() == COMMITTED.keys()


def test_a_slow_step_is_seen_on_a_real_bundle(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = Bundle.open(tiny_bundle)
    before = measure(bundle, rounds=2)
    bind = _Graph.bind

    def slow(self: _Graph, *given: Any) -> Any:
        run = bind(self, *given)
        repeats = 8 if self.spec.file == "step.onnx" else 1
        return lambda: [run() for _ in range(repeats)] and None

    monkeypatch.setattr(_Graph, "bind", slow)
    assert "encode" in fallen(measure(bundle, rounds=2), before)


def test_the_command_fails_where_a_ratio_fell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "FIGURES", tmp_path / "guard.json")
    monkeypatch.setattr(guard, "measure", lambda *_, **__: COMMITTED)
    assert CliRunner().invoke(main, ["--write"]).exit_code == 0
    assert CliRunner().invoke(main).exit_code == 0
    monkeypatch.setattr(guard, "measure", lambda *_, **__: COMMITTED | {"ort": 2.0})
    outcome = CliRunner().invoke(main)
    assert outcome.exit_code == 1
    assert "FELL" in outcome.output
    assert json.loads(outcome.output.splitlines()[-1])["fell"] == ["ort"]
