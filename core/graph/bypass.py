"""Taking a block, a branch or a plain layer out of a network, exactly: from a network and its name to a smaller network
and a plan entry.

    residual block   y = shortcut(x); what follows the `add` stays, its activation, say
    branch           the `cat` without it: what reads the `cat` loses the input channels that it would have read from it
    plain layer      y = x

What then reaches no output is gone, parameters and all. A plan entry is {"op": "bypass", "block": name, "branch": name
(of a branch only), "removed": [layers that are gone], "layers": {layer: [removed output channels]}}, the last for what
carries a branch's channels on (a depthwise convolution behind the `cat`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from core.errors import CutRefused, Fault, ModelRefused
from core.graph.blocks import Block, Branch, find_blocks
from core.graph.cuts import take_out
from core.graph.exactness import as_if_removed, check_against
from core.graph.groups import ChannelGroups, propagate
from core.graph.ids import Booleans, Integers, Propagation, argument, compressed, source
from core.graph.network import Network
from core.graph.operators import MAKERS
from core.graph.shapes import run_shapes
from core.report import Check

NOTHING_LEFT = "no layer with weights would be left of the network"


def bypass(network: Network, name: str, branch: str | None = None) -> tuple[Network, dict[str, Any]]:
    """A new network without the block `name`, or without its `branch`, and the plan entry. `network` is left as it is.

    Its inputs, outputs and origin stay, and so do the names of its layers.

    Raises `CutRefused` where there is no such block, or where it cannot be bypassed, with the reason.
    """
    block, chosen = _chosen(network, name, branch)
    asking = _Asking(network)
    if chosen is None:
        if (reason := asking.block(block)) is not None:
            raise _refused(name, reason)
        smaller = network.clone()
        nodes = _nodes(network, smaller)
        _go_round(block, {node.name: nodes[node] for node in nodes})
        smaller = _without_dead(smaller)
        layers: dict[str, list[int]] = {}
    else:
        removal = asking.removal(block, chosen)
        if isinstance(removal, str):
            raise _refused(f"{name}: {chosen.name}", removal)
        smaller = _without_branch(network, block, chosen, removal)
        layers = removal.carried
    left = smaller.layers()
    removed = [layer for layer in network.layers() if layer not in left]
    entry = {"op": "bypass", "block": name, "removed": removed, "layers": layers}
    return smaller, entry if branch is None else {**entry, "branch": branch}


def without_blocks(network: Network, names: Sequence[str]) -> Network:
    """A new network without any of these residual blocks, which do not lie in each other: what `bypass` of one after
    the other gives, in the time of one. Raises `CutRefused` as it does."""
    known = {block.name: block for block in find_blocks(network)}
    asking = _Asking(network)
    smaller = network.clone()
    nodes = {node.name: copy for node, copy in _nodes(network, smaller).items()}
    for block in sorted((_of(known, name) for name in names), key=lambda block: block.position):
        if (reason := asking.block(block)) is not None:
            raise _refused(block.name, reason)
        _go_round(block, nodes)
    smaller = _without_dead(smaller)
    if not smaller.layers():
        raise _refused(", ".join(names), NOTHING_LEFT)
    for node in smaller.output_nodes():
        if node.op == "placeholder" and node.name not in {given.name for given in network.output_nodes()}:
            raise _refused(", ".join(names), f"an output would be the input {node.name!r} as it came")
    return smaller


def _of(known: Mapping[str, Block], name: str) -> Block:
    if name not in known or known[name].kind != "residual":
        residual = [each for each, block in known.items() if block.kind == "residual"]
        raise _refused(name, "there is no such residual block", f"one of {', '.join(residual)}"[:2_000])
    return known[name]


def obstacles(
    network: Network, blocks: Sequence[Block], groups: ChannelGroups | None = None
) -> dict[tuple[str, str | None], str | None]:
    """Why `bypass` refuses (block, None) or (block, branch), by their names; None where it does not.

    Branches go one by one: a multi-branch block as a whole has a reason where none of them can go. `groups` are the
    network's channel groups, where they are known: most branches can be judged by them, and the rest takes longer.
    """
    asking = _Asking(network, groups)
    found: dict[tuple[str, str | None], str | None] = {}
    for block in blocks:
        reasons = [asking.branch(block, branch) for branch in block.branches]
        for branch, reason in zip(block.branches, reasons, strict=True):
            found[block.name, branch.name] = reason
        if block.kind == "branches":
            found[block.name, None] = None if None in reasons else "; ".join(dict.fromkeys(filter(None, reasons)))
        else:
            found[block.name, None] = asking.block(block)
    return found


class _Asking:
    """What is asked of a network for block after block."""

    def __init__(self, network: Network, groups: ChannelGroups | None = None) -> None:
        self.network = network
        self.layers = network.layers().keys()
        self.nodes = {node.name: node for node in network.module.graph.nodes}
        self.uses = Counter(str(node.target) for node in self.nodes.values() if node.op == "call_module")
        self.others = _at_another_size(network)
        self.known = None if groups is None else (groups.analysis.propagation, groups.analysis.classes)

    def block(self, block: Block) -> str | None:
        end, stays = self.nodes[block.exit], _stays(block, self.nodes)
        if not self.layers - set(block.own):
            return NOTHING_LEFT
        if block.kind == "layer" and self.uses[block.own[0]] > 1:
            return f"the layer is used {self.uses[block.own[0]]} times"
        if stays.meta["shape"] != end.meta["shape"]:
            shapes = [list(node.meta["shape"][1:]) for node in (stays, end)]
            return f"the shortcut has shape {shapes[0]} and is spread over the sum's {shapes[1]}"
        if self.others is not None and self.others[stays] != self.others[end]:
            return "its input and its output agree at one size of the input only"
        if stays.op == "placeholder" and end in self.network.output_nodes():
            return f"an output would be the input {stays.name!r} as it came"
        return None

    def branch(self, block: Block, branch: Branch) -> str | None:
        removal: _Removal | str = ""
        if self.known is not None:  # with fewer ties, channels of their own, it could only be allowed as well
            removal = _judged(self.network, block, branch, *self.known)
        if isinstance(removal, str):
            removal = self.removal(block, branch)
        return removal if isinstance(removal, str) else None

    def removal(self, block: Block, branch: Branch) -> _Removal | str:
        """What goes with the branch, or why it cannot go.

        Whether channels may go behind the `cat` does not depend on where they come from: the branch's results are given
        ids of their own, so that a branch that only pools its input can be removed as well.
        """
        if not self.layers - set(branch.layers):
            return NOTHING_LEFT
        operands = _operands(block, branch, self.nodes)
        if self.nodes[block.entry] in operands:
            return "the branch is the block's input itself, without a layer or a pooling"
        propagation = propagate(self.network, detached=operands)
        classes, _ = propagation.resolve()
        return _judged(self.network, block, branch, propagation, classes)


def check_bypass(network: Network, entry: Mapping[str, Any], bypassed: Network, *inputs: Tensor) -> Check:
    """Compares `bypassed` with `network` whose residual path is multiplied by zero, whose plain layer is passed over,
    or whose consumers read zero from the branch's channels, in float64 as `check_cut` does.

    Raises `ExactnessFailed` past the bound, `CutRefused` where there is no such block.
    """
    block, chosen = _chosen(network, entry["block"], entry.get("branch"))
    asking = _Asking(network)
    if chosen is None and (reason := asking.block(block)) is not None:
        raise _refused(block.name, reason)
    reference = network.clone()
    nodes = _nodes(network, reference)
    graph = reference.module.graph
    copies = {node.name: nodes[node] for node in nodes}
    if chosen is not None:
        removal = asking.removal(block, chosen)
        if isinstance(removal, str):
            raise _refused(f"{block.name}: {chosen.name}", removal)
        as_if_removed(reference, removal.propagation, removal.removed)
    elif block.path is not None:
        multiply_by_zero(copies[block.exit], block.path)
    else:
        end, entering = copies[block.exit], copies[block.entry]
        with graph.inserting_after(end):
            zero = graph.call_function(torch.ops.aten.mul.Tensor, (end, 0.0))
        with graph.inserting_after(zero):
            passed = graph.call_function(torch.ops.aten.add.Tensor, (zero, entering))
        end.replace_all_uses_with(passed, delete_user_cb=lambda user: user is not zero)
    reference.module.recompile()
    return check_against(_renewed(reference), bypassed, *inputs)


def multiply_by_zero(end: fx.Node, path: int) -> None:
    """Puts a multiplication by zero in front of operand `path` of an `add`."""
    with end.graph.inserting_before(end):
        zero = end.graph.call_function(torch.ops.aten.mul.Tensor, (source(end, path), 0.0))
    end.args = tuple(zero if place == path else item for place, item in enumerate(end.args))


def replay_bypass(network: Network, entry: Mapping[str, Any]) -> Network:
    """`network` after the plan entry. Raises `CutRefused` where it does not fit it: other layers go than it names."""
    smaller, done = bypass(network, str(entry["block"]), entry.get("branch"))
    for key in ("removed", "layers"):
        if done[key] != entry[key]:
            fault = Fault(f"/{key}", "other layers or channels go than those named", str(done[key]))
            raise CutRefused(f"the bypass of {entry['block']!r} does not fit this network", faults=[fault])
    return smaller


def _chosen(network: Network, name: str, branch: str | None) -> tuple[Block, Branch | None]:
    blocks = find_blocks(network)
    block = next((each for each in blocks if each.name == name), None)
    if block is None:
        known = ", ".join(each.name for each in blocks) or "nothing: the network has none"
        raise _refused(name, "there is no such block or plain layer", f"one of {known}"[:2_000])
    found = {each.name: each for each in block.branches}
    if block.kind == "branches" and branch not in found:
        reason = "its branches go one by one" if branch is None else f"it has no branch {branch!r}"
        raise _refused(name, reason, f"one of {', '.join(found)}")
    if branch is not None and block.kind != "branches":
        raise _refused(name, f"it has no branch {branch!r}: it goes as a whole")
    return block, None if branch is None else found[branch]


def _refused(name: str, reason: str, expected: str | None = None) -> CutRefused:
    return CutRefused(f"{name!r} cannot be bypassed: {reason}", faults=[Fault("/block", reason, expected)])


def _at_another_size(network: Network) -> dict[fx.Node, tuple[int, ...]] | None:
    """Where the inputs leave sizes open, the shape of every node for inputs twice as large in these; None where they do
    not, or where the network takes one size only all the same."""
    if not any(isinstance(size, str) for spec in network.inputs for size in spec.shape[1:]):
        return None
    larger = tuple(
        tuple(
            size if isinstance(declared, int) else 2 * size
            for declared, size in zip(spec.shape[1:], shape, strict=True)
        )
        for spec, shape in zip(network.inputs, network.input_shapes, strict=True)
    )
    try:
        return run_shapes(network.module, larger, batch=1)
    except ModelRefused:
        return None


# --- blocks and layers ------------------------------------------------------------------------------------------------


def _stays(block: Block, nodes: Mapping[str, fx.Node]) -> fx.Node:
    """What takes the place of the block's result."""
    return nodes[block.entry] if block.path is None else source(nodes[block.exit], 1 - block.path)


