from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from core.data.datasets import Dataset
from core.data.fit import check_fits
from core.errors import DatasetMismatch
from core.graph.network import TensorSpec

Load = Callable[..., Dataset]
Npz = Callable[..., Path]
RGB = np.random.default_rng(0).integers(0, 256, (40, 6, 5, 3), dtype=np.uint8)
Y = np.arange(40) % 4


def spec(*shape: int | str) -> TensorSpec:
    return TensorSpec("x", "float32", shape)


def faults_of(data: Dataset, inputs: list[TensorSpec], outputs: list[TensorSpec]) -> dict[str, tuple[str, str | None]]:
    with pytest.raises(DatasetMismatch) as caught:
        check_fits(data, inputs, outputs)
    return {fault.pointer: (fault.message, fault.expected) for fault in caught.value.faults}


@pytest.fixture
def rgb(load: Load, make_npz: Npz) -> Dataset:
    return load(make_npz(x_train=RGB, y_train=Y), "npz")


def test_what_fits_is_given_back(rgb: Dataset) -> None:
    assert check_fits(rgb, [spec("n", 3, 6, 5)], [spec("n", 4)]).input_shape == (3, 6, 5)
    assert check_fits(rgb, [spec(1, 3, "h", "w")], [spec(1, 4, 1, 1)]).input_shape == (3, 6, 5)
    assert check_fits(rgb, [spec("n", "c", "h", "w")], [spec("n", "k")]).input_shape == (3, 6, 5)


def test_open_channels_follow_the_model(load: Load, make_npz: Npz, rgb: Dataset) -> None:
    grey = check_fits(rgb, [spec("n", 1, 6, 5)], [spec("n", 4)])
    assert (grey.channels, grey.image_shape) == ("L", (1, 6, 5))
    assert rgb.image_shape == (3, 6, 5)  # the one that was given is as it was
    batch, _ = next(grey.batches("train", 4))
    assert batch.shape == (4, 1, 6, 5)
    colour = check_fits(load(make_npz(x_train=RGB[..., 0], y_train=Y), "npz"), [spec("n", 3, 6, 5)], [spec("n", 4)])
    batch, _ = next(colour.batches("train", 4))
    assert batch.shape == (4, 3, 6, 5)


def test_all_that_does_not_fit_is_told_at_once(rgb: Dataset) -> None:
    faults = faults_of(rgb, [spec("n", 3, 32, 32)], [spec("n", 10)])
    assert faults["/preprocess/size"] == (
        "images are 6×5, the model's input is (n, 3, 32, 32) (NCHW)", "[32, 32], or another layout",
    )  # fmt: skip
    assert faults["/preprocess/class_order"][0] == "the dataset has 4 classes, the model's output x has 10"
    assert len(faults) == 2


def test_one_dynamic_side_leaves_that_side_alone(rgb: Dataset) -> None:
    assert faults_of(rgb, [spec("n", 3, "h", 8)], [spec("n", 4)])["/preprocess/size"][1] == "[6, 8], or another layout"


def test_channels_that_are_given_must_be_the_model_s(load: Load, make_npz: Npz) -> None:
    data = load(make_npz(x_train=RGB, y_train=Y), "npz", channels="BGR")
    faults = faults_of(data, [spec("n", 1, 6, 5)], [spec("n", 4)])
    assert faults == {
        "/preprocess/channels": ("the model's input (n, 1, 6, 5) has 1 channels as NCHW, BGR gives 3", "L")
    }


def test_the_other_layout_is_proposed(rgb: Dataset) -> None:
    faults = faults_of(rgb, [spec("n", 6, 5, 3)], [spec("n", 4)])
    assert {pointer: expected for pointer, (_, expected) in faults.items()} == {"/preprocess/layout": "NHWC"}


def test_nhwc(load: Load, make_npz: Npz) -> None:
    data = load(make_npz(x_train=RGB, y_train=Y), "npz", layout="NHWC")
    assert check_fits(data, [spec("n", 6, 5, 3)], [spec("n", 4)]).input_shape == (6, 5, 3)
    assert faults_of(data, [spec("n", 3, 6, 5)], [spec("n", 4)])["/preprocess/layout"][1] == "NCHW"


def test_means_of_the_wrong_length_are_told(load: Load, make_npz: Npz) -> None:
    data = load(make_npz(x_train=RGB, y_train=Y), "npz", mean=(0.1, 0.2, 0.3), std=(1.0, 2.0))
    assert faults_of(data, [spec("n", 1, 6, 5)], [spec("n", 4)]) == {
        "/preprocess/mean": ("3 numbers for 1 channel(s)", "one number"),
        "/preprocess/std": ("2 numbers for 1 channel(s)", "one number"),
    }


@pytest.mark.parametrize(
    ("inputs", "outputs", "message"),
    [
        ([spec("n", 3, 6, 5), spec("n", 3, 6, 5)], [spec("n", 4)], "the model has 2 inputs"),
        ([spec("n", 90)], [spec("n", 4)], "has 2 dimensions (n, 90)"),
        ([spec("n", 7, 6, 5)], [spec("n", 4)], "has 7 channels"),
        ([spec("n", 3, 6, 5)], [spec("n", 4, 6, 5)], "the output x is (n, 4, 6, 5)"),
        ([spec("n", 3, 6, 5)], [], "the model has no output"),
    ],
)
def test_models_that_do_not_classify_images(
    rgb: Dataset, inputs: list[TensorSpec], outputs: list[TensorSpec], message: str
) -> None:
    faults = faults_of(rgb, inputs, outputs)
    assert any(message in text for text, _ in faults.values())


def test_more_classes_than_outputs(rgb: Dataset) -> None:
    assert (
        faults_of(rgb, [spec("n", 3, 6, 5)], [spec("n", 2)])["/preprocess/class_order"][1] == "a dataset of 2 classes"
    )
