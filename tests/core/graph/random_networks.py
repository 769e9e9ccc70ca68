"""Random small networks as ONNX text, from the whole list of operators: one function per kind of step."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from hypothesis import strategies as st


@dataclass(frozen=True)
class Value:
    """(batch, channels, size, size)."""

    name: str
    channels: int
    size: int


class Body:
    """The text of an ONNX graph in the making, its weights, and the values that later steps may read."""

    def __init__(self, draw: st.DrawFn) -> None:
        self.draw = draw
        self.lines: list[str] = []
        self.weights: dict[str, np.ndarray] = {}
        self.generator = np.random.default_rng(draw(st.integers(0, 2**60)))
        self.values: list[Value] = []
        self.count = 0

    def name(self) -> str:
        self.count += 1
        return f"v{self.count}"

    def weight(self, *shape: int, positive: bool = False) -> str:
        """Scaled by what it is summed over, so that values stay about 1."""
        made = self.name()
        scale = 1 / np.sqrt(np.prod(shape[1:]) or 1)
        values = self.generator.uniform(0.5, 1.5, shape) if positive else self.generator.normal(0, scale, shape)
        self.weights[made] = values.astype(np.float32)
        return made

    def integers(self, *values: int) -> str:
        made = self.name()
        self.weights[made] = np.array(values, dtype=np.int64)
        return made

    def node(self, text: str) -> str:
        """Adds `text`; its result's name."""
        made = self.name()
        self.lines.append(f"{made} = {text}")
        return made

    def add(self, text: str, channels: int, size: int) -> Value:
        return Value(self.node(text), channels, size)

    def like(self, x: Value) -> Value | None:
        """Another value of the same shape."""
        others = [item for item in self.values if (item.channels, item.size) == (x.channels, x.size) and item != x]
        return self.draw(st.sampled_from(others)) if others else None


Step = Callable[[Body, Value], Value | None]
"""Adds to the body what reads the value; None where it does not fit the value's shape."""


# --- layers ----------------------------------------------------------------------------------------------------------


def conv(b: Body, x: Value) -> Value:
    out = b.draw(st.sampled_from([4, 6, 8]))
    return b.add(f"Conv<pads=[1,1,1,1]>({x.name}, {b.weight(out, x.channels, 3, 3)}, {b.weight(out)})", out, x.size)


def dilated(b: Body, x: Value) -> Value:
    weight = b.weight(6, x.channels, 3, 3)
    return b.add(f"Conv<pads=[2,2,2,2], dilations=[2,2]>({x.name}, {weight})", 6, x.size)


