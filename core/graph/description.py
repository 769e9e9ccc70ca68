"""What a network is made of, for people and programs: `core.graph_report.NetworkGraph`."""

from __future__ import annotations

import numpy as np
from torch import Tensor, nn

from core.graph.blocks import Block, Branch, find_blocks
from core.graph.bypass import obstacles
from core.graph.counts import count
from core.graph.groups import ChannelGroups, channel_groups
from core.graph.ids import Booleans, compressed
from core.graph.network import Network
from core.graph.operators.convolution import CONVOLUTIONS
from core.graph_report import GraphBlock, GraphBranch, GraphGroup, GraphLayer, GraphTotals, NetworkGraph


def describe(network: Network, groups: ChannelGroups | None = None) -> NetworkGraph:
    """Layers, channel groups, blocks, what is frozen, and the totals. `groups` where they are known already."""
    groups = channel_groups(network) if groups is None else groups
    layers = _layers(network, groups)
    blocks = _blocks(network, groups)
    free, conv, free_conv = free_parameters(network, groups)
    counts = count(network)
    kinds = [block.kind for block in blocks]
    totals = GraphTotals(
        params=counts.params,
        macs=counts.macs,
        filters=counts.filters,
        layers=len(layers),
        groups=len(groups.groups),
        cuttable_groups=sum(group.cuttable for group in groups.groups),
        residual_blocks=kinds.count("residual"),
        branch_blocks=kinds.count("branches"),
        plain_layers=kinds.count("layer"),
        bypassable=sum(
            sum(branch.bypassable for branch in block.branches) if block.branches else block.bypassable
            for block in blocks
        ),
        frozen=len(groups.frozen),
        free_params=free,
        free_params_share=_share(free, counts.params),
        conv_params=conv,
        free_conv_params_share=_share(free_conv, conv),
    )
    return NetworkGraph(totals=totals, layers=layers, groups=_groups(groups), blocks=blocks, frozen=groups.frozen)


def free_parameters(network: Network, groups: ChannelGroups) -> tuple[int, int, int]:
    """(parameters that are free to go, parameters of convolutions, those of them that are free to go).

    A parameter is free where one of the channels that it belongs to may be removed: those of a weight's row or column,
    a bias's own. It goes with whichever is removed first, so that not all that are free can go at the same time.
    """
    propagation, classes = groups.analysis.propagation, groups.analysis.classes
    frozen = np.zeros(len(classes), dtype=np.bool_)
    for freeze in propagation.freezes:
        frozen[classes[freeze.ids]] = True
    held = frozen[classes]
    free = conv = free_conv = 0
    for name, layer in network.layers().items():
        own = propagation.layers.get(name)
        for tensor, value in layer.named_parameters():
            dims = own.tensors.get(tensor, ()) if own is not None else ()
            found = value.numel() - _kept(value, dims, held)
            free += found
            if isinstance(layer, CONVOLUTIONS):
                conv += value.numel()
                free_conv += found
    for name, ids in propagation.constants.items():
        owner, _, attribute = name.rpartition(".")
        value = getattr(network.module.get_submodule(owner), attribute)
        if isinstance(value, nn.Parameter):
            (small,) = compressed(ids)
            free += round(float((~held[small.numpy()]).mean()) * value.numel())
    return free, conv, free_conv


def _kept(value: Tensor, dims: tuple[Tensor | None, ...], held: Booleans) -> int:
    """How many numbers of a tensor stay whatever is removed: those at frozen places along every dimension."""
    kept = value.numel()
    for size, ids in zip(value.shape, dims, strict=False):
        if ids is not None:
            kept = kept // size * int(held[ids.numpy()].sum())
    return kept if any(ids is not None for ids in dims) else value.numel()


def _share(part: int, whole: int) -> float:
    return part / whole if whole else 0.0


def _layers(network: Network, groups: ChannelGroups) -> list[GraphLayer]:
    member: dict[str, list[str]] = {}
    free: set[str] = set()
    for group in groups.groups:
        for part in (*group.producers, *group.carriers):
            member.setdefault(part.layer, []).append(group.name)
            if group.cuttable:
                free.add(part.layer)
    shapes: dict[str, tuple[list[int], list[int]]] = {}
    for node in network.module.graph.nodes:
        if node.op == "call_module" and node.target not in shapes:
            read = node.all_input_nodes[0]
            shapes[str(node.target)] = list(read.meta["shape"][1:]), list(node.meta["shape"][1:])
    return [
        GraphLayer(
            name=name,
            kind=layer.kind,
            input_shape=shapes[name][0],
            output_shape=shapes[name][1],
            channels=layer.channels,
            params=layer.params,
            macs=layer.macs,
            groups=member.get(name, []),
            frozen=name not in free,
        )
        for name, layer in count(network).layers.items()
    ]


def _groups(groups: ChannelGroups) -> list[GraphGroup]:
    return [
        GraphGroup(
            name=group.name,
            width=group.width,
            unit_channels=len(group.producers[0].channels[0]),
            cuttable=group.cuttable,
            always_kept=group.always_kept,
            producers=[part.layer for part in group.producers],
            carriers=[part.layer for part in group.carriers],
            consumers=[part.layer for part in group.consumers],
        )
        for group in groups.groups
    ]


def _blocks(network: Network, groups: ChannelGroups) -> list[GraphBlock]:
    blocks = find_blocks(network)
    reasons = obstacles(network, blocks, groups)
    return [_block(block, reasons) for block in blocks]


def _block(block: Block, reasons: dict[tuple[str, str | None], str | None]) -> GraphBlock:
    reason = reasons[block.name, None]
    return GraphBlock(
        name=block.name,
        kind=block.kind,
        position=block.position,
        layers=list(block.layers),
        removed=list(block.own),
        params=block.params,
        macs=block.macs,
        input_shape=list(block.input_shape),
        output_shape=list(block.output_shape),
        shortcut=block.shortcut,
        projection=block.shortcut == "projection",
        alike=block.alike,
        inside=block.inside,
        bypassable=reason is None,
        reason=reason,
        branches=[_branch(branch, reasons[block.name, branch.name]) for branch in block.branches],
    )


def _branch(branch: Branch, reason: str | None) -> GraphBranch:
    return GraphBranch(
        name=branch.name,
        layers=list(branch.layers),
        params=branch.params,
        macs=branch.macs,
        bypassable=reason is None,
        reason=reason,
    )
