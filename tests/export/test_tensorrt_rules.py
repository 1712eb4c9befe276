"""TensorRT's rules of operators: our graphs keep them, and a graph that breaks one is found."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from export.graphs import export_encoder, export_step
from export.tensorrt_rules import broken_rules, require_rules
from export.uint8_inputs import cast_uint8_inputs
from saccade.errors import ExportError
from tests.bundles import make_checkpoint, patchworks
from training.checkpoint import load_checkpoint

EXAMPLE = Path(__file__).parents[2] / "examples" / "bundle"

Change = Callable[[onnx.ModelProto], object]


def model(*nodes: onnx.NodeProto, opset: int = 20, **constants: np.ndarray) -> onnx.ModelProto:
    """A graph from x float32 (images, beam, 6) and n int64 (images, beam) over nodes; the last one's output is y."""
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["images", "beam", 6])
    n = helper.make_tensor_value_info("n", TensorProto.INT64, ["images", "beam"])
    y = helper.make_empty_tensor_value_info(nodes[-1].output[0])
    values = [numpy_helper.from_array(values, name) for name, values in constants.items()]
    graph = helper.make_graph(nodes, "graph", [x, n], [y], values)
    return onnx.shape_inference.infer_shapes(helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)]))


def node(operator: str, *inputs: str, to: str = "y", **attributes: Any) -> onnx.NodeProto:
    outputs = [to, "places"] if operator == "TopK" else [to]
    return helper.make_node(operator, inputs, outputs, name="it", **attributes)


ONE = np.array([1])
ZERO, FIVE = np.array(0, np.int8), np.array(5, np.int8)
SCALE = np.array(0.5, np.float32)
ZEROS = np.zeros((1, 1, 6), np.int64)


@pytest.mark.parametrize("graph", ["encoder", "step"])
@pytest.mark.parametrize("beam", [1, 3, 5])
def test_the_graphs_of_the_example_keep_all_rules(graph: str, beam: int) -> None:
    require_rules(EXAMPLE / f"{graph}.onnx", beam=beam)


def test_a_grid_whose_shares_are_too_many_to_be_folded_keeps_all_rules(tmp_path: Path) -> None:
    """23 x 23 places of 16 cells: the exporter leaves some of what makes their 8,464 shares to the graph."""
    checkpoint = load_checkpoint(make_checkpoint(tmp_path / "checkpoint", grid=23))
    export_encoder(checkpoint, tmp_path / "encoder.onnx")
    export_step(checkpoint, tmp_path / "step.onnx")
    for graph in ("encoder", "step"):
        require_rules(tmp_path / f"{graph}.onnx", beam=3)


@pytest.mark.parametrize("graph", ["encoder", "step"])
@pytest.mark.parametrize("kind", ["hard_bundle", "pooled_bundle"])
def test_graphs_of_hard_attention_and_of_finer_grids_keep_all_rules(
    graph: str, kind: str, request: pytest.FixtureRequest
) -> None:
    require_rules(request.getfixturevalue(kind) / f"{graph}.onnx", beam=3)


