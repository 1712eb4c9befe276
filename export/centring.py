"""Bounded activations around zero, where symmetric 8-bit integers have twice the steps for them.

Between 0 and 6, the bounds of ReLU6, they use the positive half alone. A constant goes from the bias of one convolution
into that of the next: x - 3 lies between -3 and 3. Not where the next one pads, as its zeros would then mean 3.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, numpy_helper

_Values = dict[str, NDArray[Any]]


def centre_clips(model: ModelProto) -> ModelProto:
    """The same function, with every Clip between two convolutions around zero, if the second does not pad."""
    centred = ModelProto()
    centred.CopyFrom(model)
    graph = centred.graph
    values = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    makers = {output: node for node in graph.node for output in node.output}
    reads = Counter([*(name for node in graph.node for name in node.input), *(value.name for value in graph.output)])
    for after in graph.node:
        clip = makers.get(after.input[0]) if after.input else None
        before = clip and makers.get(clip.input[0])
        if clip and before and _can_be_centred(before, clip, after, values, reads):
            _centre(before, clip, after, values)
    read = {name for node in graph.node for name in node.input}
    del graph.initializer[:]
    graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in values.items() if name in read)
    return centred


def _can_be_centred(before: NodeProto, clip: NodeProto, after: NodeProto, values: _Values, reads: Counter[str]) -> bool:
    return (
        [before.op_type, clip.op_type, after.op_type] == ["Conv", "Clip", "Conv"]
        and all(len(node.input) == 3 and values.keys() >= set(node.input[1:]) for node in (before, clip, after))
        and reads[clip.input[0]] == reads[clip.output[0]] == 1
        and not _pads(after)
    )


def _centre(before: NodeProto, clip: NodeProto, after: NodeProto, values: _Values) -> None:
    low, high = (values[name] for name in clip.input[1:])
    middle = (low + high) / 2
    moved = middle * values[after.input[1]].sum(axis=(1, 2, 3))
    for node, place, change in ((before, 2, -middle), (after, 2, moved), (clip, 1, -middle), (clip, 2, -middle)):
        changed = f"{node.output[0]}_input_{place}"  # its own: others may read the same constant
        values[changed] = np.asarray(values[node.input[place]] + change, np.float32)
        node.input[place] = changed


def _pads(node: NodeProto) -> bool:
    given = {one.name: onnx.helper.get_attribute_value(one) for one in node.attribute}
    return any(given.get("pads", ())) or given.get("auto_pad", b"NOTSET") not in (b"NOTSET", b"VALID")
