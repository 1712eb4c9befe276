"""What TensorRT's ONNX parser and this project's way to run plans ask of a graph, checked without TensorRT.

The rules are those of the parser's operator table for 10.15 (opsets 9 to 25 since 10.16), what its maintainers say of
uint8 (NVIDIA/TensorRT issue 3985), and our own: no shape depends on data, as buffers and CUDA graphs have fixed sizes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import AttributeProto, NodeProto, TensorProto, helper, numpy_helper

from saccade.errors import ExportError

OPSETS = range(9, 26)
LARGEST_K = 3840
TYPES = ("BFLOAT16", "BOOL", "FLOAT", "FLOAT16", "FLOAT8E4M3FN", "INT32", "INT4", "INT64", "INT8", "UINT8")

_TABLE = """
Abs Acos Acosh Add And ArgMax ArgMin Asin Asinh Atan Atanh Attention AveragePool BatchNormalization Cast CastLike
Ceil Celu Clip Concat Constant ConstantOfShape Conv ConvTranspose Cos Cosh CumSum DeformConv DepthToSpace
DequantizeLinear Div Dropout Einsum Elu Equal Erf Exp Expand EyeLike Flatten Floor GRU Gather GatherElements
GatherND Gelu Gemm GlobalAveragePool GlobalLpPool GlobalMaxPool Greater GreaterOrEqual GridSample GroupNormalization
LRN LSTM HardSigmoid HardSwish Hardmax Identity If InstanceNormalization IsInf IsNaN LayerNormalization LeakyRelu
Less LessOrEqual Log LogSoftmax Loop LpNormalization LpPool MatMul Max MaxPool Mean MeanVarianceNormalization Min
Mish Mod Mul Neg Not OneHot Or PRelu Pad Pow QuantizeLinear RMSNormalization RNN Range Reciprocal ReduceL1 ReduceL2
ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum ReduceSumSquare Relu Reshape Resize
ReverseSequence RoiAlign RotaryEmbedding Round STFT Scan ScatterElements ScatterND Selu Shape Shrink Sigmoid Sign
Sin Sinh Size Slice Softmax Softplus Softsign SpaceToDepth Split Sqrt Squeeze Sub Sum Swish Tan Tanh ThresholdedRelu
Tile TopK Transpose Trilu Unsqueeze Where Xor
"""
SUPPORTED = frozenset(_TABLE.split())
"""Operators of the table, without those whose outputs have shapes that depend on data."""
DATA_DEPENDENT = frozenset({"Compress", "NonMaxSuppression", "NonZero", "Unique"})

CONSTANT_INPUTS = {"CumSum": (1,), "OneHot": (1,), "Slice": (3,), "Squeeze": (1,), "Unsqueeze": (1,)} | {
    name: (1,) for name in SUPPORTED if name.startswith("Reduce")
}
"""Inputs that must be initialisers or constants: axes and the like."""
SHAPE_INPUTS = {
    "ConstantOfShape": (0,),
    "Expand": (1,),
    "Range": (0, 1, 2),
    "Reshape": (1,),
    "Slice": (1, 2, 4),
    "Split": (1,),
    "Tile": (1,),
    "TopK": (1,),
}
"""Inputs that decide on shapes: these must follow from the shapes of the graph's inputs alone."""
ARITHMETIC = {"Add", "CumSum", "Div", "Max", "Mean", "Min", "Mod", "Mul", "Neg", "Pow", "Sub", "Sum"} | {
    f"Reduce{kind}" for kind in ("Max", "Mean", "Min", "Prod", "Sum")
}


def require_rules(path: Path, *, beam: int) -> None:
    """Check a graph that will run with `beam` rows an image. Raises ExportError with every rule that it breaks."""
    if broken := broken_rules(onnx.load(path), beam=beam):
        raise ExportError(
            f"{path} breaks the rules of TensorRT: {'; '.join(broken)}: export the bundle again with this version of "
            "saccade, and report it if that does not help"
        )


def broken_rules(model: onnx.ModelProto, *, beam: int) -> list[str]:
    """Every rule that a graph breaks, with the node that does."""
    graph = _Graph(model, {"beam": beam})
    return [problem for rule in _RULES for problem in rule(graph)]


