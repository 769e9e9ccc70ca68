"""onnx's backend node tests as models that Billhook takes: weights made initialisers, a batch put in front.

A node test is a model of one node whose weights are inputs and whose dimension 0 is anything. Billhook takes networks:
weights are constant, inputs float32, and dimension 0 is the batch. So each test is tried in up to three ways:

- *as it is*: the inputs in `DATA` stay inputs, all others become initialisers. Dimension 0 is a static batch, which an
  import frees;
- *batch in front*: a dimension of 1 is put in front of the data, of the expected outputs and of the arguments that
  count dimensions (`FRONT`), for tests whose own dimension 0 is not a batch;
- *as constants*: every input becomes an initialiser and the result is added to an input, for what is folded.

The first two are tried with two inputs as data and again with the first one only, where an operator takes both.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import ModelProto, NodeProto, TensorProto, defs, helper, numpy_helper

from core.graph.onnx_checks import OLDEST_OPSET

Array = npt.NDArray[Any]

TWO, ALL, NONE = (0, 1), tuple(range(64)), ()
DATA: Mapping[str, tuple[int, ...]] = {
    **dict.fromkeys(("Add", "Sub", "Mul", "Div", "Pow", "Mod", "MatMul"), TWO),
    **dict.fromkeys(("Equal", "Less", "LessOrEqual", "Greater", "GreaterOrEqual"), TWO),
    **dict.fromkeys(("Max", "Min", "Sum", "Mean", "Concat", "Einsum"), ALL),
    "Where": (1, 2),
    **dict.fromkeys(("Constant", "ConstantOfShape", "Range"), NONE),
}
"""Which inputs of an operator are data; of all others the first is. What is not float32 becomes an initialiser."""

SECOND_CONSTANT = tuple(name for name, wanted in DATA.items() if wanted == TWO)
"""Operators whose tests are also run with the second input as an initialiser."""

_ELEMENTWISE = """
Abs Acos Acosh Add And Asin Asinh Atan Atanh Cast CastLike Ceil Celu Clip Cos Cosh Div Dropout Elu Equal Erf Exp Floor
Gelu Greater GreaterOrEqual HardSigmoid HardSwish Identity IsInf IsNaN LeakyRelu Less LessOrEqual Log Max Mean Min Mish
Mod Mul Neg Not Or PRelu Pow Reciprocal Relu Round Selu Shrink Sigmoid Sign Sin Sinh Softplus Softsign Sqrt Sub Sum
Swish Tan Tanh ThresholdedRelu Where Xor
"""
ELEMENTWISE = frozenset(_ELEMENTWISE.split())
ROUGHER: Mapping[str, float] = {"float64": 0.0, "float16": 2e-3, "bfloat16": 2e-2}
"""Numbers of these types are run as float32; their results were rounded to so many parts of themselves."""
TYPED = ("Cast", "CastLike", "Range", "Constant", "ConstantOfShape")
"""Operators whose tests are about the types themselves."""
FIRST_OUTPUT = ("BatchNormalization", "Dropout", "LayerNormalization", "MaxPool")
"""Operators whose further outputs (masks, indices, statistics) only training or unpooling reads: they are left out."""
WHOLE_NUMBERS_WILL_DO = ("Pad", "Where", "Equal", "Trilu", "Max", "Min")
"""Operators that only move or compare: their tests on integers are run on the same numbers as float32."""


@dataclass(frozen=True)
class NodeTest:
    """One test of onnx's. Inputs are by value name, in the node's order; outputs as the model lists them."""

    name: str
    node: NodeProto
    opset: int
    inputs: Mapping[str, Array]
    outputs: tuple[Array, ...]
    rtol: float
    atol: float

    @property
    def operator(self) -> str:
        return self.node.op_type


@dataclass(frozen=True)
class Adapted:
    """A test in one of the ways. `data` are the inputs that are left, in the model's order."""

    model: ModelProto
    data: tuple[Array, ...]
    outputs: tuple[Array, ...]


class NotAdapted(Exception):
    """The test has no form in this way; the message is one of the reasons in `bench/onnx_node_tests.py`."""


