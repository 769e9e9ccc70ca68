"""From ATen calls to layers: convolutions, linear layers, PReLU, Dropout."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import fx, nn

from core.graph.operators import FORMS
from core.graph.pt2_lowering import Lowering
from core.graph.pt2_values import Activation, Call, Constant
from core.graph.turned import Layout, Turned

aten = torch.ops.aten

CONVOLUTIONS: dict[int, Any] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
TRANSPOSED: dict[int, Any] = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}


def parameter(constant: Constant) -> nn.Parameter:
    """A copy: no layer shares memory with another or with the file."""
    return nn.Parameter(constant.value.detach().clone(memory_format=torch.contiguous_format))


def key_of(constant: Constant | None) -> int | None:
    return None if constant is None else constant.key


# --- convolutions ----------------------------------------------------------------------------------------------------


def _spread(low: Lowering, call: Call, key: str, rank: int) -> tuple[int, ...]:
    """One number per dimension of space; ATen takes one for all."""
    values = low.integers(call, key) if isinstance(call[key], list | tuple) else [low.integer(call, key)]
    values = values * rank if len(values) == 1 else values
    if len(values) != rank:
        raise low.refused(call, f"{key!r} has {len(values)} numbers on {rank} dimensions")
    return tuple(values)


def _same(low: Lowering, call: Call, kernel: tuple[int, ...], dilation: tuple[int, ...]) -> list[tuple[int, int]]:
    """The padding that "same" and "valid" stand for, before and after."""
    if call["padding"] == "valid":
        return [(0, 0)] * len(kernel)
    if call["padding"] != "same":
        raise low.refused(call, f"padding {call['padding']!r}")
    totals = [step * (size - 1) for size, step in zip(kernel, dilation, strict=True)]
    return [(total // 2, total - total // 2) for total in totals]


def convolution(low: Lowering, call: Call) -> fx.Node:
    """conv1d to 3d (also with padding by name), conv_transpose1d to 3d, and `convolution`, which is any of them."""
    x = low.activation(call, "input")
    weight, bias = low.weight(call, "weight"), low.weight_or_none(call, "bias")
    rank = weight.value.dim() - 2
    shape = x.meta["shape"]
    if rank not in CONVOLUTIONS or len(shape) != rank + 2:
        raise low.unknown(call, f"a weight of rank {weight.value.dim()} on an input of rank {len(shape)}")
    transposed = call.operator.startswith("conv_transpose") or bool(call.args.get("transposed"))
    groups = low.integer(call, "groups")
    kernel = tuple(weight.value.shape[2:])
    stride, dilation = _spread(low, call, "stride", rank), _spread(low, call, "dilation", rank)
    ends: list[tuple[int, int]] = []
    if isinstance(call["padding"], str):
        ends = _same(low, call, kernel, dilation)
        padding = tuple(begin for begin, _ in ends)
    else:
        padding = _spread(low, call, "padding", rank)
    output_padding = _spread(low, call, "output_padding", rank) if transposed else (0,) * rank
    rows, columns = weight.value.shape[:2]
    if groups < 1 or rows % groups or (rows if transposed else columns * groups) != shape[1]:
        raise low.refused(
            call, f"groups {groups}, a weight of shape {list(weight.value.shape)} and {shape[1]} channels do not fit"
        )
    if min(stride) < 1 or min(dilation) < 1 or min(padding) < 0:
        raise low.refused(call, f"stride {stride}, dilation {dilation}, padding {padding}")
    if any(begin != end for begin, end in ends):
        amounts = [amount for begin, end in reversed(ends) for amount in (begin, end)]
        x = low.call(aten.constant_pad_nd.default, x, amounts, 0.0)
        padding = (0,) * rank

    def make() -> nn.Module:
        with torch.device("meta"):
            if transposed:
                layer = TRANSPOSED[rank](
                    rows, columns * groups, kernel, stride, padding, output_padding, groups, bias is not None, dilation
                )
            else:
                layer = CONVOLUTIONS[rank](
                    columns * groups, rows, kernel, stride, padding, dilation, groups, bias is not None
                )
        layer.weight = parameter(weight)
        if bias is not None:
            layer.bias = parameter(bias)
        return layer  # type: ignore[no-any-return]

    kind = "conv_transpose" if transposed else "conv"
    shared = (key_of(bias), stride, padding, dilation, groups, output_padding)
    return low.layer(call, kind, weight, shared, make, x)


# --- linear layers ---------------------------------------------------------------------------------------------------


def by_matrix(
    low: Lowering, call: Call, x: tuple[fx.Node, Layout], weight: Constant, bias: Constant | None, turned: bool
) -> Activation:
    """`weight` is (out, in); (in, out) where it is `turned`."""
    node, layout = x
    matrix = weight.value.T if turned else weight.value
    if matrix.dim() != 2 or len(node.meta["shape"]) < 2:
        raise low.unknown(call, f"a weight of rank {matrix.dim()} on an input of rank {len(node.meta['shape'])}")
    if len(node.meta["shape"]) < 2 + layout.before + layout.left + layout.right:
        raise low.unknown(call, "a product along the batch, which mixes the examples")
    if matrix.shape[1] != node.meta["shape"][-1]:
        raise low.refused(call, f"a weight for {matrix.shape[1]} inputs meets {node.meta['shape'][-1]}")
    if bias is not None and any(size != 1 for size in bias.value.shape[:-1]):
        raise low.unknown(call, f"a bias of shape {list(bias.value.shape)}, not one number for each output")
    vector = None if bias is None else bias.value.reshape(-1)
    if vector is not None and vector.numel() != matrix.shape[0]:
        raise low.unknown(call, f"a bias of {vector.numel()} numbers on {matrix.shape[0]} outputs")

    def make() -> nn.Module:
        with torch.device("meta"):
            layer = nn.Linear(matrix.shape[1], matrix.shape[0], bias is not None)
        layer.weight = nn.Parameter(matrix.detach().clone(memory_format=torch.contiguous_format))
        if vector is not None:
            layer.bias = nn.Parameter(vector.detach().clone())
        return layer

    # a weight that is transposed for `addmm` is the same weight as in `linear`
    return low.placed(low.layer(call, "linear", weight, (turned, key_of(bias)), make, node), layout)


def linear(low: Lowering, call: Call) -> Activation:
    weight, bias = low.weight(call, "weight"), low.weight_or_none(call, "bias")
    return by_matrix(low, call, low.lifted(call, "input"), weight, bias, turned=False)


def addmm(low: Lowering, call: Call) -> Activation:
    """beta c + alpha x W with a constant W: a linear layer."""
    if call["beta"] != 1 or call["alpha"] != 1:
        raise low.unknown(call, f"alpha {call['alpha']} and beta {call['beta']}")
    weight, bias = low.weight(call, "mat2"), low.weight(call, "self")
    return by_matrix(low, call, low.lifted(call, "mat1"), weight, bias, turned=True)


# --- PReLU, Dropout ---------------------------------------------------------------------------------------------------


def prelu(low: Lowering, call: Call) -> fx.Node:
    """`_prelu_kernel` has the weight in the shape that broadcasts."""
    x, weight = low.activation(call, "self"), low.weight(call, "weight")
    count = weight.value.numel()
    if count not in (1, x.meta["shape"][1] if len(x.meta["shape"]) > 1 else 1):
        raise low.refused(call, f"{count} slopes on {x.meta['shape'][1]} channels")
    if (
        weight.value.dim() > 1
        and count > 1
        and list(weight.value.shape).index(count) != weight.value.dim() - len(x.meta["shape"]) + 1
    ):
        raise low.unknown(call, f"slopes of shape {list(weight.value.shape)}")

    def make() -> nn.Module:
        with torch.device("meta"):
            layer = nn.PReLU(count)
        layer.weight = nn.Parameter(weight.value.detach().reshape(-1).clone())
        return layer

    return low.layer(call, "prelu", weight, (), make, x)


def dropout(low: Lowering, call: Call) -> Any:
    """Drops when the network is trained, however it was exported. What drops nothing, or whole channels, is left out
    (the latter where the closed list has no layer for it)."""
    value = call["input"]
    share = float(call["p"])
    if not 0 <= share < 1:
        raise low.refused(call, f"a dropout ratio of {share}; it lies in [0, 1)")
    if isinstance(value, Constant) or share == 0 or call.operator == "alpha_dropout.default":
        return value
    kind: type[nn.Module] = nn.Dropout
    if call.operator == "feature_dropout.default":
        kind = {3: nn.Dropout1d, 4: nn.Dropout2d, 5: nn.Dropout3d}.get(len(low.shape(value)), nn.Module)
    if kind not in FORMS or (kind is not nn.Dropout and isinstance(value, Turned)):
        return value
    node, layout = low.lifted(call, "input")
    return low.placed(low.layer(call, "dropout", None, (), lambda: kind(share), node), layout)


_CONVOLUTION_CALLS = (
    "conv1d.default", "conv2d.default", "conv3d.default", "conv1d.padding", "conv2d.padding", "conv3d.padding",
    "conv_transpose1d.default", "conv_transpose2d.input", "conv_transpose3d.input", "convolution.default",
)  # fmt: skip
LOWERINGS: Mapping[str, Callable[[Lowering, Call], Any]] = {
    **dict.fromkeys(_CONVOLUTION_CALLS, convolution),
    "linear.default": linear,
    "addmm.default": addmm,
    "prelu.default": prelu,
    "_prelu_kernel.default": prelu,
    "dropout.default": dropout,
    "native_dropout.default": dropout,
    "feature_dropout.default": dropout,
    "alpha_dropout.default": dropout,
}
