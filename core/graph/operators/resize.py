"""Resize and Upsample. ONNX `Resize` <-> `aten.upsample_*.vec` by scales or to fixed sizes, `resize_like` to the open
sizes of another value.

Taken is what torch computes too: nearest (a place is floor(x / scale), or floor((x + 0.5) / scale)), linear and cubic
with half pixels or aligned corners. Another rule of nearest is taken where all sizes are fixed, as a choice of places.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from onnx import NodeProto
from torch import Tensor, fx

from core.graph.ids import Propagation, argument, source
from core.graph.operators.form import Form
from core.graph.operators.gather import selected
from core.graph.sizes import Size

if TYPE_CHECKING:
    from core.graph.onnx_reading import Reading
    from core.graph.onnx_writing import Writing

aten = torch.ops.aten
NEAREST = {1: aten.upsample_nearest1d.vec, 2: aten.upsample_nearest2d.vec, 3: aten.upsample_nearest3d.vec}
NEAREST_EXACT = {
    1: aten._upsample_nearest_exact1d.vec,
    2: aten._upsample_nearest_exact2d.vec,
    3: aten._upsample_nearest_exact3d.vec,
}
LINEAR = {1: aten.upsample_linear1d.vec, 2: aten.upsample_bilinear2d.vec, 3: aten.upsample_trilinear3d.vec}
CUBIC = {2: aten.upsample_bicubic2d.vec}
WITHOUT_SIZE = ("asymmetric", "half_pixel", "pytorch_half_pixel", "tf_half_pixel_for_nn")
PROVED = 4_096
"""Places for which a rule of nearest is compared with torch's, where the sizes are open."""


def resize_like(x: Tensor, other: Tensor, dims: list[int], times: list[int], mode: str, align: bool) -> Tensor:
    """`x` (N, C, ...) with its places as many as `times` those of `other` along `dims`: the form for open sizes."""
    size = [other.shape[dim] * factor for dim, factor in zip(dims, times, strict=True)]
    if mode.startswith("nearest"):
        return F.interpolate(x, size, mode=mode)
    return F.interpolate(x, size, mode=mode, align_corners=align)


@dataclass(frozen=True)
class _Rule:
    """How a node of the graph resizes."""

    mode: str
    transformation: str
    rounding: str

    def text(self) -> str:
        rounding = f", {self.rounding}" if self.mode == "nearest" else ""
        return f"mode {self.mode!r} ({self.transformation}{rounding})"


@dataclass(frozen=True)
class _Target:
    """What a node resizes to: factors or sizes of the dimensions behind the channels. One of them is None."""

    scales: list[float] | None
    sizes: list[Any] | None


def read_upsample(reading: Reading, node: NodeProto) -> fx.Node:
    """Upsample-9: as Resize-10."""
    mode = reading.attributes(node, mode=b"nearest")["mode"].decode()
    return _resized(reading, node, _Rule(mode, "asymmetric", "floor"), reading.activation(node, 0), 1, None, None)


def read_resize(reading: Reading, node: NodeProto) -> fx.Node:
    """Resize-10 (scales), 11, 13 (or sizes), 18 (of some axes), 19."""
    given = reading.attributes(
        node, mode=b"nearest", coordinate_transformation_mode=b"half_pixel", nearest_mode=b"round_prefer_floor",
        cubic_coeff_a=-0.75, exclude_outside=0, extrapolation_value=0.0, antialias=0, axes=None,
        keep_aspect_ratio_policy=b"stretch",
    )  # fmt: skip
    mode = given["mode"].decode()
    x = reading.activation(node, 0)
    if reading.opset < 11:
        return _resized(reading, node, _Rule(mode, "asymmetric", "floor"), x, 1, None, None)
    if given["antialias"] or given["exclude_outside"]:
        raise reading.unknown(node, f"mode {mode!r} with antialias or exclude_outside")
    if given["keep_aspect_ratio_policy"] != b"stretch":
        raise reading.unknown(node, f"keep_aspect_ratio_policy {given['keep_aspect_ratio_policy'].decode()!r}")
    if mode == "cubic" and given["cubic_coeff_a"] != -0.75:
        raise reading.unknown(node, f"mode 'cubic' with cubic_coeff_a {given['cubic_coeff_a']}, not -0.75")
    rule = _Rule(mode, given["coordinate_transformation_mode"].decode(), given["nearest_mode"].decode())
    by_size = reading.given(node, 3)
    return _resized(reading, node, rule, x, 3 if by_size else 2, given["axes"], by_size)