@lru_cache(maxsize=1)
def node_tests() -> tuple[NodeTest, ...]:
    """Every node test of one node, of the onnx that is installed, by name. (Those called `_expanded` are the same tests
    with the operator spelled out.)"""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the tests' own arithmetic overflows on purpose
        from onnx.backend.test.loader import load_model_tests

        cases = load_model_tests(kind="node")
    found = []
    for case in cases:
        model, sets = case.model, case.data_sets
        if model is None or not sets or len(model.graph.node) != 1 or case.name.endswith("_expanded"):
            continue
        given, expected = sets[0]
        if model.graph.node[0].domain:
            continue
        inputs = {info.name: _array(item) for info, item in zip(model.graph.input, given, strict=False)}
        outputs = tuple(map(_array, expected))
        node = model.graph.node[0]
        opset = max(item.version for item in model.opset_import if not item.domain)
        if opset < OLDEST_OPSET and defs.get_schema(node.op_type, OLDEST_OPSET).since_version <= opset:
            opset = OLDEST_OPSET  # the operator is the same there
        if node.op_type in FIRST_OUTPUT and not any(item.name == "training_mode" and item.i for item in node.attribute):
            del node.output[1:]
            outputs = outputs[:1]
        rtol = case.rtol
        if node.op_type not in TYPED:
            kinds = {item.dtype.name for item in (*inputs.values(), *outputs)}
            rtol = max([rtol, *(ROUGHER[kind] for kind in kinds if kind in ROUGHER)])
            inputs = {name: _as_float(item) for name, item in inputs.items()}
            outputs = tuple(map(_as_float, outputs))
        found.append(NodeTest(case.name, node, opset, inputs, outputs, rtol, case.atol))
    return tuple(sorted(found, key=lambda test: test.name))


def _array(item: Any) -> Array:
    """What is no tensor of numbers (a sequence, nothing) becomes an array of objects, which no way takes."""
    if isinstance(item, TensorProto):
        return np.asarray(numpy_helper.to_array(item))
    return np.asarray(item if isinstance(item, np.ndarray | np.generic) else None)


def _as_float(item: Array) -> Array:
    return item.astype(np.float32) if item.dtype.name in ROUGHER else item


# --- the three ways --------------------------------------------------------------------------------------------------


def as_it_is(test: NodeTest, wanted: tuple[int, ...]) -> Adapted:
    """Dimension 0 is the batch."""
    data, weights = parted(test, wanted)
    batches = {item.shape[0] if item.ndim > 1 else None for item in data.values()}
    rank = max(item.ndim for item in data.values())
    per_example = test.operator in ELEMENTWISE and any(
        item.ndim == rank and item.shape[0] > 1 for item in weights.values()
    )
    if len(batches) != 1 or None in batches or per_example:
        raise NotAdapted("batch")
    return _assembled(test, test.node, data, weights, test.outputs)


def batch_in_front(test: NodeTest, wanted: tuple[int, ...]) -> Adapted:
    """A batch of one in front of it all."""
    data, weights = parted(test, wanted)
    node = NodeProto()
    node.CopyFrom(test.node)
    if test.operator in ELEMENTWISE:
        rank = max((item.ndim for item in (*data.values(), *weights.values())), default=0)
        fill = max(1, 2 - rank)  # an input has a dimension behind the batch
        outputs = tuple(item.reshape(*(1,) * fill, *item.shape) for item in test.outputs)
        data = {name: item.reshape(*(1,) * (rank + fill - item.ndim), *item.shape) for name, item in data.items()}
        return _assembled(test, node, data, weights, outputs)
    if test.operator not in FRONT or any(item.ndim == 0 for item in data.values()):
        raise NotAdapted("batch")
    rank = max(item.ndim for item in data.values())
    FRONT[test.operator](_Front(node, weights, rank, tuple(data.values())))
    fronted = {name: item[None] for name, item in data.items()}
    return _assembled(test, node, fronted, weights, tuple(item[None] for item in test.outputs))


