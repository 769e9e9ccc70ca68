"""Norms spelled out, as ONNX text, and the layers that come of them."""

from __future__ import annotations

import numpy as np
from torch import nn

from core.graph.network import Network

PARTS = {"two": np.array(2, np.float32), "e": np.array(0.25, np.float32)}


def parts(axes: str, x: str = "x", eps: str = "e", end: str = "y = Mul(q, s)  ", last: str = "") -> str:
    """A norm as torch exports it before opset 17."""
    return (
        f"m = ReduceMean<axes=[{axes}]>({x})  d = Sub({x}, m)  p = Pow(d, two)  v = ReduceMean<axes=[{axes}]>(p)  "
        f"a = Add(v, {eps})  r = Sqrt(a)  q = Div(d, r)  {end}{last}"
    )


def norms_of(network: Network) -> list[nn.Module]:
    nodes = network.module.graph.nodes
    return [network.module.get_submodule(str(node.target)) for node in nodes if node.op == "call_module"]
