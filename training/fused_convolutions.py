"""Convolutions with all that follows them up to the rectifier in one pass over memory, as cuDNN offers it on GPUs."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import fx, nn

_ADDITIONS = (operator.add, operator.iadd, torch.add)


def with_fused_convolutions(network: nn.Module) -> nn.Module:
    """The network, sharing its weights, with its pairs of convolution and ReLU, and those with a sum in between, fused.

    For captioning alone, in 16 bits on a GPU, with batch normalisation already in the weights (`training.lowering`).
    """
    traced = fx.symbolic_trace(network)
    graph = traced.graph
    for node in list(graph.nodes):
        if _is_module(node, traced, nn.Identity):
            node.replace_all_uses_with(node.all_input_nodes[0])
            graph.erase_node(node)
    for node in list(graph.nodes):
        if _is_module(node, traced, nn.ReLU):
            _fuse(node, traced)
    graph.lint()
    traced.recompile()
    return traced


def _fuse(rectifier: fx.Node, traced: fx.GraphModule) -> None:
    """Put what computes the argument of a rectifier into one call, where there is one."""
    (argument,) = rectifier.all_input_nodes
    is_sum = argument.target in _ADDITIONS and len(argument.users) == 1 and len(argument.all_input_nodes) == 2
    summands = argument.all_input_nodes if is_sum and not argument.kwargs else [argument]
    convolution = next((one for one in summands if _is_module(one, traced, nn.Conv2d) and len(one.users) == 1), None)
    if convolution is None:
        return
    others = [one for one in summands if one is not convolution]
    module: Any = traced.get_submodule(str(convolution.target))
    graph = traced.graph
    with graph.inserting_before(rectifier):
        weight, bias = (graph.get_attr(f"{convolution.target}.{name}") for name in ("weight", "bias"))
        how = (bias, module.stride, module.padding, module.dilation, module.groups)
        call, sum_with = (
            (torch.cudnn_convolution_add_relu, (others[0], 1.0)) if others else (torch.cudnn_convolution_relu, ())
        )
        fused = graph.call_function(call, (*convolution.all_input_nodes, weight, *sum_with, *how))
    rectifier.replace_all_uses_with(fused)
    for replaced in dict.fromkeys((rectifier, argument, convolution)):
        graph.erase_node(replaced)


def _is_module(node: fx.Node, traced: fx.GraphModule, kind: type[nn.Module]) -> bool:
    return node.op == "call_module" and isinstance(traced.get_submodule(str(node.target)), kind)
