"""A graph of a bundle with the operators that OpenVINO computes best: the same numbers, but for rounding."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import cast

import numpy as np
import openvino
from numpy.typing import NDArray
from openvino import opset11 as ops

from saccade.rounding import rounded

HALVED = frozenset({"annotations", "keys"})
"""What lies in memory in bfloat16 where the arithmetic is: every step reads it, and would round it again."""
_ROUNDING = ("Convert", "MatMul", "Relu")
"""What reads bfloat16 as well, Relu with a product or a conversion behind it."""
_LARGEST_TABLE = 1 << 27
"""Bytes; it is in memory and in the cache once for each batch and beam."""
_MAX_WORKERS = 4
"""Each takes seven times the weight that it rounds."""


def read_graph(core: openvino.Core, path: Path, *, bfloat16: bool = False) -> openvino.Model:
    """Read an ONNX graph and change it for float32, or for OpenVINO's hint to compute in bfloat16."""
    model = core.read_model(path)
    keep_order(model)
    tanh_by_exp(model)
    look_up_products(model)  # of weights that are not rounded yet
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
        table = _looked_up(rows)
        if table is not None and len(table) * weight.shape[1] * weight.itemsize <= _LARGEST_TABLE:
            sums, bias = _sums(product, weight.shape[1])
            mapped = table @ weight
            mapped += bias
            sums.replace(ops.gather(_as_constant(mapped), *rows.input_values()[1:]).output(0))


def _looked_up(rows: openvino.Node) -> NDArray[np.float32] | None:
    """The table (rows, width) that these are rows of."""
    if rows.get_type_name() != "Gather":
        return None
    table, (axis,) = _constant(rows.input_value(0)), rows.input_value(2).get_node().data.flat
    return table if table is not None and table.ndim == 2 and axis == 0 else None


def add_up_columns(model: openvino.Model, *, bfloat16: bool) -> None:
    """Weigh and add up what linear maps to single numbers read, such as energies: their kernel is made for many.

    For bfloat16, terms and sums are rounded to it, as a product would do: with no product on the way from an input to
    an output, OpenVINO would compute them in float32.
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
    with ThreadPoolExecutor(min(_MAX_WORKERS, os.cpu_count() or 1)) as pool:
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
    """Keep what linear maps add up, such as logits, in float32 unless it is only rounded next: OpenVINO rounds it.

    A rectifier with a slope of one, which changes nothing, is fused to the product, and its type is what is written.
    """
    for product, weight in _linear(model):
        sums, _ = _sums(product, weight.shape[1])
        readers = list(sums.get_target_inputs())
        if all(reader.get_node().get_type_name() in _ROUNDING for reader in readers):
            continue
        kept = ops.prelu(sums, ops.constant(np.ones(1, np.float32)))
        for reader in readers:
            reader.replace_source_output(kept.output(0))


def halve(model: openvino.Model) -> None:
    """Make inputs and outputs of `HALVED` bfloat16."""
    for given in model.get_parameters():
        if given.output(0).names & HALVED:
            given.set_element_type(openvino.Type.bf16)
            readers = given.output(0).get_target_inputs()
            whole = ops.convert(given, "f32")
            for reader in readers:
                node = reader.get_node()
                if node.get_type_name() == "Unsqueeze":  # OpenVINO fuses what follows the conversion then
                    shaped = ops.unsqueeze(given, node.input_value(1))
                    node.output(0).replace(ops.convert(shaped, "f32").output(0))
                else:
                    reader.replace_source_output(whole.output(0))
    for result in model.get_results():
        made = result.input_value(0)
        if made.names & HALVED:
            halved = ops.convert(made, "bf16")
            halved.output(0).set_names(made.names)
            made.set_names(set())
            result.input(0).replace_source_output(halved.output(0))


def _linear(model: openvino.Model) -> Iterator[tuple[openvino.Node, NDArray[np.float32]]]:
    """Products with constants, and their weights (inputs, outputs)."""
    for node in model.get_ordered_ops():
        if node.get_type_name() == "MatMul":
            weight, attributes = _constant(node.input_value(1)), node.get_attributes()
            if weight is not None and weight.ndim == 2 and not attributes["transpose_a"]:
                yield node, weight.T if attributes["transpose_b"] else weight


def _sums(product: openvino.Node, width: int) -> tuple[openvino.Output, NDArray[np.float32]]:
    """The product, or its sum with a bias where nothing else reads it; and the bias (width,), or zeros."""
    readers = [reader.get_node() for reader in product.output(0).get_target_inputs()]
    if len(readers) == 1 and readers[0].get_type_name() == "Add":
        for value in readers[0].input_values():
            bias = _constant(value)
            if bias is not None and bias.shape[-1:] == (width,) and bias.size == width:
                return readers[0].output(0), bias.reshape(width)
    return product.output(0), np.zeros(width, np.float32)


def _constant(value: openvino.Output) -> NDArray[np.float32] | None:
    node = value.get_node()
    is_constant = node.get_type_name() == "Constant" and node.get_element_type() == openvino.Type.f32
    return cast("NDArray[np.float32]", node.data) if is_constant else None


def _as_constant(values: NDArray[np.float32]) -> openvino.Node:
    """What `ops.constant` makes, which takes many times longer: it makes a list of the numbers."""
    return openvino.op.Constant(values, shared_memory=False)