def _go_round(block: Block, nodes: Mapping[str, fx.Node]) -> None:
    nodes[block.exit].replace_all_uses_with(_stays(block, nodes))


def _nodes(network: Network, copy: Network) -> dict[fx.Node, fx.Node]:
    return dict(zip(network.module.graph.nodes, copy.module.graph.nodes, strict=True))


def _without_dead(network: Network) -> Network:
    """Without the nodes that reach no output, and without what only they used."""
    network.module.graph.eliminate_dead_code()
    return _renewed(network)


def _renewed(network: Network) -> Network:
    """With what the graph uses alone, and shapes as they are now."""
    module = fx.GraphModule(network.module, network.module.graph)
    used = {
        name: how for name, how in network.grouped.items() if module.graph.find_nodes(op="call_module", target=name)
    }
    return Network(module, network.inputs, network.outputs, network.origin, network.input_shapes, used)


# --- branches ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Removal:
    """What goes with a branch: ids of `propagation`, in which the branch's results have ids of their own. `carried`:
    the output channels that go of layers behind the `cat`."""

    propagation: Propagation
    removed: Booleans
    carried: dict[str, list[int]]


def _operands(block: Block, branch: Branch, nodes: Mapping[str, fx.Node]) -> list[fx.Node]:
    return [argument(nodes[block.exit], 0)[place] for place in branch.operands]


