"""What OpenVINO's executor makes of a graph before it compiles it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import openvino
import pytest
from numpy.typing import NDArray

from engine.backends.ovino import read_graph, round_weights
from saccade.rounding import rounded


def weights(model: openvino.Model) -> dict[str, NDArray[np.float32]]:
    """Of convolutions and linear maps, by the name of the operator."""
    found = {}
    for node in model.get_ops():
        if node.get_type_name() in ("Convolution", "GroupConvolution", "MatMul"):
            source = node.input_value(1).get_node()
            source = source.input_value(0).get_node() if source.get_type_name() == "Reshape" else source
            if source.get_type_name() == "Constant":
                weight = source.data.copy()
                by_column = node.get_type_name() == "MatMul" and not node.get_attributes()["transpose_b"]
                found[node.get_friendly_name()] = weight.T if by_column else weight
    return found


@pytest.mark.parametrize("graph", ["encoder", "step"])
def test_weights_for_bfloat16_keep_the_sums_over_each_output(tiny_bundle: Path, graph: str) -> None:
    model = read_graph(openvino.Core(), tiny_bundle / f"{graph}.onnx")
    before = weights(model)
    round_weights(model)
    after = weights(model)
    assert len(before) >= 3
    assert after.keys() == before.keys()
    for name, weight in before.items():
        np.testing.assert_array_equal(after[name], rounded(weight, "bf16"))
        assert not np.array_equal(after[name], weight)


def test_a_graph_with_rounded_weights_computes_nearly_the_same(tiny_bundle: Path) -> None:
    core, pixels = openvino.Core(), np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), np.uint8)
    plain, low = (read_graph(core, tiny_bundle / "encoder.onnx") for _ in range(2))
    round_weights(low)
    hint = {"INFERENCE_PRECISION_HINT": "f32"}
    expected, found = (
        core.compile_model(model, "CPU", hint)({"pixels": pixels})["annotations"] for model in (plain, low)
    )
    assert 0 < np.linalg.norm(found - expected) < 0.02 * np.linalg.norm(expected)