def _resized(
    reading: Reading, node: NodeProto, rule: _Rule, x: fx.Node, index: int, axes: list[int] | None, by_size: bool | None
) -> fx.Node:
    """`x` resized as input `index` says: sizes where `by_size`, else factors. Channels that stand last are put where
    torch has them, and back."""
    shape = x.meta["shape"]
    rank = len(shape)
    dims = [reading.axis(node, axis, rank) for axis in axes] if axes is not None else list(range(rank))
    wanted = reading.shape(node, index) if by_size else _factors(reading, node, index)
    if len(wanted) != len(dims) or len(set(dims)) != len(dims):
        raise reading.refused(node, f"{len(wanted)} numbers for {len(dims)} dimensions")
    asked = dict(zip(dims, wanted, strict=True))
    changed = {dim for dim, value in asked.items() if _changes(reading, x, dim, value, bool(by_size))}
    if not changed:
        return x
    last = rank > 2 and 1 in changed and rank - 1 not in changed
    spatial = list(range(1, rank - 1)) if last else list(range(2, rank))
    if 0 in changed or not changed <= set(spatial):
        raise reading.unknown(node, f"{rule.text()} along the batch or the channels")
    if not 1 <= len(spatial) <= 3:
        raise reading.unknown(node, f"{rule.text()} of an input of rank {rank}")
    if by_size:
        sizes = [asked.get(dim) if dim in changed else _own(reading, x, dim) for dim in spatial]
        target = _Target(None, sizes)
    else:
        target = _Target([float(asked.get(dim, 1)) for dim in spatial], None)
    if last:
        x = reading.call(aten.permute.default, x, [0, rank - 1, *range(1, rank - 1)])
    x = _apply(reading, node, rule, x, target)
    return reading.call(aten.permute.default, x, [0, *range(2, rank), 1]) if last else x


def _factors(reading: Reading, node: NodeProto, index: int) -> list[float]:
    array = reading.constants.get(node.input[index]) if reading.given(node, index) else None
    if array is None or array.dtype.kind != "f" or array.ndim != 1:
        raise reading.unknown(node, "factors that are not constant numbers")
    if not np.isfinite(array).all() or (array <= 0).any():
        raise reading.refused(node, f"factors {array.tolist()}; they are above 0")
    return [float(value) for value in array]


def _changes(reading: Reading, x: fx.Node, dim: int, value: Any, by_size: bool) -> bool:
    if not by_size:
        return bool(value != 1)
    if dim == 0 and reading.is_batch(value):
        return False
    pair = value.examples if isinstance(value, Size) else (value, value)
    return bool(pair != (x.meta["shape"][dim], reading.other_shape(x)[dim]))


def _own(reading: Reading, x: fx.Node, dim: int) -> Any:
    """A dimension's own size, of a node whose other dimensions are resized to sizes."""
    return None if reading.is_open(x, dim) else x.meta["shape"][dim]


def _apply(reading: Reading, node: NodeProto, rule: _Rule, x: fx.Node, target: _Target) -> fx.Node:
    rank = len(x.meta["shape"]) - 2
    if target.sizes is None or not any(size is None or isinstance(size, Size) for size in target.sizes):
        scales, sizes = _plain(reading, x, target)
        return _by_rule(reading, node, rule, x, scales, sizes)
    found = _like(target.sizes)
    if found is None:
        raise reading.unknown(node, f"{rule.text()} to sizes that are not multiples of one other value's")
    other, dims, times = found
    if other is x and dims == list(range(2, rank + 2)):
        return _by_rule(reading, node, rule, x, [float(factor) for factor in times], None)
    mode = _mode_like(rule, rank)
    if mode is None:
        raise reading.unknown(node, f"{rule.text()} to the open sizes of another value")
    return reading.call(resize_like, x, other, dims, times, *mode)


