"""What convolution and pooling share: strides, dilations and paddings of a sliding window, as ONNX gives them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from onnx import NodeProto

if TYPE_CHECKING:
    from core.graph.onnx_reading import Reading

Sizes = tuple[int, ...]


@dataclass(frozen=True)
class Window:
    strides: Sizes
    dilations: Sizes


def window_attributes(reading: Reading, node: NodeProto, attributes: dict[str, Any], kernel: Sizes) -> Window:
    """Strides and dilations, one per spatial dimension, at least 1."""
    rank = len(kernel)
    strides = tuple(attributes["strides"] or (1,) * rank)
    dilations = tuple(attributes.get("dilations") or (1,) * rank)
    for name, values in (("kernel_shape", kernel), ("strides", strides), ("dilations", dilations)):
        if len(values) != rank or not all(1 <= value <= 65_535 for value in values):
            raise reading.refused(node, f"{name} is {list(values)}; {rank} numbers from 1 to 65535 are needed")
    return Window(strides, dilations)


def same_padding(
    reading: Reading,
    node: NodeProto,
    attributes: dict[str, Any],
    spatial: Sizes,
    kernel: Sizes,
    window: Window,
    others: Sizes | None = None,
) -> tuple[Sizes, Sizes]:
    """Padding (at the beginnings, at the ends), with `auto_pad` worked out for `spatial`, the input's size.

    `others` is the size for the second example: a dimension that is the same for both does not follow the input.
    """
    rank = len(kernel)
    auto = attributes["auto_pad"].decode()
    if auto == "VALID":
        return (0,) * rank, (0,) * rank
    if auto == "NOTSET":
        pads = tuple(attributes["pads"] or (0,) * (2 * rank))
        if len(pads) != 2 * rank or not all(0 <= value <= 65_535 for value in pads):
            raise reading.refused(node, f"pads is {list(pads)}; {2 * rank} numbers from 0 to 65535 are needed")
        return pads[:rank], pads[rank:]
    if auto not in ("SAME_UPPER", "SAME_LOWER"):
        raise reading.unknown(node, f"auto_pad {auto!r}")
    begin, end = [], []
    for index, (size, width) in enumerate(zip(spatial, kernel, strict=True)):
        stride, dilation = window.strides[index], window.dilations[index]
        open_size = reading.dynamic_space and (others is None or others[index] != size)
        if stride > 1 and width > 1 and open_size:  # how much depends on what is left over by the strides
            raise reading.unknown(node, f"auto_pad {auto!r} with a stride on inputs of dynamic size")
        total = max(0, (-(-size // stride) - 1) * stride + (width - 1) * dilation + 1 - size)
        small, large = total // 2, total - total // 2
        begin.append(large if auto == "SAME_LOWER" else small)
        end.append(small if auto == "SAME_LOWER" else large)
    return tuple(begin), tuple(end)
