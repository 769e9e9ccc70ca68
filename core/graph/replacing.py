"""Replacing residual blocks that follow one another by one of them with new weights (Velici 2022, section 4.5).

The one that changes shapes stays, where one does, and else the first; the others are bypassed. The layers of its
residual path begin anew, its shortcut keeps its weights: y = shortcut(x) + F_new(x). Parameters of no layer (a layer
scale) keep their values, as in `core.graph.initialise`.

    weights: random    every layer of F_new as `core.graph.initialise.draw` makes it
    weights: zero      the same, but F_new(x) = 0: weight and bias of one layer are 0, the last normalisation's, or if
                       the path does not end in one the last layer's. Only that layer: with all weights 0 no gradient
                       would reach any of them.

A plan entry is {"op": "replace", "blocks": [names, in execution order], "seed": s, "with": "random" | "zero",
"removed": [layers that are gone], "layers": {}}; the weights are drawn from the seed, so that a replay has the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, Literal

from torch import Tensor, fx, nn

from core.errors import CutRefused, Fault
from core.graph.blocks import Block, find_blocks, is_activation
from core.graph.bypass import multiply_by_zero, without_blocks
from core.graph.exactness import check_against
from core.graph.ids import source
from core.graph.initialise import renew, seed_of
from core.graph.network import Network
from core.graph.silencing import silence, silencing_layer
from core.report import Check

Weights = Literal["random", "zero"]
WEIGHTS: tuple[Weights, ...] = ("random", "zero")


def replace_blocks(
    network: Network, names: Sequence[str], *, seed: int, weights: Weights
) -> tuple[Network, dict[str, Any]]:
    """A new network in which one block stands for the residual blocks `names`, and the plan entry. `network` is left as
    it is.

    names: at least two, in execution order, each reading what the one in front of it gives, past activations at most.

    Raises `CutRefused` where there are no such blocks, where one that is to go cannot be bypassed, where more than one
    changes shapes, where the one that stays shares weights with what is outside of it, and for zero weights where its
    path could not learn from there (it ends in a ReLU, say).
    """
    blocks = _blocks(network, names)
    kept = kept_of(blocks)
    for name in _shared(network, kept):
        raise _refused(f"{kept.name!r} would get new weights, and its {name} is used outside of it, too")
    smaller = without_blocks(network, [block.name for block in blocks if block is not kept])
    (present,) = (block for block in find_blocks(smaller) if block.kind == "residual" and block.own == kept.own)
    path = _path(smaller, present)
    modules = dict.fromkeys(str(node.target) for node in path if node.op == "call_module")
    renew((smaller.module.get_submodule(name) for name in modules), seed=seed)
    if weights == "zero":
        try:
            silence(smaller, [silencing_layer(smaller, present, learning=True)])
        except CutRefused as error:
            raise _refused(f"with zero weights, {error.message}", "random weights") from None
    left = smaller.layers()
    removed = [layer for layer in network.layers() if layer not in left]
    return smaller, {"op": "replace", "blocks": list(names), "seed": seed, "with": weights, "removed": removed,
                     "layers": {}}  # fmt: skip


def check_replacement(network: Network, entry: Mapping[str, Any], replaced: Network, *inputs: Tensor) -> Check:
    """Compares `replaced` with `network` in which the block that stays has the weights that it has there, and the
    residual paths of the others are multiplied by zero, in float64 as `check_cut` does.

    Raises `ExactnessFailed` past the bound, `CutRefused` where there are no such blocks.
    """
    blocks = _blocks(network, entry["blocks"])
    kept = kept_of(blocks)
    reference = network.clone()
    ends = {node.name: node for node in reference.module.graph.nodes}
    for block in blocks:
        if block is not kept:
            assert block.path is not None
            multiply_by_zero(ends[block.exit], block.path)
    for name in dict.fromkeys(str(node.target) for node in _path(network, kept) if node.op == "call_module"):
        reference.module.get_submodule(name).load_state_dict(replaced.module.get_submodule(name).state_dict())
    reference.module.recompile()
    return check_against(reference, replaced, *inputs)


def replay_replacement(network: Network, entry: Mapping[str, Any]) -> Network:
    """`network` after the plan entry. Raises `CutRefused` where it does not fit it: other layers go than it names."""
    seed, weights, names = seed_of(entry), entry.get("with"), entry.get("blocks")
    if weights not in WEIGHTS:
        fault = Fault("/with", f"there are no weights {str(weights)[:60]!r}", f"one of {', '.join(WEIGHTS)}")
        raise CutRefused("the plan entry does not say what the new weights are", faults=[fault])
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        fault = Fault("/blocks", "it is no list of names", "the names of residual blocks")
        raise CutRefused("the plan entry does not say which blocks are replaced", faults=[fault])
    smaller, done = replace_blocks(network, names, seed=seed, weights=weights)
    for key in ("removed", "layers"):
        if done[key] != entry.get(key):
            fault = Fault(f"/{key}", "other layers or channels go than those named", str(done[key]))
            raise CutRefused(f"the replacement of {', '.join(names)} does not fit this network", faults=[fault])
    return smaller


def kept_of(blocks: Sequence[Block]) -> Block:
    """Which of the blocks that are replaced stays. Raises `CutRefused` where more than one would have to."""
    changing = [block for block in blocks if block.input_shape != block.output_shape]
    if len(changing) > 1:
        raise _refused(f"{', '.join(block.name for block in changing)} change shapes: one block cannot stand for them")
    return (changing or list(blocks))[0]


def follows(network: Network, one: Block, other: Block) -> bool:
    """Whether `other` reads what `one` gives, past activations (and dropout) at most."""
    nodes = {node.name: node for node in network.module.graph.nodes}
    return _follows(network.module, nodes, one, other)


def successors(network: Network, blocks: Sequence[Block]) -> dict[str, list[Block]]:
    """Of each block, by its name, those that follow it."""
    nodes = {node.name: node for node in network.module.graph.nodes}
    return {one.name: [other for other in blocks if _follows(network.module, nodes, one, other)] for one in blocks}


def own_parameters(network: Network, block: Block) -> list[str]:
    """Names of the parameters of a block's residual path: of its layers, and bare ones."""
    used = {str(node.target) for node in _path(network, block) if node.op in ("call_module", "get_attr")}
    return [name for name, _ in network.named_parameters() if name in used or name.rpartition(".")[0] in used]


