"""Norms that a model spells out as means, squares and roots, put back together as layers.

torch exports a LayerNorm so before opset 17, the scale of a GroupNorm before 21, and some networks are written so.
Only what computes the same is raised. As parts, a mean over the channels would freeze them.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from core.graph.building import Building
from core.graph.operators.group_norm import group_norm
from core.graph.operators.layer_norm import layer_norm, rms_norm

aten = torch.ops.aten


def raise_norms(building: Building) -> None:
    """Replaces every spelled-out LayerNorm, RMSNorm and GroupNorm in a complete graph (its output is there).

    Nodes that nothing uses go with them.
    """
    for node in list(building.graph.nodes):
        if node._erased:
            continue
        if node.target in (aten.div.Tensor, aten.mul.Tensor):
            found = _standardised(node)
            if found is not None:
                _raise_standardised(building, node, found)
        elif node.op == "call_module":
            _raise_scale(building, node)
    for node in reversed(building.graph.nodes):
        if not node.users and node.op not in ("placeholder", "output"):
            building.graph.erase_node(node)


# --- x / sqrt(mean of squares + eps) ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Standardised:
    """(x - mean) / sqrt(variance + eps) over `dims`, or without `centred` x / sqrt(mean of x² + eps)."""

    x: fx.Node
    dims: tuple[int, ...]
    eps: float
    centred: bool


def _standardised(node: fx.Node) -> _Standardised | None:
    for numerator, deviation in _quotients(node):
        eps_and_squares = _under_root(deviation)
        if eps_and_squares is None:
            continue
        eps, variance = eps_and_squares
        squares_and_dims = _mean(variance)
        if squares_and_dims is None or not _is_square_of(squares_and_dims[0], numerator):
            continue
        dims = squares_and_dims[1]
        x = _centred(numerator, dims)
        return _Standardised(x, dims, eps, True) if x is not None else _Standardised(numerator, dims, eps, False)
    return None


def _quotients(node: fx.Node) -> list[tuple[fx.Node, fx.Node]]:
    """(a, b) where `node` is a / sqrt(b), by a division or by a product with the reciprocal."""
    if len(node.args) < 2 or not all(isinstance(item, fx.Node) for item in node.args[:2]):
        return []
    a, b = (item for item in node.args[:2] if isinstance(item, fx.Node))
    if node.target is aten.div.Tensor:
        root = _root(b)
        return [(a, root)] if root is not None else []
    found = []
    for one, other in ((a, b), (b, a)):
        inner = other.args[0] if other.target is aten.reciprocal.default else None
        root = _root(inner) if isinstance(inner, fx.Node) else _power(other, -0.5)
        if root is not None:
            found.append((one, root))
    return found


def _root(node: fx.Node) -> fx.Node | None:
    if node.target is aten.sqrt.default:
        return _node(node.args[0])
    return _power(node, 0.5)


def _power(node: fx.Node, exponent: float) -> fx.Node | None:
    """a, where `node` is a to the power of `exponent`."""
    return _node(node.args[0]) if node.target is aten.pow.Tensor_Scalar and node.args[1] == exponent else None


def _under_root(node: fx.Node) -> tuple[float, fx.Node] | None:
    """(eps, a), where `node` is a + eps."""
    if node.target is not aten.add.Tensor or len(node.args) != 2 or node.kwargs:
        return None
    a, eps = node.args
    return (float(eps), a) if isinstance(a, fx.Node) and isinstance(eps, float | int) and eps >= 0 else None


def _mean(node: fx.Node) -> tuple[fx.Node, tuple[int, ...]] | None:
    """(a, dims), where `node` is the mean of a over dims that are kept as 1."""
    if node.target is not aten.mean.dim or len(node.args) < 3 or not node.args[2] or node.args[1] is None:
        return None
    a = _node(node.args[0])
    dims: Any = node.args[1] if isinstance(node.args[1], list | tuple) else [node.args[1]]
    if a is None:
        return None
    rank = len(a.meta["shape"])
    return a, tuple(sorted(int(dim) % rank for dim in dims))


def _is_square_of(node: fx.Node, other: fx.Node) -> bool:
    if node.target is aten.mul.Tensor:
        return all(isinstance(item, fx.Node) and _same(item, other) for item in node.args)
    base = _power(node, 2)
    return base is not None and _same(base, other)


def _centred(node: fx.Node, dims: tuple[int, ...]) -> fx.Node | None:
    """x, where `node` is x - mean of x over `dims`."""
    if node.target is not aten.sub.Tensor or len(node.args) != 2 or node.kwargs:
        return None
    x, mean = node.args
    found = _mean(mean) if isinstance(mean, fx.Node) else None
    same = isinstance(x, fx.Node) and found is not None and found[1] == dims and _same(found[0], x)
    return _node(x) if same else None


def _same(a: fx.Node, b: fx.Node, depth: int = 3) -> bool:
    """Whether two nodes are one, or compute the same from the same: x - mean is often written twice."""
    if a is b:
        return True
    if depth == 0 or a.op != "call_function" or a.target is not b.target or a.kwargs != b.kwargs:
        return False
    return len(a.args) == len(b.args) and all(
        _same(one, other, depth - 1) if isinstance(one, fx.Node) and isinstance(other, fx.Node) else one == other
        for one, other in zip(a.args, b.args, strict=True)
    )


def _node(value: Any) -> fx.Node | None:
    return value if isinstance(value, fx.Node) else None


def _raise_standardised(building: Building, node: fx.Node, found: _Standardised) -> None:
    x, dims = found.x, found.dims
    shape, rank = x.meta["shape"], len(x.meta["shape"])
    fixed = all(building.other_shape(x)[dim] == shape[dim] for dim in dims)
    last, scale, shift = _affine(building, node, dims, shift=found.centred)
    tensors = [None if item is None else _value(building, item) for item in (scale, shift)]
    name = _name(scale, "norm")
    per_channel = all(item is None or _along_channels(item, rank) for item in tensors)
    with building.graph.inserting_before(last):
        if found.centred and rank > 2 and dims == tuple(range(1, rank)) and per_channel:
            flat = [None if item is None else item.reshape(-1).expand(shape[1]).clone() for item in tensors]
            weight, bias = _with_both(shape[1], *flat)
            layer: nn.Module = group_norm(1, shape[1], found.eps, weight, bias)
            made = _applied(building, name, layer, x, scale, shift)
        elif dims == tuple(range(rank - len(dims), rank)) and dims[0] > 0 and fixed:
            made = _applied(building, name, _last(found, shape, tensors), x, scale, shift)
        elif dims == (1,) and fixed:
            turned = building.call(aten.permute.default, x, [0, *range(2, rank), 1])
            flat = [None if item is None else item.reshape(-1) for item in tensors]
            normed = _applied(building, name, _last(found, (shape[1],), flat), turned, scale, shift)
            made = building.call(aten.permute.default, normed, [0, rank - 1, *range(1, rank - 1)])
        else:
            return
    _replace(building, last, made)


def _last(found: _Standardised, shape: tuple[int, ...], tensors: list[Tensor | None]) -> nn.Module:
    """The norm over the last dimensions, `shape`, or as many of them as `dims` are."""
    sizes = shape[-len(found.dims) :]
    weight, bias = (None if item is None else _fitted(item, sizes) for item in tensors)
    if found.centred:
        return layer_norm(sizes, found.eps, weight, bias)
    return rms_norm(sizes, found.eps, weight)


def _fitted(value: Tensor, sizes: tuple[int, ...]) -> Tensor:
    """A constant over the dimensions of the norm; those in front of them are 1."""
    value = value.reshape(value.shape[max(0, value.dim() - len(sizes)) :])
    return value.expand(sizes).clone()


def _affine(
    building: Building, node: fx.Node, dims: Iterable[int], *, shift: bool
) -> tuple[fx.Node, fx.Node | None, fx.Node | None]:
    """(last node, scale, shift): the product with a constant behind `node`, and behind it the sum with another, both
    the same for all places but those of `dims`."""
    scale = _constant_behind(building, node, aten.mul.Tensor, dims)
    if scale is None:
        return node, None, None
    (node,) = node.users
    added = _constant_behind(building, node, aten.add.Tensor, dims) if shift else None
    return (node if added is None else next(iter(node.users))), scale, added


def _constant_behind(building: Building, node: fx.Node, target: Any, dims: Iterable[int]) -> fx.Node | None:
    if len(node.users) != 1:
        return None
    (user,) = node.users
    others = [item for item in user.args if item is not node]
    if user.target is not target or user.kwargs or len(user.args) != 2 or len(others) != 1:
        return None
    constant, shape = _node(others[0]), node.meta["shape"]
    if constant is None or constant.op != "get_attr" or user.meta["shape"] != shape:
        return None
    if isinstance(_value(building, constant, copied=False), nn.Parameter) and len(constant.users) > 1:
        return None  # training would part what is one
    sizes = constant.meta["shape"]
    varying = {dim + len(shape) - len(sizes) for dim, size in enumerate(sizes) if size != 1}
    return constant if varying <= set(dims) else None


def _along_channels(value: Tensor, rank: int) -> bool:
    """Whether a constant that meets a value of `rank` is one number, or a number for each channel."""
    dim = value.dim() - rank + 1
    return value.numel() == 1 or (dim >= 0 and value.shape[dim] == value.numel())


def _with_both(channels: int, weight: Tensor | None, bias: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
    if weight is None:
        return None, None
    return weight, torch.zeros(channels) if bias is None else bias


# --- what follows a GroupNorm that has no scale yet ------------------------------------------------------------------


def _raise_scale(building: Building, node: fx.Node) -> None:
    """GroupNorm(x) * weight [+ bias], as torch exports it."""
    layer = building.root.get_submodule(str(node.target))
    if not isinstance(layer, nn.GroupNorm) or layer.affine:
        return
    last, scale, shift = _affine(building, node, (1,), shift=True)
    if scale is None:
        return
    channels = layer.num_channels
    flat = [None if item is None else _value(building, item).reshape(-1).expand(channels) for item in (scale, shift)]
    weight, bias = _with_both(channels, *flat)
    building.remove(str(node.target))
    scaled = group_norm(layer.num_groups, channels, layer.eps, weight, bias)
    name = _name(scale, str(node.target))
    with building.graph.inserting_before(last):
        made = _applied(building, name, scaled, node.all_input_nodes[0], scale, shift)
    _replace(building, last, made)


# --- both ------------------------------------------------------------------------------------------------------------


def _value(building: Building, constant: fx.Node, *, copied: bool = True) -> Tensor:
    path, _, name = str(constant.target).rpartition(".")
    value: Tensor = getattr(building.root.get_submodule(path), name)
    return value.detach().clone() if copied else value


def _applied(
    building: Building, name: str, layer: nn.Module, x: fx.Node, scale: fx.Node | None, shift: fx.Node | None
) -> fx.Node:
    """The layer applied to `x`. Constants that are in it now go where nothing else uses them."""
    for constant in (scale, shift):
        if constant is not None and len(constant.users) == 1:
            building.remove(str(constant.target))
    return building.apply(building.add_layer(name, layer), x)


def _name(scale: fx.Node | None, otherwise: str) -> str:
    """Of the module whose weight the scale is, where its name says so."""
    stem, _, kind = str(scale.target if scale is not None else "").removeprefix("constants.").rpartition(".")
    return stem if stem and kind == "weight" else otherwise


def _replace(building: Building, old: fx.Node, new: fx.Node) -> None:
    """`new` in the place of `old`, which nothing uses then."""
    old.replace_all_uses_with(new)
