"""Which convolutions of an encoder lose most to 8-bit integers, for what they compute."""

from __future__ import annotations

import tempfile
from collections.abc import Set
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto

from export.verification import OnnxGraph

_WORTH = 4
"""A convolution is worth floats if it loses so many times, for what it computes, what all that are left do."""


def most_sensitive(
    model: ModelProto, quantised: ModelProto, pixels: NDArray[np.uint8], *, share: float, always: Set[str]
) -> Set[str]:
    """Names of the convolutions that had better stay float, by what each alone does to the annotations.

    quantised : the same graph with all of them quantised
    pixels : uint8 (N, S, S, 3)
    share : of the multiply-adds of all others, what they may take at most
    always : names of those that stay float whatever they lose
    """
    if not share:
        return always
    names = _multiply_adds(model)
    work = {name: count for name, count in names.items() if name not in always}
    expected = _annotations(model, pixels)
    errors = {}
    for name in work:
        found = _annotations(with_floats(quantised, model, names.keys() - {name}), pixels)
        errors[name] = float(np.square(np.subtract(found, expected)).sum())
    return worth_floats(work, errors, share) | always


def with_floats(quantised: ModelProto, model: ModelProto, names: Set[str]) -> ModelProto:
    """The quantised graph, with the convolutions of these names as in the float graph.

    What no convolution reads in 8 bits is not rounded for others either.
    """
    mixed = ModelProto()
    mixed.CopyFrom(quantised)
    graph = mixed.graph
    originals = {node.name: node for node in model.graph.node}
    makers = {output: node for node in graph.node for output in node.output}
    rounded = {name for node in graph.node if node.op_type == "Conv" and node.name not in names for name in node.input}
    for node in graph.node:
        if node.name in names:
            node.input[:] = originals[node.name].input
        elif node.op_type != "DequantizeLinear":
            node.input[:] = [name if name in rounded else _float_source(name, makers) for name in node.input]
    _drop_unread(graph, {tensor.name: tensor for one in (model, quantised) for tensor in one.graph.initializer})
    return mixed


def _float_source(name: str, makers: dict[str, NodeProto]) -> str:
    """What a value was before it was quantised and dequantised."""
    maker = makers.get(name)
    return makers[maker.input[0]].input[0] if maker and maker.op_type == "DequantizeLinear" else name


def _drop_unread(graph: onnx.GraphProto, tensors: dict[str, onnx.TensorProto]) -> None:
    """Remove quantisation that nothing reads any more, and give the graph those of the tensors that it reads."""
    for kind in ("DequantizeLinear", "QuantizeLinear"):
        read = {name for node in graph.node for name in node.input}
        for node in [node for node in graph.node if node.op_type == kind and node.output[0] not in read]:
            graph.node.remove(node)
    read = {name for node in graph.node for name in node.input}
    del graph.initializer[:]
    graph.initializer.extend(tensor for name, tensor in tensors.items() if name in read)


def _annotations(model: ModelProto, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    with tempfile.TemporaryDirectory() as scratch:
        onnx.save(model, path := Path(scratch) / "encoder.onnx")
        return np.asarray(OnnxGraph(path, exact=True)({"pixels": pixels})["annotations"], np.float32)


def worth_floats(work: dict[str, int], errors: dict[str, float], share: float) -> set[str]:
    """Convolutions, highest error per multiply-add first, where it is far above that of all left and there is room."""
    rest, room = dict(errors), share * sum(work.values())
    for name in sorted(work, key=lambda one: errors[one] / work[one], reverse=True):
        mean = sum(rest.values()) / sum(work[one] for one in rest)
        if errors[name] > _WORTH * mean * work[name] and work[name] <= room:
            room -= work[name]
            del rest[name]
    return work.keys() - rest.keys()


def _multiply_adds(model: ModelProto) -> dict[str, int]:
    """Of every convolution, for one image."""
    graph = onnx.shape_inference.infer_shapes(model).graph
    axes = {value.name: value.type.tensor_type.shape.dim for value in graph.value_info}
    places = {name: int(np.prod([axis.dim_value for axis in dims[2:]])) for name, dims in axes.items()}
    weights = {tensor.name: int(np.prod(tensor.dims)) for tensor in graph.initializer}
    return {node.name: weights[node.input[1]] * places[node.output[0]] for node in graph.node if node.op_type == "Conv"}