def _like(sizes: list[Any]) -> tuple[fx.Node, list[int], list[int]] | None:
    """(value, its dimensions, how many times each of them) that the sizes are; a fixed one is at its own place."""
    found = {index: size.multiple() for index, size in enumerate(sizes) if isinstance(size, Size)}
    nodes = {item[0].node for item in found.values() if item is not None}
    if len(nodes) != 1 or None in found.values() or None in nodes:
        return None
    other = next(node for node in nodes if node is not None)
    first, known = next((index, item[0].dim) for index, item in found.items() if item is not None)
    dims, times = [], []
    for index, size in enumerate(sizes):
        item = found.get(index)
        dim = item[0].dim if item is not None else known + index - first
        if item is None and (
            size is None or not 0 < dim < len(other.meta["shape"]) or other.meta["shape"][dim] != size
        ):
            return None
        if item is not None and item[1].denominator != 1:
            return None
        dims.append(dim)
        times.append(int(item[1]) if item is not None else 1)
    return other, dims, times


def _plain(reading: Reading, x: fx.Node, target: _Target) -> tuple[list[float] | None, list[int] | None]:
    if target.scales is not None:
        return target.scales, None
    assert target.sizes is not None
    return None, [int(size) for size in target.sizes]


def _mode_like(rule: _Rule, rank: int) -> tuple[str, bool] | None:
    """(mode, align_corners) as torch calls them, of a rule that needs no sizes."""
    linear = {1: "linear", 2: "bilinear", 3: "trilinear"}[rank]
    named = {"linear": linear, "cubic": "bicubic" if rank == 2 else None}.get(rule.mode)
    if rule.mode == "nearest":
        if (rule.transformation, rule.rounding) == ("asymmetric", "floor"):
            return "nearest", False
        exact = rule.transformation in ("half_pixel", "pytorch_half_pixel") and rule.rounding == "round_prefer_ceil"
        return ("nearest-exact", False) if exact or rule.transformation == "tf_half_pixel_for_nn" else None
    if named is None or rule.transformation not in ("half_pixel", "pytorch_half_pixel", "align_corners"):
        return None
    return named, rule.transformation == "align_corners"


def _by_rule(
    reading: Reading, node: NodeProto, rule: _Rule, x: fx.Node, scales: list[float] | None, sizes: list[int] | None
) -> fx.Node:
    """One ATen call, to fixed factors or sizes; where torch has none, fixed places are chosen."""
    shape = x.meta["shape"][2:]
    rank = len(shape)
    fixed = not any(reading.is_open(x, dim) for dim in range(2, rank + 2))
    out = sizes or [math.floor(size * factor) for size, factor in zip(shape, scales or [], strict=True)]
    if min(out) < 1:
        raise reading.refused(node, f"sizes {out}")
    if rule.mode == "nearest":
        factors = scales or [end / size for size, end in zip(shape, out, strict=True)]
        ways = [_Way(size, end, factor) for size, end, factor in zip(shape, out, factors, strict=True)]
        for table, exact in ((NEAREST, False), (NEAREST_EXACT, True)):
            to_size = not fixed and sizes is not None  # by another factor for each image
            agrees = to_size and _mode_like(rule, rank) == ("nearest-exact" if exact else "nearest", False)
            if agrees or (not to_size and all(_agree(reading, node, rule, way, exact, fixed) for way in ways)):
                return reading.call(table[rank], x, sizes, scales)
        if not fixed:
            raise reading.unknown(node, f"{rule.text()} of dynamic dimensions")
        for index, way in enumerate(ways):
            places = _places(reading, node, rule, np.arange(way.out), way)
            x = selected(reading, x, index + 2, places.tolist(), f"{node.name or x.name}.places")
        return x
    mode = _mode_like(rule, rank)
    if rule.transformation == "align_corners" and scales is not None and not _lands_on_corners(shape, scales, fixed):
        raise reading.unknown(node, f"{rule.text()} by the factors {scales}, which miss the last place")
    single = rule.transformation == "pytorch_half_pixel" and any(
        end == 1 and size > 1 for size, end in zip(shape, out, strict=True)
    )
    if mode is None or single:
        raise reading.unknown(node, rule.text())
    table_of: Any = CUBIC if rule.mode == "cubic" else LINEAR
    return reading.call(table_of[rank], x, sizes, mode[1], scales)