def grouped(b: Body, x: Value) -> Value | None:
    """Groups of 2 channels are cut whole, 2 groups of many channels inside."""
    if x.channels % 2 or x.channels < 4:
        return None
    groups = b.draw(st.sampled_from([2, x.channels // 2]))
    out = groups * b.draw(st.sampled_from([2, 4]))
    return b.add(f"Conv<group={groups}>({x.name}, {b.weight(out, x.channels // groups, 1, 1)})", out, x.size)


def depthwise(b: Body, x: Value) -> Value:
    weight = b.weight(x.channels, 1, 3, 3)
    return b.add(f"Conv<group={x.channels}, pads=[1,1,1,1]>({x.name}, {weight})", x.channels, x.size)


def transposed(b: Body, x: Value) -> Value | None:
    if x.size > 8:
        return None
    return b.add(
        f"ConvTranspose<strides=[2,2], kernel_shape=[2,2]>({x.name}, {b.weight(x.channels, 6, 2, 2)})", 6, 2 * x.size
    )


def grouped_transposed(b: Body, x: Value) -> Value | None:
    if x.channels % 2:
        return None
    return b.add(f"ConvTranspose<group=2>({x.name}, {b.weight(x.channels, 4, 1, 1)})", 8, x.size)


def batch_norm(b: Body, x: Value) -> Value:
    numbers = [b.weight(x.channels, positive=name in "sv") for name in "scmv"]
    return b.add(f"BatchNormalization({x.name}, {', '.join(numbers)})", x.channels, x.size)


def instance_norm(b: Body, x: Value) -> Value | None:
    if x.size < 4:
        return None
    numbers = f"{b.weight(x.channels, positive=True)}, {b.weight(x.channels)}"
    return b.add(f"InstanceNormalization({x.name}, {numbers})", x.channels, x.size)


def group_norm(b: Body, x: Value) -> Value | None:
    groups = b.draw(st.sampled_from([1, 2]))
    if x.channels % groups:
        return None
    numbers = f"{b.weight(x.channels, positive=True)}, {b.weight(x.channels)}"
    return b.add(f"GroupNormalization<num_groups={groups}>({x.name}, {numbers})", x.channels, x.size)


def layer_norm(b: Body, x: Value) -> Value:
    """Over the channels, as ConvNeXt does it."""
    turned = b.node(f"Transpose<perm=[0,2,3,1]>({x.name})")
    numbers = f"{b.weight(x.channels, positive=True)}, {b.weight(x.channels)}"
    normed = b.node(f"LayerNormalization<axis=-1>({turned}, {numbers})")
    return b.add(f"Transpose<perm=[0,3,1,2]>({normed})", x.channels, x.size)


def local_response_norm(b: Body, x: Value) -> Value:
    return b.add(f"LRN<size=3, alpha=0.1>({x.name})", x.channels, x.size)


def prelu(b: Body, x: Value) -> Value:
    return b.add(f"PRelu({x.name}, {b.weight(x.channels, 1, 1, positive=True)})", x.channels, x.size)


def linear(b: Body, x: Value) -> Value:
    """A product with a matrix along the channels, which stand last."""
    turned = b.node(f"Transpose<perm=[0,2,3,1]>({x.name})")
    product = b.node(f"MatMul({turned}, {b.weight(x.channels, 6)})")
    return b.add(f"Transpose<perm=[0,3,1,2]>({b.node(f'Add({product}, {b.weight(6)})')})", 6, x.size)


# --- element by element ----------------------------------------------------------------------------------------------

UNARY = (
    "Relu", "LeakyRelu<alpha=0.2>", "Sigmoid", "Tanh", "HardSigmoid<alpha=0.3>", "HardSwish", "Elu", "Selu", "Celu",
    "Softplus", "Gelu", 'Gelu<approximate="tanh">', "Mish", "Erf", "Abs", "Neg", "Sin", "Cos", "Softsign", "Round",
    "Floor", "Identity", "ThresholdedRelu<alpha=0.1>",
)  # fmt: skip


def unary(b: Body, x: Value) -> Value:
    return b.add(f"{b.draw(st.sampled_from(UNARY))}({x.name})", x.channels, x.size)


def clip(b: Body, x: Value) -> Value:
    b.weights["low"], b.weights["high"] = np.array(-1, np.float32), np.array(1, np.float32)
    return b.add(f"Clip({x.name}, low, high)", x.channels, x.size)


def binary(b: Body, x: Value) -> Value | None:
    other = b.like(x)
    operator = b.draw(st.sampled_from(["Add", "Sub", "Mul", "Max", "Min", "Sum", "Mean"]))
    return None if other is None else b.add(f"{operator}({x.name}, {other.name})", x.channels, x.size)


def divide(b: Body, x: Value) -> Value | None:
    other = b.like(x)
    if other is None:
        return None
    b.weights["one"] = np.array(1, np.float32)
    below = b.node(f"Add({b.node(f'Abs({other.name})')}, one)")
    return b.add(f"Div({x.name}, {below})", x.channels, x.size)


def constant(b: Body, x: Value) -> Value:
    """A bare parameter per channel."""
    operator = b.draw(st.sampled_from(["Add", "Sub", "Mul"]))
    return b.add(f"{operator}({x.name}, {b.weight(x.channels, 1, 1)})", x.channels, x.size)


def power(b: Body, x: Value) -> Value:
    b.weights["two"] = np.array(2, np.float32)
    squared = b.node(f"Pow({x.name}, two)")
    return b.add(f"Sqrt({b.node(f'Add({squared}, two)')})", x.channels, x.size)


def where(b: Body, x: Value) -> Value | None:
    other = b.like(x)
    if other is None:
        return None
    b.weights["nought"] = np.array(0, np.float32)
    return b.add(f"Where({b.node(f'Greater({x.name}, nought)')}, {x.name}, {other.name})", x.channels, x.size)


def gate(b: Body, x: Value) -> Value:
    """Squeeze and excite."""
    pooled = b.node(f"GlobalAveragePool({x.name})")
    narrow = b.node(f"Relu({b.node(f'Conv({pooled}, {b.weight(3, x.channels, 1, 1)})')})")
    wide = b.node(f"Sigmoid({b.node(f'Conv({narrow}, {b.weight(x.channels, 3, 1, 1)})')})")
    return b.add(f"Mul({x.name}, {wide})", x.channels, x.size)


def spatial_gate(b: Body, x: Value) -> Value:
    """A gate per place, from the mean over the channels."""
    mean = b.node(f"ReduceMean<keepdims=1>({x.name}, {b.integers(1)})")
    return b.add(f"Mul({x.name}, {b.node(f'Sigmoid({mean})')})", x.channels, x.size)


def attention(b: Body, x: Value) -> Value:
    """A product of two activations: frozen."""
    rows = b.node(f"Reshape({x.name}, {b.integers(0, x.channels, x.size * x.size)})")
    turned = b.node(f"Transpose<perm=[0,2,1]>({rows})")
    weights = b.node(f"Softmax<axis=-1>({b.node(f'MatMul({rows}, {turned})')})")
    mixed = b.node(f"MatMul({weights}, {rows})")
    return b.add(f"Reshape({mixed}, {b.integers(0, x.channels, x.size, x.size)})", x.channels, x.size)


def softmax(b: Body, x: Value) -> Value:
    """Along the channels: frozen. Along space: free."""
    axis = b.draw(st.sampled_from([1, 3]))
    return b.add(f"Softmax<axis={axis}>({x.name})", x.channels, x.size)


# --- moving numbers --------------------------------------------------------------------------------------------------


def cat(b: Body, x: Value) -> Value:
    others = [item for item in b.values if item.size == x.size]
    other = b.draw(st.sampled_from(others))
    return b.add(f"Concat<axis=1>({x.name}, {other.name})", x.channels + other.channels, x.size)


def pool(b: Body, x: Value) -> Value | None:
    if x.size < 4:
        return None
    operator = b.draw(st.sampled_from(["MaxPool", "AveragePool", "LpPool"]))
    return b.add(f"{operator}<kernel_shape=[2,2], strides=[2,2]>({x.name})", x.channels, x.size // 2)


def pad_channels(b: Body, x: Value) -> Value:
    return b.add(f"Pad({x.name}, {b.integers(0, 1, 0, 0, 0, 2, 0, 0)})", x.channels + 3, x.size)


def pad_space(b: Body, x: Value) -> Value | None:
    if x.size > 8:
        return None
    mode = b.draw(st.sampled_from(["constant", "reflect", "edge"]))
    return b.add(f'Pad<mode="{mode}">({x.name}, {b.integers(0, 0, 1, 1, 0, 0, 1, 1)})', x.channels, x.size + 2)


def shuffle(b: Body, x: Value) -> Value | None:
    """The channel shuffle of ShuffleNet: two halves, interleaved."""
    if x.channels % 2:
        return None
    apart = b.node(f"Reshape({x.name}, {b.integers(0, 2, x.channels // 2, x.size, x.size)})")
    turned = b.node(f"Transpose<perm=[0,2,1,3,4]>({apart})")
    return b.add(f"Reshape({turned}, {b.integers(0, x.channels, x.size, x.size)})", x.channels, x.size)


def split(b: Body, x: Value) -> Value | None:
    """Two parts, which change places."""
    if x.channels < 3:
        return None
    first = b.draw(st.integers(1, x.channels - 1))
    head, tail = b.name(), b.name()
    b.lines.append(f"{head}, {tail} = Split<axis=1>({x.name}, {b.integers(first, x.channels - first)})")
    return b.add(f"Concat<axis=1>({tail}, {b.node(f'Tanh({head})')})", x.channels, x.size)


def part(b: Body, x: Value) -> Value | None:
    """Some of the channels, every one or every other."""
    if x.channels < 4:
        return None
    step = b.draw(st.sampled_from([1, 2]))
    kept = len(range(1, x.channels, step))
    bounds = ", ".join(b.integers(number) for number in (1, 2**31, 1, step))
    return b.add(f"Slice({x.name}, {bounds})", kept, x.size)


def gather(b: Body, x: Value) -> Value:
    """The channels in another order, one of them twice."""
    order = b.generator.permutation(x.channels).tolist()
    return b.add(f"Gather<axis=1>({x.name}, {b.integers(*order, order[0])})", x.channels + 1, x.size)


def depth_to_space(b: Body, x: Value) -> Value | None:
    if x.channels % 4 or x.size > 8:
        return None
    mode = b.draw(st.sampled_from(["DCR", "CRD"]))
    return b.add(f'DepthToSpace<blocksize=2, mode="{mode}">({x.name})', x.channels // 4, 2 * x.size)


def space_to_depth(b: Body, x: Value) -> Value | None:
    return None if x.size % 2 else b.add(f"SpaceToDepth<blocksize=2>({x.name})", 4 * x.channels, x.size // 2)


def resize(b: Body, x: Value) -> Value | None:
    if x.size > 8:
        return None
    mode = b.draw(st.sampled_from(["nearest", "linear"]))
    b.weights["twice"] = np.array([1, 1, 2, 2], np.float32)
    extra = ', coordinate_transformation_mode="asymmetric", nearest_mode="floor"' if mode == "nearest" else ""
    return b.add(f'Resize<mode="{mode}"{extra}>({x.name}, , twice)', x.channels, 2 * x.size)


def expand(b: Body, x: Value) -> Value:
    """The mean over space, spread over it again."""
    pooled = b.node(f"GlobalMaxPool({x.name})")
    return b.add(f"Expand({pooled}, {b.integers(1, x.channels, x.size, x.size)})", x.channels, x.size)


def squeeze(b: Body, x: Value) -> Value:
    wide = b.node(f"Unsqueeze({x.name}, {b.integers(2)})")
    return b.add(f"Squeeze({b.node(f'Relu({wide})')}, {b.integers(2)})", x.channels, x.size)


def turned(b: Body, x: Value) -> Value:
    return b.add(f"Transpose<perm=[0,1,3,2]>({x.name})", x.channels, x.size)


STEPS: Mapping[str, Step] = {
    step.__name__: step
    for step in (
        conv, dilated, grouped, depthwise, transposed, grouped_transposed, batch_norm, instance_norm, group_norm,
        layer_norm, local_response_norm, prelu, linear, unary, clip, binary, divide, constant, power, where, gate,
        spatial_gate, attention, softmax, cat, pool, pad_channels, pad_space, shuffle, split, part, gather,
        depth_to_space, space_to_depth, resize, expand, squeeze, turned,
    )
}  # fmt: skip
MOST_CHANNELS = 40


@dataclass(frozen=True)
class Drawn:
    body: str
    weights: dict[str, np.ndarray]
    kinds: tuple[str, ...]
    seed: int


def needed(lines: list[str]) -> tuple[list[str], set[str]]:
    """The lines that y depends on, and the names that they read: what leads to no output is refused."""
    kept: list[str] = []
    used = {"y"}
    for line in reversed(lines):
        made, _, computed = line.partition(" = ")
        if used.intersection(made.replace(",", " ").split()):
            kept.append(line)
            used.update(computed.replace("(", " ").replace(")", " ").replace(",", " ").split())
    return kept[::-1], used


@st.composite
def networks(draw: st.DrawFn) -> Drawn:
    """3 x 8 x 8 in, a stem, four to ten steps that read one of the last three values, 5 numbers out."""
    b = Body(draw)
    width = draw(st.sampled_from([4, 6, 8]))
    stride = draw(st.sampled_from([1, 2]))
    weights = f"{b.weight(width, 3, 3, 3)}, {b.weight(width)}"
    stem = b.node(f"Conv<pads=[1,1,1,1], strides=[{stride},{stride}]>(x, {weights})")
    b.values.append(Value(stem, width, 8 // stride))
    kinds = []
    for _ in range(draw(st.integers(4, 10))):
        kind = str(b.generator.choice(list(STEPS)))  # hypothesis itself prefers a few of them
        made = STEPS[kind](b, draw(st.sampled_from(b.values[-3:])))
        if made is not None and made.channels <= MOST_CHANNELS:
            b.values.append(made)
            kinds.append(kind)
    last = b.values[-1]
    if draw(st.booleans()):
        flat = b.node(f"Flatten({last.name})")
        wide = last.channels * last.size * last.size
    else:
        flat = b.node(f"Flatten({b.node(f'GlobalAveragePool({last.name})')})")
        wide = last.channels
    hidden = b.node(f"Relu({b.node(f'Gemm<transB=1>({flat}, {b.weight(8, wide)}, {b.weight(8)})')})")
    b.lines.append(f"y = Gemm<transB=1>({hidden}, {b.weight(5, 8)}, {b.weight(5)})")
    lines, used = needed(b.lines)
    read = {name: value for name, value in b.weights.items() if name in used}
    return Drawn("\n".join(lines), read, tuple(kinds), draw(st.integers(0, 2**30)))