def _follows(module: fx.GraphModule, nodes: Mapping[str, fx.Node], one: Block, other: Block) -> bool:
    node = nodes[other.entry]
    while node.name != one.exit:
        dropout = node.op == "call_module" and isinstance(module.get_submodule(str(node.target)), nn.Dropout)
        if not (dropout or is_activation(module, node)):
            return False
        node = source(node)
    return True


def _blocks(network: Network, names: Sequence[str]) -> list[Block]:
    known = {block.name: block for block in find_blocks(network) if block.kind == "residual"}
    unknown = [name for name in names if name not in known]
    if unknown:
        raise _refused(f"there is no residual block {unknown[0]!r}", f"some of {', '.join(known)}"[:2_000])
    if len(names) < 2:
        raise _refused("one block stands for two at least", "two names or more")
    blocks = [known[name] for name in names]
    for one, other in pairwise(blocks):
        if not follows(network, one, other):
            raise _refused(f"{other.name!r} does not follow {one.name!r}", "blocks in a row, in execution order")
    return blocks


def _refused(reason: str, expected: str | None = None) -> CutRefused:
    return CutRefused(f"blocks cannot be replaced: {reason}", faults=[Fault("/blocks", reason, expected)])


def _path(network: Network, block: Block) -> list[fx.Node]:
    """The nodes of the residual path, bare parameters with them, in execution order."""
    nodes = {node.name: node for node in network.module.graph.nodes}
    assert block.path is not None
    seen: set[fx.Node] = set()
    waiting = [source(nodes[block.exit], block.path)]
    while waiting:
        node = waiting.pop()
        if node.name != block.entry and node not in seen:
            seen.add(node)
            waiting += node.all_input_nodes
    return [node for node in network.module.graph.nodes if node in seen]


def _shared(network: Network, block: Block) -> list[str]:
    """The layers of the residual path that are used outside of it as well, or whose parameters are."""
    path = set(_path(network, block))
    own = {str(node.target) for node in path if node.op == "call_module"}
    elsewhere = {str(node.target) for node in network.module.graph.nodes if node not in path}
    layers = network.layers()
    others = {id(item) for name, layer in layers.items() if name not in own for item in layer.parameters()}
    bare = {id(item) for name, item in network.named_parameters() if name in elsewhere}
    return [
        name for name in block.own
        if name in elsewhere or not (others | bare).isdisjoint(map(id, layers[name].parameters()))
    ]  # fmt: skip
