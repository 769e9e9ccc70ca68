"""Small files that ask for a great deal. `python -m tests.core.graph.huge_models` reads each under limits on memory and
time, and prints what came of it, a line of JSON each: [name, class of the refusal, message, seconds, peak bytes]."""

from __future__ import annotations

import json
import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from onnx import ModelProto

from core.errors import ModelRefused
from core.graph.groups import channel_groups
from core.graph.importers import read_onnx
from tests.core.graph.onnx_texts import model, saved

ADDRESS_SPACE, CPU_SECONDS = 8 * 2**30, 240
BIG = 2**20


def ints(*values: int) -> np.ndarray:
    return np.array(values, dtype=np.int64)


def floats(*values: float) -> np.ndarray:
    return np.array(values, dtype=np.float32)


def chain(node: str, count: int) -> str:
    """`count` nodes that each read the one before; the last makes y."""
    lines = [f"v{i + 1} = {node.replace('@', f'v{i}')}" for i in range(count)]
    return "v0 = Relu(x)\n" + "\n".join(lines) + f"\ny = Identity(v{count})"


def of_constants(node: str, count: int) -> str:
    """`count` nodes over constants, the last of them added to the input."""
    lines = [f"v{i + 1} = {node.replace('@', f'v{i}')}" for i in range(count)]
    return "v0 = Constant<value_floats=[1.0, 2.0]>()\n" + "\n".join(lines) + f"\ny = Add(x, v{count})"


