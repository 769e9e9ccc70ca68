"""Small models spoiled at random, by field and by byte: each is read, or refused, and nothing else is raised."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import AttributeProto, ModelProto, NodeProto, TensorProto, numpy_helper

from core.errors import ModelRefused
from core.graph.groups import channel_groups
from core.graph.importers import read_onnx
from core.graph.operators import READERS
from tests.core.graph.onnx_texts import model

NUMBERS = (0, 1, -1, 2, 3, 7, -3, 65_535, 2**31, -(2**31), 2**40, 2**62, -(2**63), 2**63 - 1)
FLOATS = (0.0, -1.0, 0.5, 1e30, -1e30, 1e-30, float("nan"), float("inf"), float("-inf"))

SEEDS = [
    model(
        "a = Conv<pads=[1,1,1,1]>(x, w, b)  n = BatchNormalization(a, s, s, s, s)  r = Relu(n)"
        "  p = MaxPool<kernel_shape=[2,2], strides=[2,2]>(r)  f = Flatten(p)  y = Gemm<transB=1>(f, v, c)",
        weights={"w": (6, 4, 3, 3), "b": (6,), "s": np.ones(6, np.float32), "v": (5, 54), "c": (5,)},
        inputs="float[batch,4,6,6] x", outputs="float[batch,5] y",
    ),
    model(
        "q, k = Split<axis=1>(x, parts)  r = Concat<axis=1>(k, q)  t = Transpose<perm=[0,2,3,1]>(r)"
        "  u = Reshape(t, shape)  g = ReduceMean<axes=[1], keepdims=1>(u)  h = Mul(u, g)  m = MatMul(h, w)"
        "  z = Slice(m, starts, ends, axes)  y = Softmax<axis=-1>(z)",
        weights={"parts": np.array([1, 3]), "shape": np.array([0, 36, 4]), "w": (4, 8), "starts": np.array([0]),
                 "ends": np.array([6]), "axes": np.array([2])},
        inputs="float[1,4,6,6] x", outputs="float[1,36,6] y",
    ),
    model(
        "s = Shape(x)  i = Constant<value_ints=[0]>()  n = Gather(s, i)  rest = Constant<value_ints=[-1]>()"
        "  t = Concat<axis=0>(n, rest)  p = Pad(x, pads)  c = Clip(p, low)  d = Conv<group=2, dilations=[2,2]>(c, w)"
        "  e = GlobalAveragePool(d)  f = Reshape(e, t)  k = Unsqueeze(f, two)  l = Squeeze(k, two)  y = Add(l, b)",
        weights={"pads": np.array([0, 0, 1, 1, 0, 0, 1, 1]), "low": np.array(0, np.float32), "w": (6, 2, 3, 3),
                 "two": np.array([2]), "b": (6,)},
        inputs="float[batch,4,h,w0] x", outputs="float[batch,6] y",
    ),
    model(
        "a = ConvTranspose<strides=[2,2], kernel_shape=[2,2]>(x, w)  n = InstanceNormalization(a, s, s)"
        "  g = GroupNormalization<num_groups=2>(n, s, s)  p = PRelu(g, slope)  i = Gather<axis=1>(p, order)"
        "  d = DepthToSpace<blocksize=2>(i)  r = Resize(d, , scales)  b = Greater(r, nought)"
        "  q = Where(b, r, nought)  t = Transpose<perm=[0,2,3,1]>(q)  l = LayerNormalization<axis=-1>(t, one, one)"
        "  y = ReduceSum<keepdims=0>(l, axes)",
        weights={"w": (4, 8, 2, 2), "s": np.ones(8, np.float32), "slope": (8, 1, 1), "order": np.arange(8)[::-1].copy(),
                 "scales": np.array([1, 1, 2, 2], np.float32), "nought": np.array(0, np.float32),
                 "one": np.ones(2, np.float32), "axes": np.array([1, 2])},
        inputs="float[batch,4,3,3] x", outputs="float[batch,2] y", opset=21,
    ),
    model(
        "e = Einsum<equation=\"bchw,dc->bdhw\">(x, m)  k = Tile(e, times)  f = Expand(k, wide)  u = Pow(f, two)"
        "  c = Cast<to=1>(u)  v = LRN<size=3>(c)  o = LpPool<kernel_shape=[2,2], p=2>(v)"
        "  z = Resize<mode=\"linear\">(o, , scales)  h = GlobalLpPool(z)  s = Sum(h, h, h)"
        "  j = LogSoftmax<axis=1>(s)  y = Identity(j)",
        weights={"m": (4, 4), "times": np.array([1, 2, 1, 1]), "wide": np.array([1, 8, 6, 6]),
                 "two": np.array(2, np.float32), "scales": np.array([1, 1, 2, 2], np.float32)},
        inputs="float[batch,4,6,6] x", outputs="float[batch,8,1,1] y", opset=14,
    ),
]  # fmt: skip


def _spoil_node(draw: st.DrawFn, made: ModelProto, node: NodeProto) -> None:
    kind = draw(
        st.sampled_from(["operator", "input", "output", "attribute", "number", "new attribute", "name", "rank"])
    )
    values = [name for other in made.graph.node for name in (*other.input, *other.output)] + ["", "x", "nowhere"]
    if kind == "operator":
        node.op_type = draw(st.sampled_from(sorted({*READERS, "Shape", "If", "Range", "ConstantOfShape", "Expand"})))
    elif kind == "input" and node.input:
        index = draw(st.integers(0, len(node.input) - 1))
        if draw(st.booleans()):
            node.input[index] = draw(st.sampled_from(values))
        else:
            del node.input[index]
    elif kind == "output":
        node.output.append(draw(st.sampled_from(values)))
    elif kind == "name":
        node.name = draw(st.sampled_from(["", "a/b", "/a/b.0/c", "__init__", "x" * 300, "é\x00", "forward", "1", "."]))
    elif kind == "rank":
        node.input.extend(draw(st.lists(st.sampled_from(values), min_size=1, max_size=4)))
    elif kind == "new attribute":
        name = draw(
            st.sampled_from(["axis", "axes", "perm", "pads", "group", "mode", "keepdims", "kernel_shape", "to"])
        )
        value = draw(st.sampled_from([1, -1, 2**40, [1], [], [0, 1], [2**40, 1], b"x", 0.5]))
        node.attribute.append(
            onnx.helper.make_attribute(name, value, attr_type=None if value != [] else AttributeProto.INTS)
        )
    elif node.attribute:
        attribute = draw(st.sampled_from(list(node.attribute)))
        if kind == "attribute":
            attribute.type = draw(st.sampled_from([AttributeProto.INT, AttributeProto.FLOAT, AttributeProto.STRING,
                                                   AttributeProto.INTS, AttributeProto.TENSOR]))  # fmt: skip
        elif attribute.ints:
            attribute.ints[draw(st.integers(0, len(attribute.ints) - 1))] = draw(st.sampled_from(NUMBERS))
        elif attribute.type == AttributeProto.FLOAT:
            attribute.f = draw(st.sampled_from(FLOATS))
        else:
            attribute.i = draw(st.sampled_from(NUMBERS))


def _spoil_tensor(draw: st.DrawFn, tensor: TensorProto) -> None:
    kind = draw(st.sampled_from(["dims", "values", "type", "data", "rank", "other"]))
    if kind == "dims" and tensor.dims:
        tensor.dims[draw(st.integers(0, len(tensor.dims) - 1))] = draw(st.sampled_from(NUMBERS))
    elif kind == "values":
        array = numpy_helper.to_array(tensor).copy()
        numbers = FLOATS if array.dtype == np.float32 else NUMBERS
        if array.size:
            array.reshape(-1)[draw(st.integers(0, array.size - 1))] = draw(st.sampled_from(numbers))
        tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    elif kind == "type":
        tensor.data_type = draw(st.integers(0, 25))
    elif kind == "data":
        tensor.raw_data = tensor.raw_data[: draw(st.integers(0, 64))]
    elif kind == "rank":
        array = numpy_helper.to_array(tensor)
        tensor.CopyFrom(
            numpy_helper.from_array(array.reshape(draw(st.sampled_from([(-1,), (1, -1), (-1, 1, 1)]))), tensor.name)
        )
    else:
        kinds = [np.float32, np.int64, np.int32, np.float64, np.bool_]
        size = draw(st.sampled_from([(), (0,), (1,), (3,), (1, 1), (4, 4)]))
        made = np.ones(size, draw(st.sampled_from(kinds))) * draw(st.sampled_from([0, 1, 2]))
        tensor.CopyFrom(numpy_helper.from_array(made, tensor.name))


def _spoil_graph(draw: st.DrawFn, made: ModelProto) -> None:
    graph = made.graph
    kind = draw(st.sampled_from(["drop", "swap", "twice", "opset", "input", "output", "dim", "no weight", "domain"]))
    if kind == "drop" and graph.node:
        del graph.node[draw(st.integers(0, len(graph.node) - 1))]
    elif kind == "swap" and len(graph.node) > 1:
        index = draw(st.integers(0, len(graph.node) - 2))
        first = copy.deepcopy(graph.node[index])
        graph.node[index].CopyFrom(graph.node[index + 1])
        graph.node[index + 1].CopyFrom(first)
    elif kind == "twice" and graph.node:
        graph.node.append(draw(st.sampled_from(list(graph.node))))
    elif kind == "opset":
        made.opset_import[0].version = draw(st.sampled_from([0, 8, 9, 10, 11, 13, 18, 21, 23, 99, -1]))
    elif kind == "domain":
        made.opset_import.append(onnx.helper.make_opsetid(draw(st.sampled_from(["", "ai.onnx", "com.example"])), 1))
    elif kind in ("input", "output"):
        (graph.input if kind == "input" else graph.output).append(
            onnx.helper.make_tensor_value_info(
                draw(st.sampled_from(["x", "y", "z", "w", "a"])), draw(st.sampled_from([1, 7, 10])), ["batch", 4]
            )
        )
    elif kind == "dim":
        item = draw(st.sampled_from([*graph.input, *graph.output]))
        dims = item.type.tensor_type.shape.dim
        if dims:
            dims[draw(st.integers(0, len(dims) - 1))].dim_value = draw(st.sampled_from(NUMBERS))
    elif kind == "no weight" and graph.initializer:
        del graph.initializer[draw(st.integers(0, len(graph.initializer) - 1))]


@st.composite
def spoiled(draw: st.DrawFn) -> bytes:
    made = ModelProto()
    made.CopyFrom(draw(st.sampled_from(SEEDS)))
    for _ in range(draw(st.integers(1, 2))):
        what = draw(st.sampled_from(["node", "node", "tensor", "graph"]))
        if what == "node" and made.graph.node:
            _spoil_node(draw, made, draw(st.sampled_from(list(made.graph.node))))
        elif what == "tensor" and made.graph.initializer:
            try:
                _spoil_tensor(draw, draw(st.sampled_from(list(made.graph.initializer))))
            except (ValueError, TypeError, OverflowError, KeyError):  # spoiled before: onnx itself cannot read it
                continue
        else:
            _spoil_graph(draw, made)
    data = bytearray(made.SerializeToString())
    for _ in range(draw(st.sampled_from([0, 0, 0, 0, 0, 1, 4]))):
        data[draw(st.integers(0, len(data) - 1))] = draw(st.integers(0, 255))
    return bytes(data)


def read_or_refuse(data: bytes, path: Path) -> ModelRefused | None:
    path.write_bytes(data)
    try:
        channel_groups(read_onnx(path))
    except ModelRefused as error:
        return error
    return None


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzzed") / "model.onnx"


def test_the_seeds_are_read(path: Path) -> None:
    assert [read_or_refuse(seed.SerializeToString(), path) for seed in SEEDS] == [None] * len(SEEDS)


@settings(max_examples=400, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(data=spoiled())
def test_nothing_but_a_refusal_is_raised(data: bytes, path: Path) -> None:
    refusal = read_or_refuse(data, path)
    assert refusal is None or refusal.message
    assert refusal is None or str(path.parent) not in refusal.message