def _judged(
    network: Network, block: Block, branch: Branch, propagation: Propagation, classes: Integers
) -> _Removal | str:
    """What goes with the branch by the classes of channels of a propagation, or why it cannot go."""
    nodes = {node.name: node for node in network.module.graph.nodes}
    operands = _operands(block, branch, nodes)
    roots = np.unique(np.concatenate([_roots(propagation, classes, node) for node in operands]))
    removed = np.isin(classes, roots)
    reasons = {
        f"{freeze.operator} at {freeze.node!r}: {freeze.reason}"
        for freeze in propagation.freezes
        if removed[freeze.ids].any()
    }
    if reasons:
        return f"its channels may not go ({'; '.join(sorted(reasons))})"
    others = [node for node in argument(nodes[block.exit], 0) if node not in operands]
    if any(np.isin(_roots(propagation, classes, node), roots).any() for node in others):
        return "its channels go together with those of the other branches"
    carried = {}
    tied = []
    for name, own in propagation.layers.items():
        gone = removed[own.output.numpy()]
        if name in branch.layers or not gone.any() or not isinstance(network.module.get_submodule(name), MAKERS):
            continue
        if own.reads is None and own.input is not None and removed[own.input.numpy()].any():
            carried[name] = np.flatnonzero(gone).tolist()
        else:
            tied.append(name)
    if tied:
        return f"its channels go together with those of {', '.join(tied)}"
    inside = {nodes[name] for name in branch.nodes}
    for node, ids in propagation.ids.items():
        if node not in inside and removed[compressed(ids)[0].numpy()].all():
            return f"nothing would be left of {node.name}"
    return _Removal(propagation, removed, carried)


def _roots(propagation: Propagation, classes: Integers, node: fx.Node) -> Integers:
    (small,) = compressed(propagation.ids[node])
    return np.unique(classes[small.numpy()])


def _without_branch(network: Network, block: Block, branch: Branch, removal: _Removal) -> Network:
    smaller = network.clone()
    nodes = _nodes(network, smaller)
    (end,) = (copy for node, copy in nodes.items() if node.name == block.exit)
    left = [item for place, item in enumerate(argument(end, 0)) if place not in branch.operands]
    if len(left) > 1:
        end.args = (left, *end.args[1:])
    else:
        end.replace_all_uses_with(left[0])
    smaller.module.graph.eliminate_dead_code()
    alive = set(smaller.module.graph.nodes)
    take_out(
        smaller, {node: copy for node, copy in nodes.items() if copy in alive}, removal.propagation, removal.removed
    )
    return _renewed(smaller)