LINE: dict[str, Any] = {"inputs": "float[batch,4,1] x", "outputs": "float[batch,n,h] y"}
CASES: dict[str, dict[str, Any]] = {
    "Expand": {"body": "p = GlobalMaxPool(x)  y = Expand(p, s)", "weights": {"s": ints(1, 4, BIG, BIG)}},
    "Tile": {"body": "y = Tile(x, s)", "weights": {"s": ints(1, 1, BIG, BIG)}},
    "Resize to sizes": {"body": "y = Resize(x, , , s)", "weights": {"s": ints(1, 4, BIG, BIG)}},
    "Resize by scales": {"body": "y = Resize(x, , s)", "weights": {"s": floats(1, 1, 1e6, 1e6)}},
    "Resize by infinity": {"body": "y = Resize(x, , s)", "weights": {"s": floats(1, 1, np.inf, np.nan)}},
    "Upsample": {"body": "y = Upsample(x, s)", "weights": {"s": floats(1, 1, 1e6, 1e6)}, "opset": 9},
    "Pad by far": {"body": "y = Pad(x, p)", "weights": {"p": ints(0, 0, 2**40, 2**40, 0, 0, 0, 0)}},
    "Pad": {"body": "y = Pad(x, p)", "weights": {"p": ints(0, 0, 65_535, 65_535, 0, 0, 65_535, 65_535)}},
    "Pad of channels": {"body": "y = Pad(x, p)", "weights": {"p": ints(0, 65_535, 200, 200, 0, 65_535, 0, 0)}},
    "Reshape": {"body": "y = Reshape(x, s)", "weights": {"s": ints(0, BIG, BIG)}, "outputs": "float[batch,a,b] y"},
    "MaxPool": {"body": f"y = MaxPool<kernel_shape=[{2**40},{2**40}]>(x)"},
    "MaxPool with pads": {"body": f"y = MaxPool<kernel_shape=[3,3], pads=[{2**40},0,0,{2**40}]>(x)"},
    "AveragePool": {
        "body": "y = AveragePool<kernel_shape=[60000,60000], pads=[59999,59999,59999,59999], count_include_pad=1>(x)"
    },
    "LpPool": {"body": "y = LpPool<kernel_shape=[60000,60000], pads=[59999,59999,59999,59999]>(x)"},
    "Conv with pads": {"body": "y = Conv<pads=[65535,65535,65535,65535]>(x, w)", "weights": {"w": (4, 4, 1, 1)}},
    "Conv with dilations": {"body": f"y = Conv<dilations=[{2**40},1]>(x, w)", "weights": {"w": (4, 4, 3, 3)}},
    "Conv with groups": {"body": f"y = Conv<group={2**40}>(x, w)", "weights": {"w": (4, 4, 3, 3)}},
    "ConvTranspose with strides": {
        "body": "y = ConvTranspose<strides=[65535,65535]>(x, w)", "weights": {"w": (4, 4, 1, 1)},
    },
    "ConvTranspose to a shape": {
        "body": f"y = ConvTranspose<output_shape=[{BIG},{BIG}]>(x, w)", "weights": {"w": (4, 4, 1, 1)},
    },
    "ConvTranspose with output padding": {
        "body": f"y = ConvTranspose<strides=[2,2], output_padding=[{2**40},1]>(x, w)", "weights": {"w": (4, 4, 1, 1)},
    },
    "DepthToSpace": {"body": f"y = DepthToSpace<blocksize={BIG}>(x)"},
    "SpaceToDepth": {"body": f"y = SpaceToDepth<blocksize={2**40}>(x)"},
    "GroupNormalization": {
        "body": f"y = GroupNormalization<num_groups={2**40}>(x, s, s)", "weights": {"s": (4,)}, "opset": 21,
    },
    "LRN": {"body": f"y = LRN<size={2**40}>(x)"},
    "Split": {"body": f"y, z = Split<axis=1, num_outputs={2**40}>(x)", "opset": 18},
    "Unsqueeze": {"body": "y = Unsqueeze(x, a)", "weights": {"a": ints(*range(1, 60))}},
    "an outer product": {
        "body": "a = Reshape(x, s)  b = Reshape(x, t)  y = Mul(a, b)",
        "weights": {"s": ints(0, 1, -1), "t": ints(0, -1, 1)}, "inputs": "float[batch,4,300,300] x",
        "outputs": "float[batch,a,b] y",
    },
    "a product of matrices": {
        "body": "a = Reshape(x, s)  b = Reshape(x, t)  y = MatMul(b, a)",
        "weights": {"s": ints(0, 1, -1), "t": ints(0, -1, 1)}, "inputs": "float[batch,4,300,300] x",
        "outputs": "float[batch,a,b] y",
    },
    "Concat over and over": {"body": chain("Concat<axis=1>(@, @)", 40)},
    "Tile over and over": {"body": chain("Tile(@, s)", 40), "weights": {"s": ints(1, 2, 1, 1)}},
    "Pad over and over": {"body": chain("Pad(@, p)", 200), "weights": {"p": ints(0, 0, 9999, 9999, 0, 0, 9999, 9999)}},
    "ConstantOfShape": {"body": "c = ConstantOfShape(s)  y = Add(x, c)", "weights": {"s": ints(BIG, BIG)}},
    "ConstantOfShape below zero": {"body": "c = ConstantOfShape(s)  y = Add(x, c)", "weights": {"s": ints(-1, 2)}},
    "Range": {
        "body": "c = Range(a, e, d)  f = Cast<to=1>(c)  y = Add(x, f)",
        "weights": {"a": np.array(0), "e": np.array(2**40), "d": np.array(1)},
    },
    "Concat of constants": {"body": of_constants("Concat<axis=0>(@, @)", 40)},
    "Tile of constants": {"body": of_constants("Tile(@, s)", 8), "weights": {"s": ints(2**10)}},
    "Expand of constants": {"body": of_constants("Expand(@, s)", 1), "weights": {"s": ints(BIG, BIG, 2)}},
    "Gather of constants": {
        "body": "c = ConstantOfShape<value=int64[1] {0}>(s)  w = ConstantOfShape(s)  g = Gather(w, c)  y = Add(x, g)",
        "weights": {"s": ints(2**13, 2**12)},
    },
    "a product of constants": {
        "body": "a = ConstantOfShape(s)  b = ConstantOfShape(t)  c = MatMul(a, b)  y = Add(x, c)",
        "weights": {"s": ints(2**22, 1), "t": ints(1, 2**22)},
    },
    "a sum of constants": {
        "body": "a = ConstantOfShape(s)  b = ConstantOfShape(t)  c = Add(a, b)  y = Add(x, c)",
        "weights": {"s": ints(2**22, 1), "t": ints(1, 2**22)},
    },
    "one per element": {"body": "c = ConstantOfShape(s)  y = Mul(x, c)", "weights": {"s": ints(1, 4, 4096, 4096)}},
    "a large input": {"body": "y = Relu(x)", "inputs": "float[batch,1024,1024,1024] x"},
    "a large batch": {"body": "y = Relu(x)", "inputs": f"float[{2**40},4] x", "outputs": "float[n,m] y"},
    "a large flatten": {
        "body": "f = Flatten(x)  y = Gemm(f, w)", "inputs": "float[batch,4,30000,30000] x",
        "outputs": "float[batch,n] y", "weights": {"w": (4, 4)},
    },
}  # fmt: skip


def built(case: dict[str, Any]) -> ModelProto:
    return model(case["body"], **{key: value for key, value in case.items() if key != "body"})


def peak_bytes() -> int:
    """Of resident memory, of this program alone: `ru_maxrss` remembers the process that it was forked from."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))


def main() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE, ADDRESS_SPACE))
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS))
    with tempfile.TemporaryDirectory() as folder:
        path = saved(built({"body": "y = Conv(x, w)", "weights": {"w": (4, 4, 3, 3)}}), Path(folder))
        channel_groups(read_onnx(path))  # torch's meta kernels are loaded
        for name, case in CASES.items():
            path = saved(built(case), Path(folder))
            began = time.process_time()
            try:
                channel_groups(read_onnx(path))
            except ModelRefused as error:
                kind, message = type(error).__name__, error.message
            else:
                kind, message = "", ""
            seconds = time.process_time() - began
            peak = peak_bytes()
            sys.stdout.write(json.dumps([name, kind, message, seconds, peak]) + "\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
