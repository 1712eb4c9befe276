"""What OpenVINO's executor makes of a graph before it compiles it."""

from __future__ import annotations

import fcntl
from pathlib import Path
from typing import Any

import numpy as np
import openvino
import pytest
from numpy.typing import NDArray
from openvino import opset11 as ops

from engine.backends.ovino import _Bfloat16Buffer
from engine.backends.ovino_graphs import (
    add_up_columns,
    halve,
    keep_sums,
    look_up_products,
    read_graph,
    round_weights,
)
from engine.captioner import Captioner, CaptionOptions
from saccade.rounding import bfloat16_bits, from_bfloat16_bits

WEIGHT = np.random.default_rng(0).standard_normal((64, 48)).astype(np.float32)
INPUTS = np.ones((2, 64), np.float32)


def nearest(values: NDArray[np.float32]) -> NDArray[np.float32]:
    return from_bfloat16_bits(bfloat16_bits(values))


def outputs(model: openvino.Model, *inputs: NDArray[np.generic], hint: str = "f32") -> NDArray[np.float32]:
    compiled = openvino.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": hint})
    return np.array(compiled(list(inputs))[0])


def linear(weight: NDArray[np.float32], *, by_row: bool) -> openvino.Model:
    given = ops.parameter(INPUTS.shape, np.float32)
    return openvino.Model([ops.matmul(given, ops.constant(weight), False, by_row)], [given])


def convolution(weight: NDArray[np.float32]) -> openvino.Model:
    """Of a picture of one place: a linear map of its channels."""
    given = ops.parameter((2, 64, 1, 1), np.float32)
    filters = ops.constant(np.ascontiguousarray(weight.T)[:, :, None, None])
    return openvino.Model([ops.convolution(given, filters, (1, 1), (0, 0), (0, 0), (1, 1))], [given])


@pytest.mark.parametrize("kind", ["by column", "by row", "convolution"])
def test_weights_for_bfloat16_keep_what_alike_inputs_add_up_to(kind: str) -> None:
    """Inputs of ones give the sum of an output's weights, which rounding one by one changes."""
    weight = np.ascontiguousarray(WEIGHT.T) if kind == "by row" else WEIGHT
    model = convolution(WEIGHT) if kind == "convolution" else linear(weight, by_row=kind == "by row")
    inputs = INPUTS[:, :, None, None] if kind == "convolution" else INPUTS
    expected = outputs(model, inputs)
    round_weights(model)
    error = np.abs(outputs(model, inputs) - expected)
    usual = np.abs((nearest(WEIGHT) - WEIGHT).sum(axis=0))
    assert 0 < error.max() < 0.2 * usual.mean()


def test_weights_that_are_8_bit_integers_stay_as_they_are() -> None:
    given = ops.parameter(INPUTS.shape, np.float32)
    integers = ops.constant(np.round(10 * WEIGHT).astype(np.int8))
    weight = ops.multiply(ops.convert(integers, np.float32), ops.constant(np.float32(0.1)))
    model = openvino.Model([ops.matmul(given, weight, False, False)], [given])
    expected = outputs(model, INPUTS)
    round_weights(model)
    np.testing.assert_array_equal(outputs(model, INPUTS), expected)


def test_a_graph_with_rounded_weights_computes_nearly_the_same(tiny_bundle: Path) -> None:
    core, pixels = openvino.Core(), np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), np.uint8)
    plain, low = (read_graph(core, tiny_bundle / "encoder.onnx") for _ in range(2))
    round_weights(low)
    hint = {"INFERENCE_PRECISION_HINT": "f32"}
    expected, found = (core.compile_model(one, "CPU", hint)({"pixels": pixels})["annotations"] for one in (plain, low))
    assert 0 < np.linalg.norm(found - expected) < 0.02 * np.linalg.norm(expected)


def test_annotations_and_keys_alone_lie_in_bfloat16(tiny_bundle: Path) -> None:
    core = openvino.Core()
    encoder, step = (read_graph(core, tiny_bundle / f"{name}.onnx", bfloat16=True) for name in ("encoder", "step"))
    for ports in (encoder.outputs, step.inputs):
        assert bfloat16(ports) == {"annotations", "keys"}
    for ports in (encoder.inputs, step.outputs):
        assert not bfloat16(ports)


def test_halved_inputs_are_converted_behind_a_change_of_shape() -> None:
    """There OpenVINO fuses the conversion with what follows; by itself it would take a twentieth of a step."""
    keys = ops.parameter((2, 64), np.float32)
    keys.output(0).set_names({"keys"})
    shaped = ops.unsqueeze(keys, ops.constant(1))
    model = openvino.Model([ops.relu(shaped), ops.abs(shaped), ops.relu(keys)], [keys])
    del shaped
    halve(model)
    model.validate_nodes_and_infer_types()
    assert sorted(reader.get_node().get_type_name() for reader in keys.output(0).get_target_inputs()) == [
        "Convert",
        "Unsqueeze",
    ]
    assert [output.get_element_type() for output in model.outputs] == 3 * [openvino.Type.f32]


def bfloat16(ports: list[openvino.Output]) -> set[str]:
    return {name for port in ports if port.get_element_type() == openvino.Type.bf16 for name in port.names}


def kinds(model: openvino.Model) -> list[str]:
    return [node.get_type_name() for node in model.get_ops()]