@pytest.mark.parametrize(
    ("graph", "problem"),
    [
        (model(node("Relu", "x"), opset=8), "opset 8, not 9 to 25"),
        (model(node("Relu", "x"), opset=26), "opset 26, not 9 to 25"),
        (model(node("Det", "x")), "Det it is not supported"),
        (model(node("NonZero", "x")), "NonZero it has an output whose shape depends on data"),
        (model(node("Unique", "n")), "Unique it has an output whose shape depends on data"),
        (
            model(helper.make_node("Cast", ["x"], ["y"], "it", to=TensorProto.DOUBLE)),
            "y is DOUBLE",
        ),
        (model(node("ReduceSum", "x", "n")), "ReduceSum it takes n, which must be an initialiser or a constant"),
        (model(node("Squeeze", "x", "n")), "Squeeze it takes n, which must be an initialiser or a constant"),
        (model(node("Unsqueeze", "x", "n")), "Unsqueeze it takes n, which must be an initialiser or a constant"),
        (
            model(node("Slice", "x", "one", "one", "n"), one=ONE),
            "Slice it takes n, which must be an initialiser or a constant",
        ),
        (model(node("CumSum", "x", "n")), "CumSum it takes n, which must be an initialiser or a constant"),
        (model(node("Reshape", "x", "n")), "Reshape it has a shape that depends on data, on n"),
        (model(node("Expand", "x", "n")), "Expand it has a shape that depends on data, on n"),
        (model(node("TopK", "x", "k"), k=np.array([3841])), "TopK it has K = 3841, 3840 at most"),
        (model(node("TopK", "x", "n")), "TopK it has a K that is not fixed"),
        (model(node("TopK", "x", "one", sorted=0), one=ONE), "TopK it is not sorted"),
        (
            model(helper.make_node("Shape", ["x"], ["k"], end=1), node("TopK", "x", "k")),
            "TopK it has a K that is not fixed",  # the number of images
        ),
        (
            model(
                helper.make_node("Unsqueeze", ["n", "two"], ["m"]),
                node("Add", "m", "six"),
                two=np.array([2]),
                six=ZEROS,
            ),
            "Add it is int64 arithmetic over ['images', 'beam', 6]",
        ),
        (
            model(node("QuantizeLinear", "x", "scale", "zero"), scale=SCALE, zero=FIVE),
            "QuantizeLinear it has a zero point that is not 0",
        ),
        (
            model(
                helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["q"]),
                node("DequantizeLinear", "q", "scale", "five"),
                scale=SCALE,
                zero=ZERO,
                five=FIVE,
            ),
            "DequantizeLinear it has a zero point that is not 0",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_broken_rule_is_found(graph: onnx.ModelProto, problem: str) -> None:
    assert problem in broken_rules(graph, beam=3)


def test_operators_of_another_domain_are_found() -> None:
    graph = model(node("Relu", "x"))
    graph.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    assert broken_rules(graph, beam=3) == ["operators of the domain com.microsoft"]


@pytest.mark.parametrize(
    "graph",
    [
        model(node("ReduceSum", "x", "one"), one=ONE),
        model(node("Add", "n", "n")),
        model(helper.make_node("Shape", ["x"], ["k"], start=1, end=2), node("TopK", "x", "k")),
        model(helper.make_node("Shape", ["x"], ["s"]), node("Expand", "x", "s")),
        model(node("QuantizeLinear", "x", "scale", "zero"), scale=SCALE, zero=ZERO),
    ],
    ids=["constant axes", "int64 per row", "beam", "shape of a shape", "zero point 0"],
)
def test_what_keeps_the_rules_passes(graph: onnx.ModelProto) -> None:
    assert broken_rules(graph, beam=3) == []


def pixels_first(operator: str) -> onnx.ModelProto:
    pixels = helper.make_tensor_value_info("pixels", TensorProto.UINT8, ["images", 64, 64, 3])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    nodes = [
        helper.make_node(operator, ["pixels"], ["t"], "first"),
        helper.make_node("Cast", ["t"], ["y"], to=TensorProto.FLOAT),
    ]
    graph = helper.make_graph(nodes, "graph", [pixels], [y])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


@pytest.mark.parametrize("operator", ["Transpose", "Shape"])
def test_pixels_go_into_a_cast_first(operator: str) -> None:
    """TensorRT refuses uint8 in all other operators, even in those that only move or measure it."""
    graph = pixels_first(operator)
    pixels = patchworks(2, seed=1)
    before = onnxruntime.InferenceSession(graph.SerializeToString()).run(None, {"pixels": pixels})
    assert f"{operator} first reads pixels, which is uint8 and may go into a Cast alone" in broken_rules(graph, beam=1)
    changed = cast_uint8_inputs(graph)
    assert broken_rules(changed, beam=1) == []
    after = onnxruntime.InferenceSession(changed.SerializeToString()).run(None, {"pixels": pixels})
    assert np.array_equal(before[0], after[0])


def test_every_broken_rule_is_told(tmp_path: Path) -> None:
    onnx.save(model(node("Det", "x"), opset=8), tmp_path / "graph.onnx")
    with pytest.raises(ExportError) as caught:
        require_rules(tmp_path / "graph.onnx", beam=3)
    assert str(caught.value).startswith(
        f"{tmp_path}/graph.onnx breaks the rules of TensorRT: opset 8, not 9 to 25; Det it is not supported: export"
    )