def _lands_on_corners(shape: Sequence[int], scales: list[float], fixed: bool) -> bool:
    """The standard takes the corner to be at size times factor, which need not be a place."""
    return all(
        factor.is_integer() or (fixed and float(size * factor).is_integer())
        for size, factor in zip(shape, scales, strict=True)
    )


@dataclass(frozen=True)
class _Way:
    """From `size` places to `out`, by `factor`."""

    size: int
    out: int
    factor: float


def _agree(reading: Reading, node: NodeProto, rule: _Rule, way: _Way, exact: bool, fixed: bool) -> bool:
    """Whether torch's nearest chooses the same places. Where the size is open: among the first few thousand, by a rule
    that does not ask for the size."""
    small = rule.transformation == "pytorch_half_pixel" and way.factor < 1
    if not fixed and (rule.transformation not in WITHOUT_SIZE or small):
        return False
    x = np.arange(way.out if fixed else max(PROVED, way.out), dtype=np.float32)
    size = way.size if fixed else 2**31
    step = np.float32(1 / way.factor)
    torch_places = np.minimum(np.floor((x + np.float32(0.5 if exact else 0)) * step), size - 1)
    return np.array_equal(torch_places, _places(reading, node, rule, x, _Way(size, way.out, way.factor)))


def _places(reading: Reading, node: NodeProto, rule: _Rule, x: npt.NDArray[Any], way: _Way) -> npt.NDArray[np.int64]:
    """For each place of the output that of the input, as the standard says."""
    half = (x + 0.5) / way.factor - 0.5
    positions = {
        "asymmetric": x / way.factor,
        "half_pixel": half,
        "half_pixel_symmetric": half + way.size / 2 * (1 - way.out / (way.factor * way.size)),
        "pytorch_half_pixel": half if way.out > 1 else np.zeros_like(half),
        "tf_half_pixel_for_nn": (x + 0.5) / way.factor,
        "align_corners": x * (way.size - 1) / max(way.factor * way.size - 1, 1),
    }
    if rule.transformation not in positions or rule.rounding not in ROUNDINGS:
        raise reading.unknown(node, rule.text())
    places = np.asarray(ROUNDINGS[rule.rounding](positions[rule.transformation]))
    return np.asarray(np.clip(places, 0, way.size - 1).astype(np.int64))


ROUNDINGS: dict[str, Callable[[Any], Any]] = {
    "floor": np.floor,
    "ceil": np.ceil,
    "round_prefer_floor": lambda places: np.ceil(places - 0.5),
    "round_prefer_ceil": lambda places: np.floor(places + 0.5),
}


def resize_rule(p: Propagation, node: fx.Node) -> Tensor:
    """A place is made of places of the same channel. Channels that lie along space are mixed: frozen."""
    ids = p.ids[source(node)]
    first = ids
    for dim in range(2, ids.dim()):
        first = first.narrow(dim, 0, 1)
    if not bool((ids == first).all()):
        return p.frozen_result([ids], node, "it mixes places along which channels lie")
    return first.expand(node.meta["shape"])


# --- writing -------------------------------------------------------------------------------------------------------


