"""The roofline benchmark: every operator belongs to a part, and bounds are those of the work."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import openvino
import pytest
from click.testing import CliRunner
from openvino import opset11 as ops

from benchmarks.graph_parts import CHOICE, CONTEXT, ENERGIES, KEYS, OUTPUT, PARTS, STATE, Work, parts_of, work_of
from benchmarks.roofline import Ceilings, MeasuredCeilings, Part, Profile, main, profile, table
from engine.backends.ovino import open_backend
from saccade.bundle import Bundle
from saccade.errors import BackendError

SHIPPED = Path("examples/bundle")
CEILINGS = Ceilings(multiply_adds_per_s=2e9, bytes_per_s=1e9)


def parts_and_work(bundle: Path, graph: str, *, images: int, beam: int) -> tuple[dict[str, str], dict[str, Work]]:
    backend = open_backend(Bundle.open(bundle), threads=1, precision="fp32")
    executor, sizes = backend.executors[graph], {"images": images, "beam": beam}
    shapes = {
        tensor.name: tuple(sizes[axis] if isinstance(axis, str) else axis for axis in tensor.shape)
        for tensor in executor.spec.inputs
    }
    model = executor.model(shapes)  # type: ignore[attr-defined]
    parts = parts_of(model, graph)
    return parts, work_of(model, parts, float_bytes=4)


def test_multiply_adds_of_a_step_are_those_of_its_matrices() -> None:
    """The shipped model by hand: places 49, annotations 160, keys 128, LSTM 256, words 75, one number for the gate.

    Maps of words are looked up, energies are sums.
    """
    parts, work = parts_and_work(SHIPPED, "step", images=2, beam=3)
    by_row = {
        STATE: 256 * (4 * 256 + 128 + 1) + 160 * 4 * 256,
        ENERGIES: 0,
        CONTEXT: 49 * 160,
        OUTPUT: 256 * 128 + 160 * 128 + 128 * 75,
        CHOICE: 0,
    }
    assert {part: one.multiply_adds for part, one in work.items()} == {part: 6 * one for part, one in by_row.items()}
    assert set(parts.values()) == set(PARTS["step"])


def test_work_of_a_finer_grid_is_that_of_its_cells(pooled_bundle: Path) -> None:
    """36 places of 16 cells: alphas go back to the cells, annotations are those of the cells, keys are pooled."""
    _, work = parts_and_work(pooled_bundle, "step", images=2, beam=3)
    looked_at = 1  # hard attention: the annotation of one place, by way of the shares of its cells
    assert work[CONTEXT].multiply_adds == 6 * (36 * 16 + 16 * 160 * (1 + looked_at))
    _, work = parts_and_work(pooled_bundle, "encoder", images=2, beam=3)
    assert work[KEYS].multiply_adds == 2 * (16 * 160 * 16 + 36 * 16 * 16)


def test_bytes_are_what_has_to_come_and_go() -> None:
    _, work = parts_and_work(SHIPPED, "step", images=2, beam=3)
    assert work[CONTEXT].bytes == 4 * (2 * 3 * 49 + 2 * 49 * 160 + 2 * 3 * 160)  # alphas, annotations and context
    _, work = parts_and_work(SHIPPED, "encoder", images=2, beam=3)
    assert work[KEYS].multiply_adds == 2 * 49 * 160 * 128
    assert work[KEYS].bytes == 4 * (2 * 49 * 160 + 160 * 128 + 128 + 2 * 49 * 128)  # with weights and biases


def test_of_a_table_the_rows_that_are_looked_up_count() -> None:
    ids, axis = ops.parameter((3,), np.int64), ops.constant(np.int64(0))
    rows = ops.gather(ops.constant(np.zeros((1000, 8), np.float32)), ids, axis)
    model = openvino.Model([rows], [ids])
    (work,) = work_of(model, {rows.get_friendly_name(): STATE}, float_bytes=4).values()
    assert work.bytes == 2 * 4 * 3 * 8 + 8 * 3 + 8  # rows in and out, ids, and the axis


@pytest.mark.parametrize("kind", ["tiny_bundle", "hard_bundle", "pooled_bundle"])
def test_every_operator_of_other_models_has_a_part(kind: str, request: pytest.FixtureRequest) -> None:
    for graph, names in PARTS.items():
        parts, work = parts_and_work(request.getfixturevalue(kind), graph, images=2, beam=3)
        assert set(parts.values()) == set(names)
        assert work.keys() == set(names)


def test_a_bound_is_the_longer_of_computing_and_moving() -> None:
    assert CEILINGS.bound_ms(Work(multiply_adds=4_000_000, bytes=1_000_000)) == 2.0
    assert CEILINGS.bound_ms(Work(multiply_adds=1_000_000, bytes=3_000_000)) == 3.0


def test_the_counters_are_added_up_to_the_parts_of_both_graphs() -> None:
    bundle = Bundle.open(SHIPPED)
    size = bundle.manifest.preprocessing.size
    pixels = np.random.default_rng(0).integers(0, 256, (4, size, size, 3), np.uint8)
    encoder, step = profile(bundle, "fp32", pixels, beam=3, threads=1)
    for found in (encoder, step):
        assert [part.name for part in found.parts] == list(PARTS[found.graph])
        for part in found.parts:
            assert part.ms == pytest.approx(sum(part.kinds.values()))
            assert part.bound_ms(CEILINGS) == CEILINGS.bound_ms(Work(part.multiply_adds, part.bytes))
            assert part.ms > 0
    convolutions = encoder.parts[0].kinds["Convolution, f32"]
    assert convolutions > encoder.ms / 2
    assert encoder.ms > step.ms


def test_the_table_says_how_far_a_part_is_from_its_bound() -> None:
    part = Part(name=CONTEXT, ms=3.0, multiply_adds=3_000_000, bytes=1_200_000, kinds={"MatMul, f32": 3.0})
    other = Part(name=OUTPUT, ms=1.0, multiply_adds=1, bytes=1, kinds={"MatMul, f32": 0.99, "Add": 0.01})
    found = Profile(graph="step", precision="int8", arithmetic="bf16", batch=16, beam=3, parts=[part, other])
    text = table([found], {"bf16": CEILINGS})
    lines = text.splitlines()
    assert lines[1] == "step, int8, 16 images, beam 3: 4.00 ms"
    assert lines[2].split() == ["context", "3.000", "75%", "1.500", "2.0", "3", "1.2"]
    assert lines[3].split() == ["MatMul,", "f32", "3.000", "75%"]
    assert "Add" not in text


def test_of_all_measurements_of_the_ceilings_the_best_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    rates = iter([(2e9, 3e9), (4e9, 1e9), (3e9, 2e9)])

    def measure(*_: object, **__: object) -> Ceilings:
        products, bytes_ = next(rates)
        return Ceilings(multiply_adds_per_s=products, bytes_per_s=bytes_)

    monkeypatch.setattr("benchmarks.roofline.measure_ceilings", measure)
    ceilings = MeasuredCeilings(threads=1)
    for _ in range(3):
        ceilings.measure("fp32")
    assert ceilings == {"fp32": Ceilings(multiply_adds_per_s=4e9, bytes_per_s=3e9)}


def test_the_command_ends_in_a_line_of_json_and_says_what_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise BackendError("no such instructions")

    monkeypatch.setattr("benchmarks.roofline._SIDE", 64)
    arguments = ["--bundle", str(SHIPPED), "--beam", "1", "--beam", "2", "--batch", "2", "--threads", "1"]
    found = CliRunner().invoke(main, [*arguments, "--precision", "fp32"])
    assert found.exit_code == 0, found.output
    record = json.loads(found.stdout.splitlines()[-1])
    assert [(one["graph"], one["beam"]) for one in record["profiles"]] == [("encoder", 1), ("step", 1), ("step", 2)]
    best = record["ceilings"]["fp32"]
    for part in record["profiles"][0]["parts"]:
        seconds = part["multiply_adds"] / best["multiply_adds_per_s"], part["bytes"] / best["bytes_per_s"]
        assert part["bound_ms"] == pytest.approx(1000 * max(seconds))
    assert record["machine"]["cores"] >= 1
    monkeypatch.setattr("benchmarks.roofline.quickest", refuse)
    record = json.loads(CliRunner().invoke(main, [*arguments, "--precision", "bf16"]).stdout.splitlines()[-1])
    assert record["unavailable"] == {"bf16": "no such instructions"}
