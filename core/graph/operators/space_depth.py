"""Channels to places and back. ONNX `DepthToSpace` <-> `aten.pixel_shuffle`, `SpaceToDepth` <-> `aten.pixel_unshuffle`.

torch's r² channels of one channel stand together (ONNX calls that CRD); where they stand apart (DCR, SpaceToDepth), the
channels are put in torch's order by an `index_select`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from onnx import NodeProto
from torch import Tensor, fx

from core.graph.ids import Propagation, argument, source
from core.graph.operators.form import Form
from core.graph.operators.gather import selected

if TYPE_CHECKING:
    from core.graph.onnx_reading import Reading
    from core.graph.onnx_writing import Writing

aten = torch.ops.aten


def apart_to_together(channels: int, block: int) -> list[int]:
    """Where channel c, place k stands (k · channels + c), in the order c · block² + k."""
    return np.arange(channels * block**2).reshape(block**2, channels).T.reshape(-1).tolist()


def together_to_apart(channels: int, block: int) -> list[int]:
    """Where channel c, place k stands (c · block² + k), in the order k · channels + c."""
    return np.arange(channels * block**2).reshape(channels, block**2).T.reshape(-1).tolist()


def _block(reading: Reading, node: NodeProto, size: int) -> int:
    block = int(size)
    if not 1 <= block <= 4_096:
        raise reading.refused(node, f"a blocksize of {block}")
    if len(reading.activation(node, 0).meta["shape"]) != 4:
        raise reading.refused(node, "an input that is not of rank 4")
    return block


def read_depth_to_space(reading: Reading, node: NodeProto) -> fx.Node:
    """DepthToSpace-1, 11, 13, modes DCR and CRD."""
    given = reading.attributes(node, blocksize=1, mode=b"DCR")
    block, mode = _block(reading, node, given["blocksize"]), given["mode"].decode()
    x = reading.activation(node, 0)
    channels = x.meta["shape"][1] // block**2
    if x.meta["shape"][1] % block**2:
        raise reading.refused(node, f"{x.meta['shape'][1]} channels do not make places of {block} x {block}")
    if mode not in ("DCR", "CRD"):
        raise reading.unknown(node, f"mode {mode!r}")
    if mode == "DCR" and channels > 1:
        x = selected(reading, x, 1, apart_to_together(channels, block), f"{node.name or x.name}.channels")
    return reading.call(aten.pixel_shuffle.default, x, block)


def read_space_to_depth(reading: Reading, node: NodeProto) -> fx.Node:
    """SpaceToDepth-1, 13, and of newer opsets with the mode CRD."""
    given = reading.attributes(node, blocksize=1, mode=b"DCR")
    block, mode = _block(reading, node, given["blocksize"]), given["mode"].decode()
    if mode not in ("DCR", "CRD"):
        raise reading.unknown(node, f"mode {mode!r}")
    x = reading.activation(node, 0)
    channels = x.meta["shape"][1]
    x = reading.call(aten.pixel_unshuffle.default, x, block)
    if mode == "CRD":
        return x
    return selected(reading, x, 1, together_to_apart(channels, block), f"{node.name or x.name}.channels")


def pixel_shuffle_rule(p: Propagation, node: fx.Node) -> Tensor:
    """The r² channels that make one go together."""
    channels = p.along(p.ids[source(node)], 1).reshape(node.meta["shape"][1], -1)
    p.unite(channels, channels[:, :1])
    return p.spread(channels[:, 0], node)


def pixel_unshuffle_rule(p: Propagation, node: fx.Node) -> Tensor:
    """The r² channels that are made of one go together."""
    channels = p.along(p.ids[source(node)], 1)
    return p.spread(channels.repeat_interleave(int(argument(node, 1)) ** 2), node)


def write_pixel_shuffle(writing: Writing, node: fx.Node) -> None:
    """Opset 11 brought the mode CRD; before it the channels are put in the other order."""
    block = int(argument(node, 1))
    x = writing.value(source(node))
    if writing.opset >= 11:
        writing.add("DepthToSpace", [x], node, blocksize=block, mode="CRD")
        return
    order = writing.tensor(f"{node.name}.order", np.array(together_to_apart(node.meta["shape"][1], block)))
    apart = writing.add("Gather", [x, order], None, hint=f"{node.name}.apart", axis=1)
    writing.add("DepthToSpace", [apart], node, blocksize=block)


def write_pixel_unshuffle(writing: Writing, node: fx.Node) -> None:
    block = int(argument(node, 1))
    apart = writing.add("SpaceToDepth", [writing.value(source(node))], None, hint=f"{node.name}.apart", blocksize=block)
    order = np.array(apart_to_together(source(node).meta["shape"][1], block))
    writing.add("Gather", [apart, writing.tensor(f"{node.name}.order", order)], node, axis=1)


READERS = {"DepthToSpace": read_depth_to_space, "SpaceToDepth": read_space_to_depth}
FORMS = {
    aten.pixel_shuffle.default: Form(pixel_shuffle_rule, write_pixel_shuffle),
    aten.pixel_unshuffle.default: Form(pixel_unshuffle_rule, write_pixel_unshuffle),
}