def _writer(mode: str, exact: bool = False) -> Callable[[Writing, fx.Node], None]:
    def write(writing: Writing, node: fx.Node) -> None:
        """Opset 11 brought sizes, half pixels and aligned corners; 10 Resize; Upsample is of 9."""
        last = argument(node, 3 if mode != "nearest" else 2)
        sizes, align = argument(node, 1), mode != "nearest" and bool(argument(node, 2))
        shape = source(node).meta["shape"]
        by_factor = sizes is None
        if by_factor:
            factors = [float(factor) for factor in last]
        else:
            factors = [end / size for end, size in zip(sizes, shape[2:], strict=True)]
            open_size = any(writing.is_open(source(node), dim) for dim in range(2, len(shape)))
            by_factor = not open_size and all(factor.is_integer() for factor in factors)
        x = writing.value(source(node))
        if writing.opset < 11:
            if mode != "nearest" or exact or not by_factor:
                raise writing.too_old("Resize", node, f"of mode {mode} to {sizes or factors}", 11)
            scales = writing.tensor(f"{node.name}.scales", np.array([1, 1, *factors], dtype=np.float32))
            writing.add("Resize" if writing.opset == 10 else "Upsample", [x, scales], node, mode="nearest")
            return
        how = _how(mode, exact, align)
        if by_factor:
            scales = writing.tensor(f"{node.name}.scales", np.array([1, 1, *factors], dtype=np.float32))
            writing.add("Resize", [x, _nothing(writing, node), scales], node, **how)
            return
        tail = writing.tensor(f"{node.name}.sizes", np.array(sizes, dtype=np.int64))
        _write_sizes(writing, node, x, tail, how)

    return write


def _how(mode: str, exact: bool, align: bool) -> dict[str, str]:
    if mode == "nearest":
        transformation = "half_pixel" if exact else "asymmetric"
        rounding = "round_prefer_ceil" if exact else "floor"
        return {"mode": mode, "coordinate_transformation_mode": transformation, "nearest_mode": rounding}
    transformation = "align_corners" if align else "half_pixel"
    return {"mode": mode, "coordinate_transformation_mode": transformation}


def _write_sizes(writing: Writing, node: fx.Node, x: str, tail: str, how: dict[str, str]) -> None:
    """Batch and channels as they are, behind them the sizes `tail`."""
    shape = writing.add("Shape", [x], None, hint=f"{node.name}.shape")
    front = writing.tensor(f"{node.name}.front", np.array([0, 1]))
    head = writing.add("Gather", [shape, front], None, hint=f"{node.name}.head", axis=0)
    target = writing.add("Concat", [head, tail], None, hint=f"{node.name}.target", axis=0)
    empty = _nothing(writing, node)
    writing.add("Resize", [x, empty, empty, target], node, **how)


def _nothing(writing: Writing, node: fx.Node) -> str:
    """An input that is not used: up to opset 12 it could not be left out."""
    return "" if writing.opset >= 13 else writing.tensor(f"{node.name}.none", np.zeros(0, dtype=np.float32))


def write_resize_like(writing: Writing, node: fx.Node) -> None:
    dims, times, mode, align = (argument(node, index) for index in (2, 3, 4, 5))
    if writing.opset < 11:
        raise writing.too_old("Resize", node, "to the sizes of another value", 11)
    known = {"nearest": "nearest", "nearest-exact": "nearest", "bicubic": "cubic"}
    shape = writing.add("Shape", [writing.value(source(node, 1))], None, hint=f"{node.name}.other")
    indices = writing.tensor(f"{node.name}.dims", np.array(dims, dtype=np.int64))
    tail = writing.add("Gather", [shape, indices], None, hint=f"{node.name}.sizes", axis=0)
    if set(times) != {1}:
        factors = writing.tensor(f"{node.name}.times", np.array(times, dtype=np.int64))
        tail = writing.add("Mul", [tail, factors], None, hint=f"{node.name}.multiples")
    how = _how(known.get(str(mode), "linear"), mode == "nearest-exact", bool(align))
    _write_sizes(writing, node, writing.value(source(node)), tail, how)


READERS = {"Resize": read_resize, "Upsample": read_upsample}
FORMS: dict[Any, Form] = {
    **{target: Form(resize_rule, _writer("nearest")) for target in NEAREST.values()},
    **{target: Form(resize_rule, _writer("nearest", exact=True)) for target in NEAREST_EXACT.values()},
    **{target: Form(resize_rule, _writer("linear")) for target in LINEAR.values()},
    **{target: Form(resize_rule, _writer("cubic")) for target in CUBIC.values()},
    resize_like: Form(resize_rule, write_resize_like),
}
