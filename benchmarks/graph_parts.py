"""What the parts of both graphs are, and what work each has at least: from the graphs as OpenVINO reads them.

A part of the step graph is found by what depends on what, not by names: whatever switches a model has, its energies are
what lies between keys and alphas.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import openvino

ANNOTATIONS, KEYS, INITIAL_STATE = "annotations", "keys", "initial state"
STATE, ENERGIES, CONTEXT, OUTPUT, CHOICE = "query and LSTM", "energies and alphas", "context", "output", "best words"
PARTS = {"encoder": (ANNOTATIONS, KEYS, INITIAL_STATE), "step": (STATE, ENERGIES, CONTEXT, OUTPUT, CHOICE)}
"""Of each graph, in the order of computing."""


class Work(NamedTuple):
    """What a part cannot do without, at one run.

    multiply_adds : of its convolutions and matrix products; whatever else is computed is not counted
    bytes : of weights, of what comes in from other parts and of what goes out to them, each once; of a table, of the
        rows that are looked up. All floats are counted as short as the arithmetic's, though sums stay float32.
    """

    multiply_adds: int
    bytes: int


@dataclass(frozen=True, slots=True)
class _Nodes:
    """A graph by the names of its nodes, in the order of computing."""

    nodes: Mapping[str, openvino.Node]
    inputs: Mapping[str, tuple[str, ...]]

    def before(self, ends: Iterable[str]) -> set[str]:
        """What they are made of, themselves included."""
        found, waiting = set[str](), list(ends)
        while waiting:
            name = waiting.pop()
            if name not in found:
                found.add(name)
                waiting.extend(self.inputs[name])
        return found

    def after(self, start: str) -> set[str]:
        """What is made of it, itself included."""
        found = {start}
        for name, inputs in self.inputs.items():
            if found.intersection(inputs):
                found.add(name)
        return found

    def of_type(self, *kinds: str) -> list[str]:
        return [name for name, node in self.nodes.items() if node.get_type_name() in kinds]

    def output(self, name: str) -> str:
        """The node that makes an output of the graph."""
        results = (self.nodes[result] for result in self.of_type("Result"))
        return next(
            _name(result.input_value(0).get_node()) for result in results if name in result.input_value(0).get_names()
        )


def parts_of(model: openvino.Model, graph: str) -> dict[str, str]:
    """Part of each node that computes, by name; graph is "encoder" or "step"."""
    nodes = _read(model)
    found = _of_step(nodes) if graph == "step" else _of_encoder(nodes)
    return {name: found[name] for name in nodes.nodes if name in found and not _is_given(nodes.nodes[name])}


def work_of(model: openvino.Model, parts: Mapping[str, str], *, float_bytes: int) -> dict[str, Work]:
    """Of each part. The model has fixed shapes; float_bytes : of a float where the graph runs."""
    nodes = _read(model)
    multiply_adds = dict.fromkeys(parts.values(), 0)
    moved = {part: dict[tuple[str, int], int]() for part in parts.values()}
    for name, node in nodes.nodes.items():
        part = parts.get(name)
        if part:
            multiply_adds[part] += _multiply_adds(node)
        for place, value in enumerate(node.input_values()):
            maker = _name(value.get_node())
            if parts.get(maker) != part:
                is_table = _is_given(value.get_node()) and (node.get_type_name(), place) == ("Gather", 0)
                read = _bytes(node.output(0) if is_table else value, float_bytes)
                for side in filter(None, (part, parts.get(maker))):
                    key = maker, value.get_index()
                    moved[side][key] = max(read, moved[side].get(key, 0))
    return {part: Work(multiply_adds[part], sum(moved[part].values())) for part in multiply_adds}


def _of_encoder(nodes: _Nodes) -> dict[str, str]:
    names = {ANNOTATIONS: ("annotations",), KEYS: ("keys",), INITIAL_STATE: ("hidden", "cell")}
    found: dict[str, str] = {}
    for part, outputs in names.items():
        for name in nodes.before(nodes.output(output) for output in outputs):
            found.setdefault(name, part)
    return found


def _of_step(nodes: _Nodes) -> dict[str, str]:
    products, before_alphas = nodes.of_type("MatMul"), nodes.before([nodes.output("alphas")])
    state = nodes.before(_shaped(nodes, nodes.output(name)) for name in ("next_hidden", "next_cell"))
    of_annotations = [name for name in products if _shaped(nodes, nodes.inputs[name][1]) == "annotations"]
    logits = _with_bias(nodes, [name for name in products if name not in state][-1])
    parts = (
        (ENERGIES, before_alphas & nodes.after("keys")),
        (STATE, before_alphas),
        (CONTEXT, nodes.before(of_annotations)),
        (STATE, state),
        (OUTPUT, nodes.before([logits])),
        (CHOICE, set(nodes.nodes)),
    )
    found: dict[str, str] = {}
    for part, names in parts:
        for name in names:
            found.setdefault(name, part)
    return found


def _with_bias(nodes: _Nodes, product: str) -> str:
    """The node that adds a constant to a product, if there is one; else the product."""
    readers = [name for name, inputs in nodes.inputs.items() if product in inputs]
    kinds = [nodes.nodes[name].get_type_name() for reader in readers for name in (reader, *nodes.inputs[reader])]
    return readers[0] if len(readers) == 1 and kinds[0] == "Add" and "Constant" in kinds else product


def _shaped(nodes: _Nodes, name: str) -> str:
    """What was gathered from, reshaped or converted to this."""
    while nodes.nodes[name].get_type_name() in ("Gather", "Reshape", "Convert"):
        name = nodes.inputs[name][0]
    return name


def _read(model: openvino.Model) -> _Nodes:
    ordered = model.get_ordered_ops()
    return _Nodes(
        {_name(node): node for node in ordered},
        {_name(node): tuple(_name(value.get_node()) for value in node.input_values()) for node in ordered},
    )


def _name(node: openvino.Node) -> str:
    name: str = node.get_friendly_name()
    return name


def _is_given(node: openvino.Node) -> bool:
    return node.get_type_name() in ("Constant", "Parameter", "Result")


def _multiply_adds(node: openvino.Node) -> int:
    kind = node.get_type_name()
    if kind == "MatMul":
        axis = -2 if node.get_attributes()["transpose_a"] else -1
        return _product(node.get_output_shape(0), node.get_input_shape(0)[axis:][:1])
    if kind in ("Convolution", "GroupConvolution"):
        images, _, *places = node.get_output_shape(0)
        return _product((images, *places), node.get_input_shape(1))
    return 0


def _bytes(value: openvino.Output, float_bytes: int) -> int:
    kind = value.get_element_type()
    return _product(value.get_shape(), [float_bytes if kind.is_real() else kind.size])


def _product(*shapes: Sequence[int]) -> int:
    return math.prod(size for shape in shapes for size in shape)