class _Graph:
    """A model with what the rules ask for."""

    def __init__(self, model: onnx.ModelProto, sizes: Mapping[str, int]) -> None:
        self.model = onnx.shape_inference.infer_shapes(model)
        self.nodes = list(self.model.graph.node)
        self.sizes = sizes

    @cached_property
    def constants(self) -> dict[str, NDArray[Any]]:
        """Values of initialisers and of Constant nodes."""
        found = {tensor.name: numpy_helper.to_array(tensor) for tensor in self.model.graph.initializer}
        for node in self.nodes:
            if node.op_type == "Constant":
                (value,) = (helper.get_attribute_value(attribute) for attribute in node.attribute)
                found[node.output[0]] = (
                    numpy_helper.to_array(value) if isinstance(value, TensorProto) else np.array(value)
                )
        return found

    @cached_property
    def makers(self) -> dict[str, NodeProto]:
        """The node that makes each value."""
        return {output: node for node in self.nodes for output in node.output}

    @cached_property
    def values(self) -> dict[str, onnx.TypeProto.Tensor]:
        """Type and shape of inputs, outputs and what lies between."""
        graph = self.model.graph
        return {value.name: value.type.tensor_type for value in (*graph.input, *graph.value_info, *graph.output)}

    @cached_property
    def known(self) -> set[str]:
        """Values that follow from shapes and constants."""
        known = {"", *self.constants}
        for node in self.nodes:
            if node.op_type in ("Shape", "Size") or known.issuperset(node.input):
                known.update(node.output)
        return known

    def fixed(self, name: str) -> NDArray[Any] | None:
        """A value that is known once the axes in `sizes` are, or None."""
        if name in self.constants:
            return self.constants[name]
        node = self.makers.get(name)
        if node is None:
            return None
        if node.op_type == "Shape":
            return self._shape(node)
        if node.op_type in ("Cast", "Identity", "Reshape", "Squeeze", "Unsqueeze"):
            return self.fixed(node.input[0])
        return None

    def _shape(self, node: NodeProto) -> NDArray[Any] | None:
        axes = self.values[node.input[0]].shape.dim
        picked = axes[slice(attribute(node, "start", 0), attribute(node, "end", len(axes)))]
        sizes = [self.sizes.get(axis.dim_param, axis.dim_value) for axis in picked]
        return np.array(sizes) if all(sizes) else None


def attribute(node: NodeProto, name: str, default: Any) -> Any:
    """The value of an attribute."""
    found: list[AttributeProto] = [one for one in node.attribute if one.name == name]
    return helper.get_attribute_value(found[0]) if found else default


def _opset(graph: _Graph) -> Iterator[str]:
    for opset in graph.model.opset_import:
        if opset.domain not in ("", "ai.onnx"):
            yield f"operators of the domain {opset.domain}"
        elif opset.version not in OPSETS:
            yield f"opset {opset.version}, not {OPSETS[0]} to {OPSETS[-1]}"


def _operators(graph: _Graph) -> Iterator[str]:
    for node in graph.nodes:
        if node.op_type in DATA_DEPENDENT:
            yield f"{_name(node)} has an output whose shape depends on data"
        elif node.op_type not in SUPPORTED:
            yield f"{_name(node)} is not supported"


def _types(graph: _Graph) -> Iterator[str]:
    types = {name: value.elem_type for name, value in graph.values.items()}
    types |= {tensor.name: tensor.data_type for tensor in graph.model.graph.initializer}
    for name, number in types.items():
        if number and (kind := TensorProto.DataType.Name(number)) not in TYPES:
            yield f"{name} is {kind}"


def _uint8_is_cast(graph: _Graph) -> Iterator[str]:
    for node in graph.nodes:
        for name in node.input:
            if name in graph.values and graph.values[name].elem_type == TensorProto.UINT8 and node.op_type != "Cast":
                yield f"{_name(node)} reads {name}, which is uint8 and may go into a Cast alone"


def _constant_inputs(graph: _Graph) -> Iterator[str]:
    for node in graph.nodes:
        for name in _inputs(node, CONSTANT_INPUTS):
            if name not in graph.constants:
                yield f"{_name(node)} takes {name}, which must be an initialiser or a constant"


def _shapes_from_shapes(graph: _Graph) -> Iterator[str]:
    for node in graph.nodes:
        for name in _inputs(node, SHAPE_INPUTS):
            if name not in graph.known:
                yield f"{_name(node)} has a shape that depends on data, on {name}"


def _top_k(graph: _Graph) -> Iterator[str]:
    for node in graph.nodes:
        if node.op_type != "TopK":
            continue
        if not attribute(node, "sorted", 1):
            yield f"{_name(node)} is not sorted"
        count = graph.fixed(node.input[1])
        if count is None:
            yield f"{_name(node)} has a K that is not fixed"
        elif count.item() > LARGEST_K:
            yield f"{_name(node)} has K = {count.item()}, {LARGEST_K} at most"


def _little_int64(graph: _Graph) -> Iterator[str]:
    """Arithmetic of int64 is slow: a few numbers a row of the beam are nothing, rows of words or places are much."""
    for node in graph.nodes:
        value = graph.values.get(node.output[0]) if node.op_type in ARITHMETIC else None
        if value is not None and value.elem_type == TensorProto.INT64 and len(value.shape.dim) > 1:
            sizes = [axis.dim_param or axis.dim_value for axis in value.shape.dim]
            if any(isinstance(size, int) and size > 1 for size in sizes):
                yield f"{_name(node)} is int64 arithmetic over {sizes}"


def _zero_points(graph: _Graph) -> Iterator[str]:
    for node in graph.nodes:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear") and len(node.input) > 2 and node.input[2]:
            zero = graph.constants.get(node.input[2])
            if zero is None or zero.any():
                yield f"{_name(node)} has a zero point that is not 0"


_RULES = (
    _opset,
    _operators,
    _types,
    _uint8_is_cast,
    _constant_inputs,
    _shapes_from_shapes,
    _top_k,
    _little_int64,
    _zero_points,
)


def _inputs(node: NodeProto, table: Mapping[str, tuple[int, ...]]) -> Iterator[str]:
    """The inputs of a node that a table names and that are there."""
    for index in table.get(node.op_type, ()):
        if index < len(node.input) and node.input[index]:
            yield node.input[index]


def _name(node: NodeProto) -> str:
    return f"{node.op_type} {node.name or node.output[0]}"
