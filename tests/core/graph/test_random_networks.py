"""Random small networks, random cuts that leave a unit of every group: each is taken, and exact."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from core.graph.cuts import cut, replay
from core.graph.exactness import check_cut
from core.graph.export import check_parity, write_onnx
from core.graph.groups import channel_groups
from core.graph.importers import read_onnx
from tests.core.graph.onnx_texts import model, saved

KINDS = [
    "conv", "grouped", "depthwise", "norm", "relu", "add", "cat", "pool", "gate", "scale", "pad", "reshape", "split",
]  # fmt: skip


class Body:
    """The text of an ONNX graph in the making. Values are (name, channels, size); size None is flat."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.weights: dict[str, np.ndarray] = {}
        self.generator = np.random.default_rng(0)
        self.count = 0

    def add(
        self, text: str, channels: int, size: int | None, **weights: tuple[int, ...]
    ) -> tuple[str, int, int | None]:
        self.count += 1
        names = {key: f"{key}_{self.count}" for key in weights}
        for key, shape in weights.items():
            values = self.generator.uniform(0.5, 1.5, shape) if key in ("s", "v") else None
            scale = 1 / np.sqrt(np.prod(shape[1:]) or 1)
            values = self.generator.normal(0, scale, shape) if values is None else values
            self.weights[names[key]] = values.astype(np.float32)
        self.lines.append(f"v{self.count} = " + text.format(**names))
        return f"v{self.count}", channels, size