def with_bias(product: openvino.Node, bias: NDArray[np.float32] | None) -> openvino.Node:
    return product if bias is None else ops.add(product, ops.constant(bias))


@pytest.mark.parametrize("by_row", [False, True], ids=["by column", "by row"])
@pytest.mark.parametrize("bias", [None, WEIGHT[0]], ids=["without bias", "with bias"])
def test_maps_of_words_are_looked_up_and_other_readers_of_the_words_keep_them(
    bias: NDArray[np.float32] | None, *, by_row: bool
) -> None:
    words = np.random.default_rng(1).standard_normal((9, 64)).astype(np.float32)
    ids = ops.parameter((2, 3), np.int64)
    embedded = ops.gather(ops.constant(words), ids, ops.constant(0))
    weight = np.ascontiguousarray(WEIGHT.T) if by_row else WEIGHT
    mapped = with_bias(ops.matmul(embedded, ops.constant(weight), False, by_row), bias)
    model = openvino.Model([ops.concat([mapped, embedded], -1)], [ids])
    chosen = np.array([[0, 8, 3], [5, 5, 1]])
    expected = outputs(model, chosen)
    look_up_products(model)
    assert "MatMul" not in kinds(model)
    assert kinds(model).count("Gather") == 2
    np.testing.assert_allclose(outputs(model, chosen), expected, atol=1e-5)


@pytest.mark.parametrize("by_row", [False, True], ids=["by column", "by row"])
def test_single_numbers_are_added_up_without_a_product(*, by_row: bool) -> None:
    column = np.ascontiguousarray(WEIGHT[:, :1].T if by_row else WEIGHT[:, :1])
    values = np.random.default_rng(1).standard_normal((2, 64)).astype(np.float32)
    expected = outputs(linear(column, by_row=by_row), values)
    exact, low = (linear(column, by_row=by_row) for _ in range(2))
    add_up_columns(exact, bfloat16=False)
    add_up_columns(low, bfloat16=True)
    assert "MatMul" not in (*kinds(exact), *kinds(low))
    np.testing.assert_allclose(outputs(exact, values), expected, atol=1e-5)
    in_bfloat16 = nearest(nearest(values * WEIGHT[:, 0]).sum(axis=1))
    np.testing.assert_array_equal(outputs(low, values)[:, 0], in_bfloat16)


def test_wider_maps_stay_products() -> None:
    model = linear(WEIGHT, by_row=False)
    add_up_columns(model, bfloat16=True)
    assert "MatMul" in kinds(model)


@pytest.mark.skipif(
    "BF16" not in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"),
    reason="this processor has no bfloat16 instructions",
)
@pytest.mark.parametrize("bias", [None, WEIGHT[0]], ids=["without bias", "with bias"])
def test_what_products_in_bfloat16_add_up_stays_float32(bias: NDArray[np.float32] | None) -> None:
    """Rounded, logits around 20 would be off by 0.06, and words as likely as others would change places."""
    values = nearest(np.random.default_rng(1).standard_normal((2, 64)).astype(np.float32))
    weight = nearest(WEIGHT)

    def model() -> openvino.Model:
        given = ops.parameter(values.shape, np.float32)
        sums = with_bias(ops.matmul(given, ops.constant(weight), False, False), bias)
        return openvino.Model([ops.softmax(sums, -1)], [given])

    kept = model()
    keep_sums(kept)
    logits = values @ weight + (0 if bias is None else bias)
    expected = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    usual, found = (np.abs(outputs(one, values, hint="bf16") / expected - 1).max() for one in (model(), kept))
    assert found < 1e-4
    assert usual > 1e-2
    broken = np.full_like(values, np.nan)
    assert np.isnan(outputs(kept, broken, hint="bf16")).all()  # which the search reports


def test_a_buffer_of_bfloat16_is_what_a_graph_reads_and_writes() -> None:
    given = ops.parameter([2, 48], openvino.Type.bf16)
    doubled = ops.convert(ops.multiply(ops.convert(given, np.float32), ops.constant(np.float32(2))), "bf16")
    request = openvino.Core().compile_model(openvino.Model([doubled], [given]), "CPU").create_infer_request()
    here, there = _Bfloat16Buffer((2, 48)), _Bfloat16Buffer((2, 48))
    request.set_input_tensor(here.tensor)
    request.set_output_tensor(there.tensor)
    for values in (WEIGHT[:2], WEIGHT[2:3]):  # the second is broadcast
        here.write(values)
        np.testing.assert_array_equal(here.read(), np.broadcast_to(nearest(values), (2, 48)))
        request.infer()
        np.testing.assert_array_equal(there.read(), 2 * here.read())


def test_one_process_at_a_time_compiles_into_the_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise one removes as damaged what another is writing, and that one fails."""
    compile_model, found = openvino.Core.compile_model, list[Path]()

    def compile_alone(core: openvino.Core, model: openvino.Model, device: str, settings: dict[str, Any]) -> Any:
        found.append(Path(settings["CACHE_DIR"]))
        with (found[-1] / ".lock").open("a") as file, pytest.raises(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return compile_model(core, model, device, settings)

    monkeypatch.setattr(openvino.Core, "compile_model", compile_alone)
    with Captioner.open("examples/bundle", CaptionOptions(backend="openvino", threads=1)) as captioner:
        captioner.caption_pixels(np.zeros((1, 112, 112, 3), np.uint8))
    assert len(found) == 2
