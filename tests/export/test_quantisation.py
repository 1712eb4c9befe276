"""8-bit encoders: what moves before rounding changes nothing, and what rounds worst stays float."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from export.centring import centre_clips
from export.quantisation import QuantisationOptions, RangeMethod, quantise_encoder
from export.sensitivity import with_floats, worth_floats
from export.verification import OnnxGraph
from saccade.errors import ConfigError
from tests.bundles import patchworks

PICTURES = patchworks(12, seed=1)
IMAGES = np.random.default_rng(0).normal(size=(2, 4, 9, 9)).astype(np.float32)
WIDTH = 6


def convolution(name: str, reads: str, *, inputs: int = WIDTH, size: int = 1, pad: int = 0) -> NodeProto:
    return helper.make_node(
        "Conv", [reads, f"{name}_weights", f"{name}_bias"], [name], name=name, pads=[pad] * 4, kernel_shape=[size] * 2
    )


def graph_of(nodes: list[NodeProto], output: str) -> ModelProto:
    """Random weights for convolutions of six channels, bounds of ReLU6 that all the activations share."""
    generator = np.random.default_rng(1)
    constants = {"low": np.array(0, np.float32), "high": np.array(6, np.float32)}
    for node in nodes:
        if node.op_type == "Conv":
            size = helper.get_node_attr_value(node, "kernel_shape")
            channels = 4 if node.input[0] == "images" else WIDTH
            constants[node.input[1]] = generator.normal(size=(WIDTH, channels, *size)).astype(np.float32)
            constants[node.input[2]] = generator.normal(size=WIDTH).astype(np.float32)
    graph = helper.make_graph(
        nodes,
        "toy",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, ["batch", 4, 9, 9])],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, None)],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def clip(name: str, reads: str) -> NodeProto:
    return helper.make_node("Clip", [reads, "low", "high"], [name], name=name)


def outputs(model: ModelProto) -> NDArray[np.float32]:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"images": IMAGES})[0], np.float32)


def bounds(model: ModelProto) -> dict[str, tuple[float, float]]:
    values = {one.name: numpy_helper.to_array(one) for one in model.graph.initializer}
    clips = [node for node in model.graph.node if node.op_type == "Clip"]
    return {node.name: (float(values[node.input[1]]), float(values[node.input[2]])) for node in clips}


def test_activations_are_centred_where_the_next_convolution_does_not_pad() -> None:
    """And the function stays what it was, though all of them shared their bounds."""
    model = graph_of(
        [
            convolution("first", "images", size=3, pad=1),
            clip("one", "first"),
            convolution("second", "one", size=3, pad=1),
            clip("two", "second"),
            convolution("third", "two"),
            clip("three", "third"),
            convolution("fourth", "three", size=3),
        ],
        "fourth",
    )
    centred = centre_clips(model)
    assert bounds(centred) == {"one": (0, 6), "two": (-3, 3), "three": (-3, 3)}
    expected = outputs(model)
    assert expected.std() > 1
    np.testing.assert_allclose(outputs(centred), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("reader", ["first", "one"])
def test_what_others_read_as_well_stays_where_it_is(reader: str) -> None:
    nodes = [convolution("first", "images"), clip("one", "first"), convolution("second", "one")]
    model = graph_of([*nodes, helper.make_node("Add", [reader, "second"], ["sum"])], "sum")
    centred = centre_clips(model)
    assert bounds(centred) == {"one": (0, 6)}
    np.testing.assert_array_equal(outputs(centred), outputs(model))


@pytest.mark.parametrize(
    ("share", "kept"),
    [
        (0.0, ""),
        (0.05, "a"),  # b has no room
        (0.1, "a"),
        (0.2, "ab"),  # c loses less than four times what d does, for what it computes
        (0.9, "ab"),
    ],
)
def test_floats_go_to_what_loses_most_for_what_it_computes(share: float, kept: str) -> None:
    work = {"a": 5, "b": 10, "c": 25, "d": 60}
    errors = {"a": 50.0, "b": 8.0, "c": 3.0, "d": 4.0}
    assert worth_floats(work, errors, share) == set(kept)


def test_errors_as_even_as_the_work_keep_nothing_float() -> None:
    assert worth_floats({"a": 1, "b": 10, "c": 30}, {"a": 1.5, "b": 9.0, "c": 30.0}, 0.5) == set()


@pytest.fixture(scope="module")
def encoder(tiny_bundle: Path) -> Path:
    return tiny_bundle / "encoder.onnx"


def convolutions(model: ModelProto) -> list[NodeProto]:
    return [node for node in model.graph.node if node.op_type == "Conv"]


def kept_float(model: ModelProto) -> list[str]:
    made = {output: node.op_type for node in model.graph.node for output in node.output}
    return [node.name for node in convolutions(model) if made.get(node.input[1]) != "DequantizeLinear"]


def relative_error(path: Path, expected: Path) -> float:
    found, wanted = (OnnxGraph(one, exact=True)({"pixels": PICTURES})["annotations"] for one in (path, expected))
    return float(np.linalg.norm(np.subtract(found, wanted)) / np.linalg.norm(wanted))


def test_a_convolution_that_8_bits_would_ruin_stays_float(encoder: Path, tmp_path: Path) -> None:
    """One channel is made a thousand times smaller by one convolution and larger by the next: the same function."""
    model = onnx.load(encoder)
    before, after = next(
        (a, b)
        for a, b in pairwise(convolutions(model))
        if b.input[0] in {name for node in model.graph.node if a.output[0] in node.input for name in node.output}
    )
    weights = {one.name: one for one in model.graph.initializer}
    for name, channel, factor in ((before.input[1], 0, 1e-3), (before.input[2], 0, 1e-3), (after.input[1], 1, 1e3)):
        value = numpy_helper.to_array(weights[name]).copy()
        value[(slice(None),) * channel + (0,)] *= factor
        weights[name].CopyFrom(numpy_helper.from_array(value, name))
    onnx.save(model, spoilt := tmp_path / "spoilt.onnx")
    errors = {}
    for share in (0.0, 0.3):
        path = tmp_path / f"{share}.onnx"
        quantise_encoder(spoilt, path, PICTURES, QuantisationOptions(float_share=share))
        errors[share] = relative_error(path, spoilt)
        assert (after.name in kept_float(onnx.load(path))) == (share > 0)
    assert errors[0.3] < 0.5 * errors[0.0]


@pytest.mark.parametrize("method", ["percentile", "minmax", "entropy"])
def test_only_what_convolutions_read_is_quantised(encoder: Path, tmp_path: Path, method: RangeMethod) -> None:
    """So that each is fused with the activation and the residual sum behind it."""
    quantise_encoder(encoder, path := tmp_path / "encoder.onnx", PICTURES, QuantisationOptions(method=method))
    model = onnx.load(path)
    read = {name for node in convolutions(model) for name in node.input}
    pairs = [node for node in model.graph.node if node.op_type == "DequantizeLinear"]
    assert len(pairs) > len(convolutions(model))
    assert {node.output[0] for node in pairs} <= read
    assert relative_error(path, encoder) < 0.1


def test_with_all_convolutions_in_floats_nothing_is_rounded(encoder: Path, tmp_path: Path) -> None:
    quantise_encoder(encoder, path := tmp_path / "encoder.onnx", PICTURES, QuantisationOptions(float_share=0))
    quantised, model = onnx.load(path), onnx.load(encoder)
    joined = {node.output[0] for node in model.graph.node if node.op_type == "Concat"}
    assert kept_float(quantised) == [node.name for node in convolutions(model) if node.input[0] in joined]
    names = {node.name for node in convolutions(model)}
    onnx.save(with_floats(quantised, centre_clips(model), names), floats := tmp_path / "floats.onnx")
    assert {node.op_type for node in onnx.load(floats).graph.node}.isdisjoint({"QuantizeLinear", "DequantizeLinear"})
    assert relative_error(floats, encoder) < 1e-5


@pytest.mark.parametrize("share", [-0.1, 1.0])
def test_a_share_that_is_none_is_refused(share: float) -> None:
    with pytest.raises(ConfigError, match="float_share must be from 0 to below 1"):
        QuantisationOptions(float_share=share)
