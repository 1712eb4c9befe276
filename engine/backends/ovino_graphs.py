"""A graph of a bundle with the operators that OpenVINO computes best: the same numbers, but for rounding."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import openvino
from numpy.typing import NDArray
from openvino import opset11 as ops

from saccade.rounding import rounded

HALVED = frozenset({"annotations", "keys"})
"""What lies in memory in bfloat16 where the arithmetic is: every step reads it, and would round it again."""


def read_graph(core: openvino.Core, path: Path, *, bfloat16: bool = False) -> openvino.Model:
    """Read an ONNX graph and change it for float32, or for OpenVINO's hint to compute in bfloat16."""
    model = core.read_model(path)
    keep_order(model)
    tanh_by_exp(model)
    look_up_products(model)
    if bfloat16:
        round_weights(model)
    add_up_columns(model, bfloat16=bfloat16)
    if bfloat16:
        halve(model)
        keep_sums(model)
    model.validate_nodes_and_infer_types()
    return model


def keep_order(model: openvino.Model) -> None:
    """Let TopK leave equal values in the order of their places, as ONNX asks and OpenVINO's own choice does not."""
    for node in model.get_ops():
        if node.get_type_name() == "TopK":
            ordered = ops.topk(*node.input_values(), **node.get_attributes() | {"stable": True})
            for place in range(2):
                node.output(place).replace(ordered.output(place))


def tanh_by_exp(model: openvino.Model) -> None:
    """Compute tanh by way of exp, to within 1e-7: on AVX2, OpenVINO's own takes four times as long."""
    for node in model.get_ops():
        if node.get_type_name() == "Tanh":
            one, two = (ops.constant(np.float32(value)) for value in (1, 2))
            tanh = one - two / (one + ops.exp(ops.multiply(two, node.input_value(0))))
            node.output(0).replace(tanh.output(0))


def look_up_products(model: openvino.Model) -> None:
    """Look up the linear maps of a table's rows, such as of words, instead of mapping the rows that were looked up."""
    for product, weight in _linear(model):
        rows = product.input_value(0).get_node()
        table = _constant(rows.input_value(0)) if rows.get_type_name() == "Gather" else None
        if table is not None and table.ndim == 2:
            sums, bias = _sums(product)
            sums.replace(ops.gather(_as_constant(table @ weight + bias), *rows.input_values()[1:]).output(0))


def add_up_columns(model: openvino.Model, *, bfloat16: bool) -> None:
    """Weigh and add up what linear maps to single numbers read, such as energies: their kernel is made for many.

    In bfloat16, so is what is added up and what comes out, as of a product: OpenVINO has to be told, or takes float32.
    """
    for product, weight in _linear(model):
        if weight.shape[1] == 1:
            weighed = ops.multiply(product.input_value(0), ops.constant(weight[:, 0]))
            if bfloat16:
                weighed = ops.convert(weighed, "bf16")
            sums = ops.reduce_sum(weighed, ops.constant([-1]), keep_dims=True)
            product.output(0).replace((ops.convert(sums, "f32") if bfloat16 else sums).output(0))


def round_weights(model: openvino.Model) -> None:
    """Make weights of convolutions and linear maps bfloat16 numbers that keep their sums, unlike OpenVINO's rounding.

    Those that are quantised already stay as they are.
    """
    weights = list(_weights(model))
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for (source, _), found in zip(weights, pool.map(_rounded, weights), strict=True):
            source.output(0).replace(_as_constant(found).output(0))


def _weights(model: openvino.Model) -> Iterator[tuple[openvino.Node, bool]]:
    """Constants of float32 that products read, and whether each column is of an output instead of each row."""
    for node in model.get_ops():
        kind = node.get_type_name()
        if kind not in ("Convolution", "GroupConvolution", "MatMul"):
            continue
        source = node.input_value(1).get_node()
        if source.get_type_name() == "Reshape":
            source = source.input_value(0).get_node()
        if source.get_type_name() == "Constant" and source.get_element_type() == openvino.Type.f32:
            yield source, kind == "MatMul" and not node.get_attributes()["transpose_b"]


def _rounded(weight: tuple[openvino.Node, bool]) -> NDArray[np.float32]:
    source, by_column = weight
    found = rounded(source.data.T, "bf16").T if by_column else rounded(source.data, "bf16")
    return np.ascontiguousarray(found)


def keep_sums(model: openvino.Model) -> None:
    """Keep what linear maps add up, such as logits, in float32 unless it is converted: OpenVINO would round it.

    What it writes has the type of the last operator fused to the product, and a slope of one changes nothing.
    """
    for product, _ in _linear(model):
        sums, _ = _sums(product)
        readers = list(sums.get_target_inputs())
        if all(reader.get_node().get_type_name() == "Convert" for reader in readers):
            continue
        kept = ops.prelu(sums, ops.constant(np.ones(1, np.float32)))
        for reader in readers:
            reader.replace_source_output(kept.output(0))


def halve(model: openvino.Model) -> None:
    """Make inputs and outputs of `HALVED` bfloat16."""
    for given in model.get_parameters():
        if given.output(0).names & HALVED:
            given.set_element_type(openvino.Type.bf16)
            for reader in given.output(0).get_target_inputs():
                _convert_behind(given, reader)
    for result in model.get_results():
        made = result.input_value(0)
        if made.names & HALVED:
            halved = ops.convert(made, "bf16")
            halved.output(0).set_names(made.names)
            made.set_names(set())
            result.input(0).replace_source_output(halved.output(0))


def _convert_behind(given: openvino.Node, reader: openvino.Input) -> None:
    """Let a reader have float32, but after a change of shape alone: OpenVINO fuses what follows the conversion then."""
    node = reader.get_node()
    if node.get_type_name() == "Unsqueeze":
        shaped = ops.unsqueeze(given, node.input_value(1))
        node.output(0).replace(ops.convert(shaped, "f32").output(0))
    else:
        reader.replace_source_output(ops.convert(given, "f32").output(0))


def _linear(model: openvino.Model) -> Iterator[tuple[openvino.Node, NDArray[np.float32]]]:
    """Products with constants, and their weights (inputs, outputs)."""
    for node in model.get_ordered_ops():
        if node.get_type_name() == "MatMul":
            weight, attributes = _constant(node.input_value(1)), node.get_attributes()
            if weight is not None and weight.ndim == 2 and not attributes["transpose_a"]:
                yield node, np.ascontiguousarray(weight.T if attributes["transpose_b"] else weight)


def _sums(product: openvino.Node) -> tuple[openvino.Output, NDArray[np.float32]]:
    """The product, or its sum with a constant where nothing else reads it; and that constant, or zero."""
    readers = [reader.get_node() for reader in product.output(0).get_target_inputs()]
    if len(readers) == 1 and readers[0].get_type_name() == "Add":
        for value in readers[0].input_values():
            bias = _constant(value)
            if bias is not None:
                return readers[0].output(0), bias
    return product.output(0), np.zeros(1, np.float32)


def _constant(value: openvino.Output) -> NDArray[Any] | None:
    node = value.get_node()
    return node.data if node.get_type_name() == "Constant" else None


def _as_constant(values: NDArray[np.float32]) -> openvino.Node:
    """What `ops.constant` makes, which takes half a minute for a thousand million numbers: it makes a list of them."""
    return openvino.op.Constant(values, shared_memory=False)
