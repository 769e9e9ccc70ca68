"""Dropout, which does nothing to a network that is not being trained. ONNX `Dropout` <-> `nn.Dropout`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from onnx import NodeProto
from torch import fx, nn

from core.graph.ids import source
from core.graph.operators.form import Form
from core.graph.operators.unary import pass_rule

if TYPE_CHECKING:
    from core.graph.onnx_reading import Reading
    from core.graph.onnx_writing import Writing


def read_dropout(reading: Reading, node: NodeProto) -> fx.Node:
    """Dropout-7, 10, 12, 13, 22 in inference mode; it drops when the network is trained."""
    attributes = reading.attributes(node, ratio=0.5, seed=None)
    if len([name for name in node.output if name]) > 1 and reading.uses(node.output[1]):
        raise reading.unknown(node, "a Dropout whose mask is read")
    ratio = attributes["ratio"]
    if reading.opset >= 12:
        ratio = reading.scalar(node, 1) if reading.given(node, 1) else 0.5
        if reading.given(node, 2) and reading.scalar(node, 2):
            raise reading.unknown(node, "Dropout in training mode")
    if not 0 <= ratio < 1:
        raise reading.refused(node, f"a dropout ratio of {ratio}; it lies in [0, 1)")
    return reading.layer(node, "", lambda: nn.Dropout(float(ratio)), reading.activation(node, 0))


def write_dropout(writing: Writing, node: fx.Node) -> None:
    """Opset 12 made the ratio an input."""
    layer = writing.module.get_submodule(str(node.target))
    assert isinstance(layer, nn.Dropout)
    ratio = layer.p
    x = writing.value(source(node))
    if writing.opset < 12:
        writing.add("Dropout", [x], node, ratio=ratio)
    else:
        writing.add("Dropout", [x, writing.tensor(f"{node.target}.ratio", np.float32(ratio))], node)


READERS = {"Dropout": read_dropout}
FORMS = {nn.Dropout: Form(pass_rule, write_dropout)}
