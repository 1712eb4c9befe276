"""Graphs whose uint8 inputs go through one Cast and nowhere else: TensorRT lets no other operator read uint8."""

from __future__ import annotations

import onnx
from onnx import ModelProto, NodeProto, TensorProto, helper


def cast_uint8_inputs(model: ModelProto) -> ModelProto:
    """The same graph, with a Cast to float32 in front of whatever read a uint8 input."""
    names = [value.name for value in model.graph.input if value.type.tensor_type.elem_type == TensorProto.UINT8]
    readers = {name: [node for node in model.graph.node if name in node.input] for name in names}
    wrong = {name: nodes for name, nodes in readers.items() if any(node.op_type != "Cast" for node in nodes)}
    for name, nodes in wrong.items():
        _cast_before(model, name, nodes)
    if wrong:
        del model.graph.value_info[:]  # what lay behind the input was uint8 as well
    return onnx.shape_inference.infer_shapes(model) if wrong else model


def _cast_before(model: ModelProto, name: str, readers: list[NodeProto]) -> None:
    floats = f"{name}_float"
    for node in readers:
        node.input[:] = [floats if one == name else one for one in node.input]
    model.graph.node.insert(0, helper.make_node("Cast", [name], [floats], f"cast_{name}", to=TensorProto.FLOAT))
