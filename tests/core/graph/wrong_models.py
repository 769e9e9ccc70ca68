"""Ways to spoil a small model, with what each is refused with."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, helper

from core.errors import ModelRefused, ModelTooLarge, OperatorUnknown
from tests.core.graph.onnx_texts import model


class Trap:
    """A pickle that says so when it is loaded."""

    def __reduce__(self) -> tuple[object, ...]:
        return (pytest.fail, ("a pickle was loaded",))


def conv() -> ModelProto:
    return model("a = Conv(x, w)  y = Relu(a)", weights={"w": (5, 4, 3, 3)})


def huge_initializer(made: ModelProto) -> None:
    made.graph.initializer[0].dims[:] = [2**20, 2**20]


def huge_constant(made: ModelProto) -> None:
    tensor = TensorProto(name="c", data_type=TensorProto.FLOAT, dims=[2**40])
    made.graph.node.insert(0, helper.make_node("Constant", [], ["c"], name="big", value=tensor))


def huge_fill(made: ModelProto) -> None:
    shape = onnx.numpy_helper.from_array(np.array([2**20, 2**20], np.int64), "shape")
    made.graph.initializer.append(shape)
    made.graph.node.insert(0, helper.make_node("ConstantOfShape", ["shape"], ["c"], name="fill"))
    made.graph.node[1].input[1] = "c"


def folded_over_and_over(made: ModelProto) -> None:
    shape = onnx.numpy_helper.from_array(np.array([2**24], np.int64), "shape")
    made.graph.initializer.append(shape)
    for index in range(8):
        node = helper.make_node("ConstantOfShape", ["shape"], [f"c{index}"], name=f"fill{index}")
        made.graph.node.insert(0, node)
    made.graph.node.insert(8, helper.make_node("Concat", [f"c{i}" for i in range(8)], ["all"], name="all", axis=0))
    made.graph.node[9].input[1] = "all"


def huge_input(made: ModelProto) -> None:
    made.graph.input[0].type.tensor_type.shape.dim[2].dim_value = 2**40


def huge_activation(made: ModelProto) -> None:
    for index in (2, 3):
        made.graph.input[0].type.tensor_type.shape.dim[index].dim_value = 2**20


def many_dimensions(made: ModelProto) -> None:
    made.graph.initializer[0].dims[:] = [1] * 100


def negative_dimension(made: ModelProto) -> None:
    made.graph.initializer[0].dims[0] = -5


def short_data(made: ModelProto) -> None:
    made.graph.initializer[0].raw_data = b"1234"


def other_file(made: ModelProto) -> None:
    tensor = made.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../../etc/passwd")


def name_twice(made: ModelProto) -> None:
    made.graph.node[0].output[0] = "y"


def cycle(made: ModelProto) -> None:
    made.graph.node[0].input[0] = "y"


def from_nowhere(made: ModelProto) -> None:
    made.graph.node[0].input[0] = "elsewhere"


def control_flow(made: ModelProto) -> None:
    branch = helper.make_graph([], "branch", [], [made.graph.output[0]])
    node = helper.make_node("If", ["x"], ["y"], name="choice", then_branch=branch, else_branch=branch)
    made.graph.node[1].CopyFrom(node)


def custom_domain(made: ModelProto) -> None:
    made.graph.node[1].domain = "com.example"
    made.opset_import.append(helper.make_opsetid("com.example", 1))


def half_weights(made: ModelProto) -> None:
    made.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(np.ones((5, 4, 3, 3), np.float16), "w"))


def half_input(made: ModelProto) -> None:
    made.graph.input[0].type.tensor_type.elem_type = TensorProto.FLOAT16


def no_rank(made: ModelProto) -> None:
    made.graph.input[0].type.tensor_type.ClearField("shape")


def no_dependence(made: ModelProto) -> None:
    made.graph.node[1].CopyFrom(helper.make_node("Identity", ["w"], ["y"], name="weights"))


def text_weights(made: ModelProto) -> None:
    tensor = TensorProto(name="w", data_type=TensorProto.STRING, dims=[1], string_data=[b"one"])
    made.graph.initializer[0].CopyFrom(tensor)


def further_output(made: ModelProto) -> None:
    """Of constants: what is normalised is folded, what it is normalised by is not."""
    for name, shape in (("s", (1, 4, 1, 1)), ("t", (4,))):
        made.graph.initializer.append(onnx.numpy_helper.from_array(np.ones(shape, np.float32), name))
    outputs = ["l", "mean", "variance"]
    node = helper.make_node("BatchNormalization", ["s", *"tttt"], outputs, name="norm", training_mode=1)
    made.graph.node.insert(0, node)
    made.graph.node[2].CopyFrom(helper.make_node("Add", ["a", "mean"], ["y"], name="sum"))


def unread_input(made: ModelProto) -> None:
    made.graph.input.append(helper.make_tensor_value_info("mask", TensorProto.FLOAT, ["batch", 1, 6, 6]))


def island(made: ModelProto) -> None:
    made.graph.node.append(helper.make_node("Sigmoid", ["a"], ["z"], name="forgotten"))


def several_pieces(made: ModelProto) -> None:
    """A second output that comes from weights alone."""
    made.graph.node.append(helper.make_node("Identity", ["w"], ["z"], name="weights"))
    made.graph.output.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, [5, 4, 3, 3]))


def loop(made: ModelProto) -> None:
    body = helper.make_graph([], "body", [], [made.graph.output[0]])
    node = helper.make_node("Loop", ["", "", "x"], ["y"], name="again", body=body)
    made.graph.node[1].CopyFrom(node)


def scan(made: ModelProto) -> None:
    body = helper.make_graph([], "body", [], [made.graph.output[0]])
    node = helper.make_node("Scan", ["x"], ["y"], name="along", body=body, num_scan_inputs=1)
    made.graph.node[1].CopyFrom(node)


def whole_weights(made: ModelProto) -> None:
    made.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(np.ones((5, 4, 3, 3), np.int8), "w"))


def quantised(made: ModelProto) -> None:
    made.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(np.ones((5, 4, 3, 3), np.int8), "q"))
    made.graph.initializer.append(onnx.numpy_helper.from_array(np.float32(0.1), "scale"))
    made.graph.node.insert(0, helper.make_node("DequantizeLinear", ["q", "scale"], ["w"], name="dequantise"))


def half_constant(made: ModelProto) -> None:
    tensor = onnx.numpy_helper.from_array(np.ones((5, 4, 3, 3), np.float16), "c")
    made.graph.initializer.pop()
    made.graph.node.insert(0, helper.make_node("Constant", [], ["w"], name="half", value=tensor))


def cast_from_half(made: ModelProto) -> None:
    made.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(np.ones((5, 4, 3, 3), np.float16), "h"))
    made.graph.node.insert(0, helper.make_node("Cast", ["h"], ["w"], name="widen", to=TensorProto.FLOAT))


def cast_to_half(made: ModelProto) -> None:
    made.graph.node[1].CopyFrom(helper.make_node("Cast", ["a"], ["y"], name="narrow", to=TensorProto.FLOAT16))


def no_rank_behind(made: ModelProto) -> None:
    """The rank of what a Reshape makes is that of an input."""
    made.graph.input.append(helper.make_tensor_value_info("s", TensorProto.INT64, ["n"]))
    made.graph.node[1].CopyFrom(helper.make_node("Reshape", ["a", "s"], ["y"], name="reshape"))


def no_rank_out(made: ModelProto) -> None:
    made.graph.output[0].type.tensor_type.ClearField("shape")


def reads_itself(made: ModelProto) -> None:
    made.graph.node[0].input[0] = "a"


def weight_named_twice(made: ModelProto) -> None:
    made.graph.initializer.append(made.graph.initializer[0])


def nodes_named_alike(made: ModelProto) -> None:
    made.graph.node[1].name = "n0"


def output_named_twice(made: ModelProto) -> None:
    made.graph.output.append(made.graph.output[0])


def input_named_twice(made: ModelProto) -> None:
    made.graph.input.append(made.graph.input[0])


def sequence_input(made: ModelProto) -> None:
    element = helper.make_tensor_type_proto(TensorProto.FLOAT, ["n"])
    made.graph.input[0].type.CopyFrom(helper.make_sequence_type_proto(element))


def own_function(made: ModelProto) -> None:
    made.functions.append(helper.make_function("own", "Twice", ["a"], ["b"], [helper.make_node("Relu", ["a"], ["b"])],
                                               [helper.make_opsetid("", 17)]))  # fmt: skip
    made.opset_import.append(helper.make_opsetid("own", 1))
    made.graph.node[1].CopyFrom(helper.make_node("Twice", ["a"], ["y"], name="twice", domain="own"))


def sparse_weights(made: ModelProto) -> None:
    values = onnx.numpy_helper.from_array(np.ones(1, np.float32), "sparse")
    indices = onnx.numpy_helper.from_array(np.zeros(1, np.int64), "at")
    made.graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, [4]))


def too_many_nodes(made: ModelProto) -> None:
    made.graph.node.extend(helper.make_node("Relu", ["x"], [f"z{i}"]) for i in range(20_000))


def old_opset(made: ModelProto) -> None:
    made.opset_import[0].version = 8


def new_opset(made: ModelProto) -> None:
    made.opset_import[0].version = 1_000


def unknown_attribute(made: ModelProto) -> None:
    made.graph.node[0].attribute.append(helper.make_attribute("strdes", [1, 1]))


WRONG: dict[Callable[[ModelProto], None], tuple[type[ModelRefused], str]] = {
    huge_initializer: (ModelTooLarge, "initialiser 'w' has 1099511627776 elements"),
    huge_constant: (ModelTooLarge, "node 'big'"),
    huge_fill: (ModelTooLarge, "elements are folded"),
    folded_over_and_over: (ModelTooLarge, "folding constants makes more than"),
    huge_input: (ModelTooLarge, "'x' has a dimension of 1099511627776"),
    huge_activation: (ModelTooLarge, "numbers"),
    many_dimensions: (ModelTooLarge, "100 dimensions"),
    negative_dimension: (ModelRefused, "negative dimension"),
    short_data: (ModelRefused, "has 4 bytes for 180 elements"),
    other_file: (ModelRefused, "keeps its data in another file"),
    name_twice: (ModelRefused, "the name 'y' is used twice: by node 'n0' and by node 'n1'"),
    cycle: (ModelRefused, "operator Conv at node 'n0' reads 'y', which node 'n1' makes later: the graph has a cycle"),
    from_nowhere: (ModelRefused, "operator Conv at node 'n0' reads 'elsewhere', which nothing makes"),
    control_flow: (OperatorUnknown, "operator If at node 'choice' is control flow"),
    custom_domain: (OperatorUnknown, "operator Relu at node 'n1' is of the domain 'com.example'"),
    half_weights: (ModelRefused, "w"),
    half_input: (ModelRefused, "'x' is not a float32 tensor"),
    no_rank: (ModelRefused, "'x' has no shape"),
    further_output: (OperatorUnknown, "'mean'"),
    unread_input: (ModelRefused, "no output depends on the input 'mask'"),
    island: (ModelRefused, "operator Sigmoid at node 'forgotten' leads to no output"),
    several_pieces: (ModelRefused, "the output 'z' is a constant: it does not depend on any input"),
    loop: (OperatorUnknown, "operator Loop at node 'again' is control flow"),
    scan: (OperatorUnknown, "operator Scan at node 'along' is control flow"),
    whole_weights: (ModelRefused, "weights of type int8 ('w'); only float32 is taken"),
    quantised: (OperatorUnknown, "operator DequantizeLinear at node 'dequantise' is not on the list"),
    half_constant: (ModelRefused, "operator Conv at node 'n0' has weights of type float16 ('w')"),
    cast_from_half: (ModelRefused, "operator Cast at node 'widen' has weights of type float16 ('h'); only float32"),
    cast_to_half: (OperatorUnknown, "operator Cast at node 'narrow' has a cast to FLOAT16"),
    no_rank_behind: (ModelRefused, "'s' is not a float32 tensor"),
    no_rank_out: (ModelRefused, "'y' has no shape: its rank must be known"),
    reads_itself: (ModelRefused, "operator Conv at node 'n0' reads 'a', which node 'n0' makes later"),
    weight_named_twice: (ModelRefused, "the name 'w' is used twice: by an initialiser and by an initialiser"),
    nodes_named_alike: (ModelRefused, "2 nodes are called 'n0'"),
    output_named_twice: (ModelRefused, "the output 'y' is there twice"),
    input_named_twice: (ModelRefused, "the name 'x' is used twice: by an input and by an input"),
    sequence_input: (ModelRefused, "'x' is not a float32 tensor"),
    own_function: (OperatorUnknown, "operator Twice at node 'twice' is of the domain 'own'"),
    sparse_weights: (ModelRefused, "sparse initialisers"),
    no_dependence: (ModelRefused, "the output 'y' is a constant"),
    text_weights: (ModelRefused, "of type STRING"),
    too_many_nodes: (ModelTooLarge, "20002 nodes"),
    old_opset: (ModelRefused, "opset 8; 9 to"),
    new_opset: (ModelRefused, "opset 1000; 9 to"),
    unknown_attribute: (ModelRefused, "strdes"),
}
