"""Normalisation over neighbouring channels. ONNX `LRN` <-> `nn.LocalResponseNorm`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from onnx import NodeProto
from torch import Tensor, fx, nn

from core.graph.ids import Propagation, compressed, source
from core.graph.operators.form import Form

if TYPE_CHECKING:
    from core.graph.onnx_reading import Reading
    from core.graph.onnx_writing import Writing


def read_lrn(reading: Reading, node: NodeProto) -> fx.Node:
    """LRN-1, 13. Of an even size ONNX takes one neighbour more behind a channel, torch one more in front."""
    attributes = reading.attributes(node, alpha=1e-4, beta=0.75, bias=1.0, size=None)
    x = reading.activation(node, 0)
    size, rank = int(attributes["size"] or 0), len(x.meta["shape"])
    if rank != 4:  # nor does ONNX Runtime take another
        raise reading.unknown(node, f"an input of rank {rank}; only 4 is taken")
    if not 1 <= size <= 65_535:
        raise reading.refused(node, f"size {size}; it is at least 1")
    if size % 2 == 0:
        raise reading.unknown(node, f"size {size}: of an even one ONNX and torch take other neighbours")
    alpha, beta, bias = (float(attributes[name]) for name in ("alpha", "beta", "bias"))
    return reading.layer(node, "", lambda: nn.LocalResponseNorm(size, alpha, beta, bias), x)


def lrn_rule(p: Propagation, node: fx.Node) -> Tensor:
    """Each channel is divided by its neighbours: one that goes would change them, and who is next to whom."""
    ids = p.ids[source(node)]
    (small,) = compressed(ids)
    if small.shape[1] == 1:
        return ids
    return p.frozen_result([ids], node, "it normalises each channel by its neighbours")


def write_lrn(writing: Writing, node: fx.Node) -> None:
    """LRN-1 and its successor."""
    layer = writing.module.get_submodule(str(node.target))
    assert isinstance(layer, nn.LocalResponseNorm)
    if layer.size % 2 == 0:
        raise writing.too_old("LRN", node, "of an even size, where ONNX takes other neighbours than torch", None)
    if len(node.meta["shape"]) != 4:
        raise writing.too_old("LRN", node, f"of rank {len(node.meta['shape'])}, where ONNX Runtime takes 4", None)
    x = writing.value(source(node))
    writing.add("LRN", [x], node, alpha=layer.alpha, beta=layer.beta, bias=layer.k, size=layer.size)


READERS = {"LRN": read_lrn}
FORMS = {nn.LocalResponseNorm: Form(lrn_rule, write_lrn)}
