"""What OpenVINO's executor makes of a graph before it compiles it."""

from __future__ import annotations

import fcntl
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import openvino
import pytest
import torch
from numpy.typing import NDArray
from openvino import opset11 as ops

from engine.backends.ovino import _Bfloat16Buffer, open_backend
from engine.backends.ovino_graphs import (
    add_up_columns,
    halve,
    keep_sums,
    look_up_products,
    read_graph,
    round_weights,
)
from engine.captioner import Captioner, CaptionOptions
from export.bundle import ExportOptions, export_bundle
from export.verification import measure_errors
from saccade.bundle import Bundle, Precision
from saccade.rounding import bfloat16_bits, from_bfloat16_bits
from tests.bundles import SPEC, VOCABULARY, patchworks, save_captioner
from training.checkpoint import Checkpoint, load_checkpoint
from training.encoders import EncoderOptions
from training.model import DecoderOptions, build_captioner

WEIGHT = np.random.default_rng(0).standard_normal((64, 48)).astype(np.float32)
INPUTS = np.ones((2, 64), np.float32)

needs_bfloat16 = pytest.mark.skipif(
    "BF16" not in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"),
    reason="this processor has no bfloat16 instructions",
)


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
    model = linear(column(by_row=by_row), by_row=by_row)
    values = np.random.default_rng(1).standard_normal((2, 64)).astype(np.float32)
    expected = outputs(model, values)
    add_up_columns(model, bfloat16=False)
    assert "MatMul" not in kinds(model)
    np.testing.assert_allclose(outputs(model, values), expected, atol=1e-5)


@needs_bfloat16
@pytest.mark.parametrize("by_row", [False, True], ids=["by column", "by row"])
def test_in_bfloat16_terms_and_sums_of_single_numbers_are_rounded(*, by_row: bool) -> None:
    model = linear(column(by_row=by_row), by_row=by_row)
    values = np.random.default_rng(1).standard_normal((2, 64)).astype(np.float32)
    add_up_columns(model, bfloat16=True)
    assert "MatMul" not in kinds(model)
    in_bfloat16 = nearest(nearest(values * WEIGHT[:, 0]).sum(axis=1))
    np.testing.assert_array_equal(outputs(model, values)[:, 0], in_bfloat16)


def column(*, by_row: bool) -> NDArray[np.float32]:
    return np.ascontiguousarray(WEIGHT[:, :1].T if by_row else WEIGHT[:, :1])


def test_rows_of_an_input_and_tables_that_would_be_too_large_are_mapped(monkeypatch: pytest.MonkeyPatch) -> None:
    rows, ids = ops.parameter((9, 64), np.float32), ops.parameter((2,), np.int64)
    of_input = ops.matmul(ops.gather(rows, ids, ops.constant(0)), ops.constant(WEIGHT), False, False)
    model = openvino.Model([of_input], [rows, ids])
    look_up_products(model)
    assert "MatMul" in kinds(model)
    of_table = ops.matmul(ops.gather(ops.constant(INPUTS), ids, ops.constant(0)), ops.constant(WEIGHT), False, False)
    for largest, is_mapped in ((INPUTS.shape[0] * WEIGHT.shape[1] * 4 - 1, True), (1 << 27, False)):
        monkeypatch.setattr("engine.backends.ovino_graphs._LARGEST_TABLE", largest)
        model = openvino.Model([of_table], [ids])
        look_up_products(model)
        assert ("MatMul" in kinds(model)) == is_mapped


def test_a_bias_belongs_to_a_product_that_nothing_else_reads() -> None:
    ids = ops.parameter((2,), np.int64)
    mapped = ops.matmul(ops.gather(ops.constant(INPUTS), ids, ops.constant(0)), ops.constant(WEIGHT), False, False)
    model = openvino.Model([ops.concat([mapped, ops.add(mapped, ops.constant(WEIGHT[0]))], -1)], [ids])
    chosen = np.array([1, 0])
    expected = outputs(model, chosen)
    look_up_products(model)
    assert "Add" in kinds(model)
    np.testing.assert_allclose(outputs(model, chosen), expected, atol=1e-5)


def test_sums_that_are_rounded_next_are_rounded_by_the_product() -> None:
    """Keeping them would cost a pass over memory, and gain nothing."""
    given = ops.parameter(INPUTS.shape, np.float32)
    first, second, third = (ops.matmul(given, ops.constant(WEIGHT), False, False) for _ in range(3))
    product = ops.matmul(ops.relu(second), ops.constant(WEIGHT), False, True)
    model = openvino.Model([ops.convert(first, "bf16"), ops.add(product, product), third], [given])
    keep_sums(model)
    assert kinds(model).count("PRelu") == 2  # of the product that is added, and of the output


def test_wider_maps_stay_products() -> None:
    model = linear(WEIGHT, by_row=False)
    add_up_columns(model, bfloat16=True)
    assert "MatMul" in kinds(model)


@needs_bfloat16
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


SMALL = DecoderOptions(attention_width=16, embedding_width=24, hidden_width=32)
OPTIONS = {
    "query with the word, relu, linear output, deep MLPs": replace(
        SMALL,
        query="hidden+word",
        gate="vector",
        nonlinearity="relu",
        attention_layers=2,
        initial_layers=2,
        initial_nonlinearity="none",
        output="linear",
    ),
    "hard, bounded keys, narrower annotations, no gate, deep output": replace(
        SMALL,
        attention="hard",
        keys_nonlinearity="tanh",
        annotation_width=24,
        gate="none",
        output="deep-without-word",
        output_nonlinearity="tanh",
        output_layers=2,
    ),
    "no attention": replace(SMALL, attention="none"),
}


@pytest.fixture(scope="module", params=OPTIONS.values(), ids=list(OPTIONS))
def other(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Checkpoint, Bundle]:
    """A model with other switches than the tiny one, of random weights, and its bundle."""
    folder = tmp_path_factory.mktemp("other")
    torch.manual_seed(0)
    encoder = EncoderOptions(name="compact")
    captioner = build_captioner(encoder, request.param, words=len(VOCABULARY), mean=SPEC.mean, std=SPEC.std)
    checkpoint = save_captioner(folder / "checkpoint", captioner)
    export_bundle(checkpoint, folder / "bundle", ExportOptions())
    return load_checkpoint(checkpoint), Bundle.open(folder / "bundle")


@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-5), pytest.param("bf16", 0.02, marks=needs_bfloat16)])
def test_whatever_switches_a_model_has_its_outputs_are_those_of_pytorch(
    other: tuple[Checkpoint, Bundle], precision: Precision, tolerance: float
) -> None:
    checkpoint, bundle = other
    with open_backend(bundle, threads=1, precision=precision) as backend:
        encoder, step = (partial(backend.run, name) for name in ("encoder", "step"))
        errors = measure_errors(checkpoint, encoder, step, patchworks(3, seed=1))
    assert max(errors.values()) < tolerance, errors


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