def as_constants(test: NodeTest) -> Adapted:
    """Every input is an initialiser. The result, as float32, is added to an input of zeros with a batch in front."""
    node = NodeProto()
    node.CopyFrom(test.node)
    nodes = [node]
    data: dict[str, Array] = {}
    outputs = []
    weights = dict(test.inputs)
    axes_input: list[str]
    axes_attribute: dict[str, Any]
    axes_input, axes_attribute = (["front"], {}) if test.opset >= 13 else ([], {"axes": [0]})
    weights["front"] = np.array([0], np.int64)
    made = [name for name in node.output if name]
    for name, item in zip(made, test.outputs, strict=True):
        if item.dtype not in (np.float32, np.int64, np.int32, np.bool_):
            raise NotAdapted("types")
        shape = (1, *(item.shape or (1,)))
        data[f"{name}.zeros"] = np.zeros(shape, np.float32)
        outputs.append(item.astype(np.float32).reshape(shape))
        nodes += [
            helper.make_node("Cast", [name], [f"{name}.float"], to=TensorProto.FLOAT),
            helper.make_node("Unsqueeze", [f"{name}.float", *axes_input], [f"{name}.front"], **axes_attribute),
            helper.make_node("Add", [f"{name}.zeros", f"{name}.front"], [f"{name}.result"]),
        ]
    return _put_together(test, nodes, [f"{name}.result" for name in made], data, weights, tuple(outputs))


def parted(test: NodeTest, wanted: tuple[int, ...]) -> tuple[dict[str, Array], dict[str, Array]]:
    """(data, weights) of a test by name; `wanted` are the places of the data."""
    names = [name for index, name in enumerate(test.node.input) if name and index in wanted]
    data = {name: test.inputs[name] for name in names}
    if test.operator in WHOLE_NUMBERS_WILL_DO and not any(item.dtype == np.float32 for item in data.values()):
        data = {name: item.astype(np.float32) for name, item in data.items() if item.dtype.kind in "iu"}
    if names and data.get(names[0], test.inputs[names[0]]).dtype != np.float32:
        raise NotAdapted("types")
    data = {name: item for name, item in data.items() if item.dtype == np.float32}
    if not data:
        raise NotAdapted("constants")
    return data, {name: item for name, item in test.inputs.items() if name not in data}


def _assembled(
    test: NodeTest, node: NodeProto, data: dict[str, Array], weights: dict[str, Array], outputs: tuple[Array, ...]
) -> Adapted:
    """Outputs that are no float32 get a Cast behind them."""
    nodes, names, floats = [node], [], []
    for name, item in zip([name for name in node.output if name], outputs, strict=True):
        if item.dtype == np.float32:
            names.append(name)
        else:
            nodes.append(helper.make_node("Cast", [name], [f"{name}.float"], to=TensorProto.FLOAT))
            names.append(f"{name}.float")
        floats.append(item.astype(np.float32))
    if test.operator in WHOLE_NUMBERS_WILL_DO:  # of the same kind as the data then
        nodes, names = [node], [name for name in node.output if name]
        if outputs[0].dtype == np.bool_:
            nodes.append(helper.make_node("Cast", [names[0]], ["as_float"], to=TensorProto.FLOAT))
            names = ["as_float"]
        weights = {
            name: item.astype(np.float32)
            if item.dtype.kind in "iu" and test.operator in ("Where", "Equal", "Max", "Min")
            else item
            for name, item in weights.items()
        }
    return _put_together(test, nodes, names, data, weights, tuple(floats))


def _put_together(
    test: NodeTest,
    nodes: list[NodeProto],
    results: list[str],
    data: dict[str, Array],
    weights: dict[str, Array],
    outputs: tuple[Array, ...],
) -> Adapted:
    if any(item.dtype == object for item in (*weights.values(), *outputs)):
        raise NotAdapted("types")
    sized = (*data.values(), *outputs, *(item for item in weights.values() if item.dtype.kind != "i"))
    if test.operator != "CastLike" and any(item.size == 0 for item in sized):
        raise NotAdapted("empty")
    inputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, item.shape) for name, item in data.items()]
    infos = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, item.shape)
        for name, item in zip(results, outputs, strict=True)
    ]
    initializers = [numpy_helper.from_array(item, name) for name, item in weights.items()]
    graph = helper.make_graph(nodes, test.name, inputs, infos, initializers)
    model = helper.make_model_gen_version(graph, opset_imports=[helper.make_opsetid("", test.opset)])
    model.ir_version = max(model.ir_version, 4)  # before it weights had to be inputs too
    for index, node in enumerate(model.graph.node):
        node.name = node.name or f"{node.op_type}_{index}"
    onnx.checker.check_model(model)
    return Adapted(model, tuple(data.values()), outputs)


# --- a batch in front: what counts dimensions ------------------------------------------------------------------------


