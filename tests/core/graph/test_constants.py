"""Folding, where it has to be exact."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from onnx import helper

from core.errors import ModelTooLarge
from core.graph.limits import MAX_FOLDED_ELEMENTS
from core.graph.onnx_constants import FOLDERS, CannotFold, fold, fold_all, plain, work
from core.graph.sizes import BATCH, Dimension, Size, follows_batch

RANGE = helper.make_node("Range", ["start", "stop", "step"], ["y"])


@pytest.mark.parametrize(
    ("start", "stop", "step", "expected"),
    [
        (0.5, 3.0, 1.0, [0.5, 1.5, 2.5]),
        (0.0, 1.0, 0.25, [0.0, 0.25, 0.5, 0.75]),
        (2.5, 0.0, -1.0, [2.5, 1.5, 0.5]),
        (1.0, 0.0, 1.0, []),
        (3, 9, 3, [3, 6]),
        (10, 4, -2, [10, 8, 6]),
    ],
)
def test_range(start: float, stop: float, step: float, expected: list[float]) -> None:
    kind = np.float32 if isinstance(start, float) else np.int64
    found = fold(RANGE, [np.array(value, dtype=kind) for value in (start, stop, step)])
    assert found.tolist() == expected
    assert found.dtype == kind


@pytest.mark.parametrize("step", [0.0, np.nan])
def test_a_range_without_an_end_is_not_folded(step: float) -> None:
    with pytest.raises(CannotFold):
        fold(RANGE, [np.array(value, dtype=np.float32) for value in (0, 1, step)])


def test_a_long_range_is_refused() -> None:
    with pytest.raises(ModelTooLarge):
        fold(RANGE, [np.array(value, dtype=np.float32) for value in (0, 1, 1e-30)])


def whole(*values: int) -> np.ndarray:
    return np.array(values, dtype=np.int64)


def floats(*values: float) -> np.ndarray:
    return np.array(values, dtype=np.float32)


def folded(operator: str, *inputs: np.ndarray | None, outputs: int = 1, **attributes: Any) -> list[Any]:
    names = [f"i{index}" if value is not None else "" for index, value in enumerate(inputs)]
    node = helper.make_node(operator, names, [f"o{index}" for index in range(outputs)], **attributes)
    return [result.tolist() for result in fold_all(node, list(inputs))]


TRUE_FALSE = np.array([True, False])
CASES: list[tuple[str, tuple[Any, ...], dict[str, Any], Any]] = [
    ("Add", (whole(1, 2), whole(3, 4)), {}, [4, 6]),
    ("Sub", (floats(1, 2), floats(0.5)), {}, [0.5, 1.5]),
    ("Mul", (whole(2), whole(3, 4)), {}, [6, 8]),
    ("Div", (whole(7, -7, 7), whole(2, 2, -2)), {}, [3, -3, -3]),
    ("Div", (floats(7), floats(2)), {}, [3.5]),
    ("Mod", (whole(7, -7), whole(3)), {}, [1, 2]),
    ("Mod", (whole(7, -7), whole(3)), {"fmod": 1}, [1, -1]),
    ("Pow", (floats(2, 3), floats(2)), {}, [4, 9]),
    ("Pow", (whole(2), whole(10)), {}, [1024]),
    ("Sqrt", (floats(4),), {}, [2]),
    ("Neg", (whole(4),), {}, [-4]),
    ("Abs", (whole(-4),), {}, [4]),
    ("Sign", (whole(-4),), {}, [-1]),
    ("Exp", (floats(0),), {}, [1]),
    ("Log", (floats(1),), {}, [0]),
    ("Reciprocal", (floats(4),), {}, [0.25]),
    ("Relu", (floats(-1, 2),), {}, [0, 2]),
    ("Sigmoid", (floats(0, -1000),), {}, [0.5, 0]),
    ("Tanh", (floats(0),), {}, [0]),
    ("Softplus", (floats(-1000, 1000),), {}, [0, 1000]),
    ("Softmax", (floats(2, 2),), {"axis": 0}, [0.5, 0.5]),
    ("Floor", (floats(1.5, -1.5),), {}, [1, -2]),
    ("Ceil", (floats(1.5, -1.5),), {}, [2, -1]),
    ("Round", (floats(0.5, 1.5, 2.5),), {}, [0, 2, 2]),
    ("Min", (whole(1, 5), whole(3), whole(4, 2)), {}, [1, 2]),
    ("Max", (whole(1, 5), whole(3)), {}, [3, 5]),
    ("Sum", (floats(1), floats(2), floats(3)), {}, [6]),
    ("Clip", (floats(-1, 5), floats(0)[0], floats(2)[0]), {}, [0, 2]),
    ("MatMul", (whole(1, 2).reshape(1, 2), whole(3, 4).reshape(2, 1)), {}, [[11]]),
    ("MatMul", (whole(1, 2), whole(3, 4)), {}, 11),
    (
        "BatchNormalization",
        ([[1.0], [3.0]], [2.0], [1.0], [0.0], [1.0]),
        {"training_mode": 1, "epsilon": 0.0},
        [[-1], [3]],
    ),
    ("BatchNormalization", ([[1.0], [3.0]], [2.0], [1.0], [1.0], [4.0]), {"epsilon": 0.0}, [[1], [3]]),
    ("Equal", (whole(1, 2), whole(1, 3)), {}, [True, False]),
    ("Less", (whole(1, 2), whole(2)), {}, [True, False]),
    ("LessOrEqual", (whole(1, 3), whole(1)), {}, [True, False]),
    ("Greater", (whole(1, 3), whole(2)), {}, [False, True]),
    ("GreaterOrEqual", (whole(1, 2), whole(2)), {}, [False, True]),
    ("And", (TRUE_FALSE, TRUE_FALSE[::-1]), {}, [False, False]),
    ("Or", (TRUE_FALSE, TRUE_FALSE[::-1]), {}, [True, True]),
    ("Xor", (TRUE_FALSE, TRUE_FALSE), {}, [False, False]),
    ("Not", (TRUE_FALSE,), {}, [False, True]),
    ("IsNaN", (floats(1, np.nan),), {}, [False, True]),
    ("Where", (TRUE_FALSE, whole(1), whole(2)), {}, [1, 2]),
    ("ReduceProd", (whole(2, 3, 4),), {"keepdims": 0}, 24),
    ("ReduceSum", (whole(2, 3), whole(0)), {}, [5]),
    ("ReduceSum", (whole(2, 3),), {"noop_with_empty_axes": 1}, [2, 3]),
    ("ReduceMean", (floats(2, 4),), {"axes": [0]}, [3]),
    ("ReduceMax", (whole(2, 3),), {}, [3]),
    ("ReduceMin", (whole(2, 3),), {}, [2]),
    ("Tile", (whole(1, 2), whole(2)), {}, [1, 2, 1, 2]),
    ("Expand", (whole(1), whole(3)), {}, [1, 1, 1]),
    ("Flatten", (whole(1, 2, 3, 4).reshape(2, 2),), {"axis": 0}, [[1, 2, 3, 4]]),
    ("Size", (whole(1, 2, 3),), {}, 3),
    ("NonZero", (whole(0, 5, 6),), {}, [[1, 2]]),
    ("Gather", (whole(5, 6), whole(1, 0, 1)), {}, [6, 5, 6]),
    ("Concat", (whole(1), whole(2)), {"axis": 0}, [1, 2]),
    ("Slice", (whole(1, 2, 3), whole(2), whole(-9), whole(0), whole(-1)), {}, [3, 2, 1]),
    ("Squeeze", (whole(1).reshape(1, 1), whole(0)), {}, [1]),
    ("Unsqueeze", (whole(1), whole(0)), {}, [[1]]),
    ("Reshape", (whole(1, 2), whole(0, 1)), {}, [[1], [2]]),
    ("Transpose", (whole(1, 2).reshape(1, 2),), {}, [[1], [2]]),
    ("Cast", (floats(1.7),), {"to": 7}, [1]),
    ("Identity", (floats(1),), {}, [1]),
    ("ConstantOfShape", (whole(2),), {}, [0, 0]),
    ("Range", (whole(0)[0], whole(2)[0], whole(1)[0]), {}, [0, 1]),
    ("Constant", (), {"value_ints": [1, 2]}, [1, 2]),
]


@pytest.mark.parametrize(("operator", "inputs", "attributes", "expected"), CASES)
def test_constants_are_folded(operator: str, inputs: Any, attributes: dict[str, Any], expected: Any) -> None:
    assert folded(operator, *map(np.asarray, inputs), **attributes) == [expected]


@pytest.mark.parametrize(
    ("opset", "attributes", "share"),
    [(11, {}, 1 / 6), (11, {"axis": 2}, 1 / 3), (13, {}, 1 / 3), (13, {"axis": 1}, 1 / 2)],
)
def test_opsets_define_softmax_differently(opset: int, attributes: dict[str, int], share: float) -> None:
    node = helper.make_node("Softmax", ["x"], ["y"], **attributes)
    (result,) = fold_all(node, [np.zeros((4, 2, 3), dtype=np.float32)], opset)
    assert np.allclose(result, share)


def test_every_folder_is_among_the_cases() -> None:
    assert {*FOLDERS} - {operator for operator, *_ in CASES} == {"Split"}


def test_a_split_has_several_results() -> None:
    assert folded("Split", whole(1, 2, 3), outputs=2) == [[1, 2], [3]]
    assert folded("Split", whole(1, 2, 3), whole(1, 2), outputs=2) == [[1], [2, 3]]
    with pytest.raises(CannotFold):
        folded("Split", whole(1, 2, 3), whole(1, 1), outputs=2)


@pytest.mark.parametrize(("operator", "divisor"), [("Div", 0), ("Mod", 0)])
def test_whole_numbers_are_not_divided_by_nothing(operator: str, divisor: int) -> None:
    with pytest.raises(CannotFold):
        folded(operator, whole(1), whole(divisor))


@pytest.mark.parametrize(
    ("operator", "inputs", "attributes"),
    [
        ("Tile", (floats(1), whole(2**40)), {}),
        ("Expand", (floats(1), whole(2**30, 2**30)), {}),
        ("ConstantOfShape", (whole(2**40),), {}),
        ("Add", (np.zeros((2**14, 1)), np.zeros((1, 2**14))), {}),
        ("Equal", (np.zeros((2**14, 1)), np.zeros((1, 2**14))), {}),
        ("Where", (np.zeros((2**14, 1), np.bool_), np.zeros((1, 2**14)), floats(1)), {}),
        ("Max", (np.zeros((2**14, 1)), np.zeros((1, 2**14))), {}),
        ("MatMul", (np.zeros((2**14, 1)), np.zeros((1, 2**14))), {}),
        ("MatMul", (np.zeros((2**12, 2**10)), np.zeros((2**10, 2**12))), {}),
        ("Gather", (np.zeros((1, 2**14)), np.zeros(2**14, np.int64)), {}),
    ],
)
def test_folding_does_not_grow_a_small_file(operator: str, inputs: Any, attributes: dict[str, Any]) -> None:
    with pytest.raises(ModelTooLarge):
        folded(operator, *inputs, **attributes)


def test_what_a_reduction_goes_through_is_counted() -> None:
    node = helper.make_node("ReduceSum", ["x"], ["y"])
    given = np.zeros(1000, np.float32)
    assert work(node, [given], fold_all(node, [given])) == 1000
    assert work(helper.make_node("Identity", ["x"], ["y"]), [given], (given,)) == 0
    assert MAX_FOLDED_ELEMENTS == 2**26


# --- open sizes ------------------------------------------------------------------------------------------------------

H, W = (Size({(Dimension(None, dim, (32, 32 * dim)),): Fraction(1)}) for dim in (2, 3))


def objects(*values: Any) -> np.ndarray:
    array = np.empty(len(values), dtype=object)
    array[:] = values
    return array


@pytest.mark.parametrize(
    ("operator", "inputs", "expected"),
    [
        ("Mul", (objects(H, 3), whole(2)), [H * 2, 6]),
        ("Mul", (objects(H, W), objects(W, 2)), [H * W, W * 2]),
        ("Add", (objects(H), whole(1)), [H + 1]),
        ("Sub", (objects(H * 2), objects(H)), [H]),
        ("Sub", (objects(H), objects(H)), [0]),
        ("Div", (objects(H * 4, 6), whole(2)), [H * 2, 3]),
        ("Div", (objects(H * W), objects(W)), [H]),
        ("Div", (objects(H), floats(2)), [H * 0.5]),
        ("Floor", (objects(H * 2.0, 2.5),), [H * 2, 2.0]),
        ("ReduceProd", (objects(H, W, 2),), [H * W * 2]),
        ("ReduceSum", (objects(H, 2),), [H + 2]),
        ("Equal", (objects(H, W, 3), whole(-1)), [False, False, False]),
        ("Equal", (objects(H, 3), objects(H, 3)), [True, True]),
        ("Where", (TRUE_FALSE, objects(H, H), whole(1)), [H, 1]),
        ("Concat", (objects(H), whole(1)), [H, 1]),
        ("Gather", (objects(H, W), whole(1)), [W]),
    ],
)
def test_open_sizes_are_computed_with(operator: str, inputs: Any, expected: list[Any]) -> None:
    attributes = {"axis": 0} if operator == "Concat" else {}
    assert folded(operator, *inputs, **attributes) == [expected]


@pytest.mark.parametrize(
    ("operator", "inputs", "attributes"),
    [
        ("Div", (objects(H), whole(2)), {}),
        ("Div", (whole(64), objects(H)), {}),
        ("Div", (objects(H), objects(W)), {}),
        ("Div", (objects(H), objects(H + 1)), {}),
        ("Floor", (objects(H * 0.5),), {}),
        ("Cast", (objects(H * 0.5),), {"to": 7}),
        ("Cast", (objects(H),), {"to": 9}),
        ("Equal", (objects(H), whole(32)), {}),
        ("Equal", (objects(H), objects(W)), {}),
        ("Equal", (objects(H - 40), whole(0)), {}),
        ("Min", (objects(H), whole(32)), {}),
        ("Max", (whole(32), objects(H)), {}),
        ("Less", (objects(H), whole(32)), {}),
        ("Mod", (objects(H), whole(32)), {}),
        ("Sqrt", (objects(H),), {}),
        ("ConstantOfShape", (objects(H),), {}),
        ("Range", (whole(0)[0], objects(H), whole(1)[0]), {}),
        ("ReduceMax", (objects(H, 1),), {}),
    ],
)
def test_what_follows_from_the_image_alone_is_not_folded(
    operator: str, inputs: Any, attributes: dict[str, Any]
) -> None:
    with pytest.raises(CannotFold):
        folded(operator, *map(np.asarray, inputs), **attributes)


def test_sizes() -> None:
    assert (H * W + 1).examples == (32 * 32 + 1, 64 * 96 + 1)
    assert (2 * H).multiple() == (Dimension(None, 2, (32, 64)), 2)
    assert (H * W).multiple() is None
    assert (H + 1).multiple() is None
    assert 3 - H == -(H - 3)
    assert not (H * 0.5).whole
    assert repr(H) == "Size(32, 64)"
    assert follows_batch(BATCH * 2)
    assert not follows_batch(3)
    assert H != 32
    assert {H: 1}[H * 1] == 1
    with pytest.raises(TypeError):
        H + "1"
    assert plain(objects(1, 2.5)).dtype == np.float32
    assert plain(objects(1, H)).dtype == object
