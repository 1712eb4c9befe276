"""Other precisions: what stays float, what TensorRT asks for, and what each is said to cost."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper

import saccade.machine
from engine.backends.base import open_backend
from export.bundle import ExportOptions, export_bundle
from export.verification import OnnxGraph
from saccade.bundle import Bundle, Precision
from saccade.errors import BackendError, ConfigError
from saccade.machine import saturates_int8
from saccade.search import SearchOptions, search
from tests.bundles import MAX_LENGTH, patchworks, save_patchworks

PICTURES = patchworks(12, seed=1)
FLOAT = {TensorProto.FLOAT: "float32", TensorProto.FLOAT16: "float16", TensorProto.BFLOAT16: "bfloat16"}


@pytest.fixture(scope="module")
def bundle(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    folder = tmp_path_factory.mktemp("variants")
    options = ExportOptions(
        precisions=("int8", "fp16", "bf16"), calibration=tuple(save_patchworks(folder / "pictures", 96))
    )
    export_bundle(tiny_checkpoint, folder / "bundle", options)
    return Bundle.open(folder / "bundle")


def graph_of(bundle: Bundle, name: str, precision: Precision) -> onnx.ModelProto:
    return onnx.shape_inference.infer_shapes(onnx.load(bundle.path / bundle.graph(name, precision).file))


def error(found: NDArray[Any], right: NDArray[Any]) -> float:
    """Root of the mean square, in units of that of what is right."""
    wanted = np.asarray(right, np.float32)
    return float(np.linalg.norm(np.asarray(found, np.float32) - wanted) / np.linalg.norm(wanted))


def test_every_precision_says_what_it_costs(bundle: Bundle) -> None:
    """And bfloat16, with 8 bits of precision, costs more than float16 with 11."""
    errors = {
        name: variant.accuracy["annotations_relative_error"] for name, variant in bundle.manifest.variants.items()
    }
    assert 1e-5 < errors["fp16"] < 2e-3 < errors["bf16"] < 2e-2
    assert 1e-3 < errors["int8"] < 0.1
    for variant in bundle.manifest.variants.values():
        assert variant.accuracy["images"] == 12  # every eighth of those for calibration
        assert 0.5 <= variant.accuracy["same_captions"] <= 1
    assert bundle.manifest.variants["fp16"].accuracy["same_captions"] >= 0.9


@pytest.mark.parametrize(("precision", "dtype"), [("fp16", "float16"), ("bf16", "bfloat16")])
def test_annotations_and_states_have_16_bits_and_scores_32(bundle: Bundle, precision: Precision, dtype: str) -> None:
    encoder, step = bundle.graph("encoder", precision), bundle.graph("step", precision)
    assert {tensor.dtype for tensor in encoder.outputs} == {dtype}
    types = {tensor.name: tensor.dtype for tensor in (*step.inputs, *step.outputs)}
    assert {types[name] for name in ("annotations", "keys", "hidden", "next_hidden", "cell", "next_cell")} == {dtype}
    assert {types[name] for name in ("scores", "next_scores", "alphas", "word_bias")} == {"float32"}


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_softmax_and_top_k_are_computed_in_float32(bundle: Bundle, precision: Precision) -> None:
    model = graph_of(bundle, "step", precision)
    types = {value.name: FLOAT.get(value.type.tensor_type.elem_type) for value in model.graph.value_info}
    inputs = {node.op_type: types[node.input[0]] for node in model.graph.node if node.input and node.input[0] in types}
    assert inputs["Softmax"] == inputs["TopK"] == inputs["ReduceLogSumExp"] == "float32"
    assert inputs["Tanh"] == inputs["Sigmoid"] != "float32"


def test_the_step_of_an_8_bit_bundle_is_the_one_in_float32(bundle: Bundle) -> None:
    assert bundle.graph("step", "int8") == bundle.graph("step")
    assert bundle.graph("encoder", "int8") != bundle.graph("encoder")


def test_8_bit_integers_are_symmetric_and_weights_have_a_scale_per_channel(bundle: Bundle) -> None:
    model = graph_of(bundle, "encoder", "int8")
    values = {one.name: numpy_helper.to_array(one) for one in model.graph.initializer}
    pairs = [node for node in model.graph.node if node.op_type in ("QuantizeLinear", "DequantizeLinear")]
    assert pairs
    for node in pairs:
        zero = values[node.input[2]]
        assert zero.dtype == np.int8
        assert not zero.any()
    weights = [values[node.input[0]] for node in pairs if node.input[0] in values]
    scales = [values[node.input[1]] for node in pairs if node.input[0] in values]
    assert [len(weight) for weight in weights] == [len(scale) for scale in scales]
    assert max(int(np.abs(weight.astype(np.int16)).max()) for weight in weights) == 127


def test_8_bit_integers_are_not_found_without_images() -> None:
    with pytest.raises(ConfigError, match=r"8-bit integers need images .*--calibrate"):
        ExportOptions(precisions=("int8",))


@pytest.mark.parametrize("backend", ["openvino", "ort"])
def test_8_bit_encoders_compute_what_is_written_or_are_refused(bundle: Bundle, backend: str) -> None:
    """Processors without VNNI add up 8-bit products in 16 bits, which overflow: OpenVINO cannot be kept from it."""
    if backend == "openvino" and saturates_int8():
        with pytest.raises(BackendError, match="has no VNNI instructions"):
            open_backend(backend, bundle, precision="int8")
        return
    right, written = (
        OnnxGraph(bundle.path / graph.file, exact=True)({"pixels": PICTURES})
        for graph in (bundle.graph("encoder"), bundle.graph("encoder", "int8"))
    )
    with open_backend(backend, bundle, precision="int8") as opened:
        found = opened.run("encoder", {"pixels": PICTURES})
    for name in ("annotations", "keys", "hidden"):
        assert error(found[name], right[name]) < 1.25 * error(written[name], right[name])
        if saturates_int8():  # and is then computed node by node in float32
            assert error(found[name], written[name]) < 0.02


def test_what_joins_a_constant_is_not_quantised(bundle: Bundle) -> None:
    """The encoder of the tests joins coordinates to its activations, which OpenVINO would quantise each by itself."""
    graph = graph_of(bundle, "encoder", "int8").graph
    joined = {node.output[0] for node in graph.node if node.op_type == "Concat"}
    readers = [node.op_type for node in graph.node if joined.intersection(node.input)]
    assert "Conv" in readers
    assert "QuantizeLinear" not in readers


def test_16_bit_graphs_run_on_a_cpu_to_see_what_they_cost(bundle: Bundle) -> None:
    options = SearchOptions(max_length=MAX_LENGTH)
    captions = []
    for precision in ("fp32", "fp16"):
        with open_backend("ort", bundle, precision=precision) as opened:
            found = search(opened.begin(PICTURES, options, with_alphas=False), bundle.vocabulary, options)
            captions.append([image[0].tokens for image in found])
    assert sum(a == b for a, b in zip(*captions, strict=True)) >= 11


@pytest.mark.parametrize(
    ("flags", "saturates"),
    [("flags\t: fpu avx2 avx512f", True), ("flags\t: fpu avx2 avx_vnni", False), ("no such line", False)],
)
def test_a_processor_is_known_by_its_flags(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flags: str, saturates: bool
) -> None:
    (tmp_path / "cpuinfo").write_text(f"processor\t: 0\n{flags}\n")
    monkeypatch.setattr(saccade.machine, "_INFORMATION", tmp_path / "cpuinfo")
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    assert saturates_int8() is saturates
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    assert not saturates_int8()
