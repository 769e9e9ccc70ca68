"""The Softmax that a network ends in: finding it behind what only moves its numbers, and going round it."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import fx

from core.graph.ids import argument, source

aten = torch.ops.aten

SOFTMAXES = (aten.softmax.int, aten.log_softmax.int)
MOVES = (
    aten.flatten.using_ints,
    aten.unflatten.int,
    aten.reshape.default,
    aten.squeeze.dims,
    aten.unsqueeze.default,
    aten.permute.default,
)


def final_softmax(output: fx.Node) -> fx.Node | None:
    """The Softmax or LogSoftmax whose result `output` is, or holds in another shape; None where it is neither.

    Dimensions may be in another order (before opset 13 it works along the last one); but another shape only where the
    Softmax goes over all numbers of an example: else their sum along a dimension would not be 1 any more.
    """
    node = output
    is_turned_only = True
    while node.op == "call_function" and node.target in MOVES:
        is_turned_only &= node.target is aten.permute.default
        node = source(node)
    if node.target not in SOFTMAXES:
        return None
    shape = node.meta["shape"]
    return node if is_turned_only or math.prod(shape[1:]) == shape[int(argument(node, 1))] else None


def without_final_softmax(module: fx.GraphModule) -> fx.GraphModule:
    """The same modules under a graph whose outputs go round a final Softmax, moved as they were."""
    graph = fx.Graph()
    copied: dict[fx.Node, fx.Node] = {}
    graph.graph_copy(module.graph, copied)
    (output,) = module.graph.find_nodes(op="output")
    values = fx.map_arg(output.args[0], lambda node: _around(graph, copied, node))
    graph.output(values)
    bypassed = fx.GraphModule(module, graph)
    bypassed.graph.eliminate_dead_code()
    bypassed.recompile()
    return bypassed


def _around(graph: fx.Graph, copied: dict[fx.Node, fx.Node], output: fx.Node) -> Any:
    softmax = final_softmax(output)
    if softmax is None:
        return copied[output]
    moves: list[fx.Node] = []
    node = output
    while node is not softmax:
        moves.append(node)
        node = source(node)
    value = copied[source(softmax)]
    for move in reversed(moves):
        value = graph.call_function(move.target, (value, *move.args[1:]), move.kwargs)  # type: ignore[arg-type]
    return value