@st.composite
def networks(draw: st.DrawFn) -> tuple[str, dict[str, np.ndarray], int]:
    body = Body()
    width = draw(st.sampled_from([4, 6, 8]))
    values = [body.add("Conv<pads=[1,1,1,1]>(x, {w}, {b})", width, 8, w=(width, 3, 3, 3), b=(width,))]
    for _ in range(draw(st.integers(2, 9))):
        name, channels, size = draw(st.sampled_from(values[-3:]))
        kind = draw(st.sampled_from(KINDS))
        like = [item for item in values if item[1:] == (channels, size) and item[0] != name]
        if kind == "conv":
            out = draw(st.sampled_from([4, 6, 8]))
            made = body.add(f"Conv<pads=[1,1,1,1]>({name}, {{w}})", out, size, w=(out, channels, 3, 3))
        elif kind == "grouped" and channels % 2 == 0:
            shape = (2 * channels, channels // 2, 1, 1)
            made = body.add(f"Conv<group=2>({name}, {{w}})", 2 * channels, size, w=shape)
        elif kind == "depthwise":
            shape = (channels, 1, 3, 3)
            made = body.add(f"Conv<group={channels}, pads=[1,1,1,1]>({name}, {{w}})", channels, size, w=shape)
        elif kind == "norm":
            four = dict.fromkeys(("s", "c", "m", "v"), (channels,))
            made = body.add(f"BatchNormalization({name}, {{s}}, {{c}}, {{m}}, {{v}})", channels, size, **four)
        elif kind == "add" and like:
            made = body.add(f"Add({name}, {draw(st.sampled_from(like))[0]})", channels, size)
        elif kind == "cat":
            same = [item for item in values if item[2] == size]
            other = draw(st.sampled_from(same))
            made = body.add(f"Concat<axis=1>({name}, {other[0]})", channels + other[1], size)
        elif kind == "pool" and size is not None and size >= 4:
            made = body.add(f"MaxPool<kernel_shape=[2,2], strides=[2,2]>({name})", channels, size // 2)
        elif kind == "gate":
            pooled = body.add(f"GlobalAveragePool({name})", channels, 1)
            shape = (channels, channels, 1, 1)
            gate = body.add(f"Conv({pooled[0]}, {{w}})", channels, 1, w=shape)
            made = body.add(f"Mul({name}, {gate[0]})", channels, size)
        elif kind == "scale":
            made = body.add(f"Mul({name}, {{w}})", channels, size, w=(channels, 1, 1))
        elif kind == "pad" and channels <= 8:
            amounts = body.add("Constant<value_ints=[0,1,0,0,0,2,0,0]>()", 0, 0)
            made = body.add(f"Pad({name}, {amounts[0]})", channels + 3, size)
        elif kind == "reshape" and channels % 2 == 0 and size is not None:
            # the channel shuffle of ShuffleNet: two halves, interleaved
            split = body.add(f"Constant<value_ints=[0,2,{channels // 2},{size},{size}]>()", 0, 0)
            apart = body.add(f"Reshape({name}, {split[0]})", 0, 0)
            turned = body.add(f"Transpose<perm=[0,2,1,3,4]>({apart[0]})", 0, 0)
            back = body.add(f"Constant<value_ints=[0,{channels},{size},{size}]>()", 0, 0)
            made = body.add(f"Reshape({turned[0]}, {back[0]})", channels, size)
        elif kind == "split" and channels > 2:
            first = draw(st.integers(1, channels - 1))
            bounds = [body.add(f"Constant<value_ints=[{place}]>()", 0, 0)[0] for place in (0, first, 2**31, 1)]
            head = body.add(f"Slice({name}, {bounds[0]}, {bounds[1]}, {bounds[3]})", first, size)
            tail = body.add(f"Slice({name}, {bounds[1]}, {bounds[2]}, {bounds[3]})", channels - first, size)
            made = body.add(f"Concat<axis=1>({tail[0]}, {head[0]})", channels, size)
        else:
            made = body.add(f"Relu({name})", channels, size)
        if made[1] > 48:
            break
        values.append(made)
    name, channels, size = values[-1]
    assert size is not None
    if draw(st.booleans()):
        flat = body.add(f"Flatten({name})", channels * size * size, None)
        hidden = body.add(f"Gemm({flat[0]}, {{w}}, {{b}})", 8, None, w=(channels * size * size, 8), b=(8,))
        hidden = body.add(f"Relu({hidden[0]})", 8, None)
        body.lines.append(f"y = Gemm({hidden[0]}, out, last)")
        body.weights["out"] = body.generator.normal(0, 0.3, (8, 5)).astype(np.float32)
    else:
        pooled = body.add(f"GlobalAveragePool({name})", channels, 1)
        flat = body.add(f"Flatten({pooled[0]})", channels, None)
        body.lines.append(f"y = Gemm({flat[0]}, out, last)")
        body.weights["out"] = body.generator.normal(0, 0.3, (channels, 5)).astype(np.float32)
    body.weights["last"] = np.ones(5, np.float32)
    return "\n".join(body.lines), body.weights, draw(st.integers(0, 2**16))


@settings(
    max_examples=30,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
@given(networks())
def test_a_random_cut_of_a_random_network_is_exact(drawn: tuple[str, dict[str, np.ndarray], int]) -> None:
    body, weights, seed = drawn
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)
        made = model(body, inputs="float[n,3,8,8] x", outputs="float[n,5] y", weights=weights)
        network = read_onnx(saved(made, path))
        inputs = network.example_input(3, seed=seed)
        assume(float(network(inputs).detach().abs().max()) > 1e-3)
        assert check_parity(network, path / "model.onnx", inputs).passed
        groups = [group for group in channel_groups(network).groups if group.cuttable and group.width > 1]
        generator = np.random.default_rng(seed)
        removal = {
            group.name: sorted(
                generator.choice(group.width, generator.integers(1, group.width), replace=False).tolist()
            )
            for group in groups
            if generator.random() < 0.7
        }
        assume(removal)
        smaller, entry = cut(network, removal)
        assert check_cut(network, removal, smaller, inputs).passed
        write_onnx(smaller, path / "cut.onnx")
        assert check_parity(smaller, path / "cut.onnx", inputs).passed
        again = replay(network, [entry])
        assert torch.equal(again(inputs), smaller(inputs))
        cut(network, {group.name: list(range(1, group.width)) for group in groups})