@dataclass(frozen=True)
class _Front:
    """A node to rewrite in place, its weights by name, its data before and their rank."""

    node: NodeProto
    weights: dict[str, Array]
    rank: int
    data: tuple[Array, ...]

    def attribute(self, name: str) -> Any:
        for item in self.node.attribute:
            if item.name == name:
                return helper.get_attribute_value(item)
        return None

    def set_attribute(self, name: str, value: Any) -> None:
        for item in [item for item in self.node.attribute if item.name == name]:
            self.node.attribute.remove(item)
        self.node.attribute.append(helper.make_attribute(name, value))

    def given(self, index: int) -> bool:
        return len(self.node.input) > index and self.node.input[index] != ""

    def weight(self, index: int) -> Array:
        return self.weights[self.node.input[index]]

    def set_weight(self, index: int, value: Any) -> None:
        """Under a name of its own: onnx's tests feed one value to several inputs."""
        while len(self.node.input) <= index:
            self.node.input.append("")
        self.node.input[index] = f"front.{index}"
        self.weights[f"front.{index}"] = np.asarray(value, dtype=np.int64)

    def moved(self, axes: Any) -> list[int]:
        return [int(axis) + 1 if axis >= 0 else int(axis) for axis in np.atleast_1d(axes)]


def _axis(default: int) -> Callable[[_Front], None]:
    def move(f: _Front) -> None:
        axis = f.attribute("axis")
        f.set_attribute("axis", f.moved(default if axis is None else axis)[0])

    return move


def _axes(index: int, *, every: bool = False) -> Callable[[_Front], None]:
    """Axes that are an input or an attribute. `every`: where there are none, all dimensions are meant."""

    def move(f: _Front) -> None:
        axes = f.weight(index) if f.given(index) else f.attribute("axes")
        if axes is None or len(axes) == 0:
            if not every:
                raise NotAdapted("batch")
            if f.attribute("noop_with_empty_axes"):
                return
            axes = list(range(f.rank))
        if f.attribute("axes") is None:
            f.set_weight(index, f.moved(axes))
        else:
            f.set_attribute("axes", f.moved(axes))

    return move


def _transpose(f: _Front) -> None:
    perm = f.attribute("perm") or list(reversed(range(f.rank)))
    f.set_attribute("perm", [0, *(axis + 1 for axis in perm)])


def _reshape(f: _Front) -> None:
    f.set_weight(1, [1, *f.weight(1)])


def _slice(f: _Front) -> None:
    axes = f.weight(3) if f.given(3) else range(len(f.weight(1)))
    f.set_weight(3, f.moved(list(axes)))


def _pad(f: _Front) -> None:
    pads = f.weight(1)
    if f.given(3):
        f.set_weight(3, f.moved(f.weight(3)))
    else:
        f.set_weight(1, [0, *pads[: f.rank], 0, *pads[f.rank :]])


def _matmul(f: _Front) -> None:
    """One more dimension in front of a vector makes a matrix of it, which multiplies as the rows of the other one."""
    ranks = {item.ndim for item in (*f.data, *f.weights.values())}
    if (len(f.data) > 1 and (len(ranks) > 1 or 1 in ranks)) or max(ranks) > f.rank + 1:
        raise NotAdapted("batch")


def _nothing(f: _Front) -> None:
    """The operator counts dimensions from the end, or not at all."""


_REDUCTIONS = """
ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum ReduceSumSquare
"""
FRONT: Mapping[str, Callable[[_Front], None]] = {
    "Concat": _axis(0),
    "Gather": _axis(0),
    "GatherElements": _axis(0),
    "Softmax": _axis(-1),
    "LogSoftmax": _axis(-1),
    "Hardmax": _axis(-1),
    "LpNormalization": _axis(-1),
    "LayerNormalization": _axis(-1),
    "RMSNormalization": _axis(-1),
    "Split": _axis(0),
    "Squeeze": _axes(1),
    "Unsqueeze": _axes(1),
    "Transpose": _transpose,
    "Reshape": _reshape,
    "Expand": _reshape,
    "Tile": _reshape,
    "Slice": _slice,
    "Pad": _pad,
    "Trilu": _nothing,
    "MatMul": _matmul,
    **dict.fromkeys(
        _REDUCTIONS.split(),
        _axes(1, every=True),
    ),
}  # fmt: skip
"""Operators whose arguments count dimensions from the front: what they become when one more is there."""
