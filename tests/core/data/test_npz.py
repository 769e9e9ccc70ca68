from __future__ import annotations

import io
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from core.data.datasets import Dataset
from core.errors import DatasetRefused, DatasetTooLarge, DatasetUnreadable, DatasetUnsuitable

Load = Callable[..., Dataset]
Npz = Callable[..., Path]
GENERATOR = np.random.default_rng(0)
X = GENERATOR.integers(0, 256, (30, 6, 5), dtype=np.uint8)
Y = np.arange(30) % 3


def whole(data: Dataset) -> torch.Tensor:
    """All images in one tensor, sorted so that they can be compared whatever split they are in."""
    rows = torch.cat([split.x.flatten(1) for split in data.splits.values()]).to(torch.float64)
    return rows[np.lexsort(rows.numpy().T)]


def rows(x: np.ndarray) -> torch.Tensor:
    flat = x.reshape(len(x), -1).astype(np.float64)
    return torch.from_numpy(flat[np.lexsort(flat.T)])


@pytest.mark.parametrize("kind", [np.uint8, np.int64, np.uint16, np.float32, np.float64])
def test_values_from_0_to_255_of_any_type_are_held_as_uint8(load: Load, make_npz: Npz, kind: type) -> None:
    data = load(make_npz(x_train=X.astype(kind), y_train=Y), "npz")
    assert data.splits["train"].x.dtype == torch.uint8
    assert data.image_shape == (1, 6, 5)
    assert torch.equal(whole(data), rows(X))
    assert data.summary()["value_range"] == "0-255"


@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64])
def test_floats_from_0_to_1_that_came_from_uint8_go_back_to_it(load: Load, make_npz: Npz, kind: type) -> None:
    data = load(make_npz(x_train=(X / 255).astype(kind), y_train=Y), "npz")
    assert data.splits["train"].x.dtype == torch.uint8
    assert torch.equal(whole(data), rows(X))
    assert data.summary()["value_range"] == "0-1"


@pytest.mark.parametrize("scale", [1, 255])
def test_other_floats_are_kept_as_they_are(load: Load, make_npz: Npz, scale: int) -> None:
    x = (GENERATOR.random((30, 6, 5)) * scale).astype(np.float32)
    data = load(make_npz(x_train=x, y_train=Y), "npz")
    assert data.splits["train"].x.dtype == torch.float32
    torch.testing.assert_close(whole(data), rows(x * np.float32(255 / scale)), rtol=1e-6, atol=1e-4)
    assert data.summary()["dtype"] == "float32"
    assert any("float32" in warning for warning in data.warnings)
    batch, _ = next(data.batches("train", 8))
    assert 0 <= batch.min() < batch.max() <= 1


def test_the_range_is_that_of_all_splits_together(load: Load, make_npz: Npz) -> None:
    dark = (X[:6] > 127).astype(np.float32)
    data = load(make_npz(x_train=X.astype(np.float32), y_train=Y, x_test=dark, y_test=Y[:6]), "npz")
    assert data.splits["test"].x.max() == 1
    assert data.summary()["value_range"] == "0-255"


@pytest.mark.parametrize("layout", ["NHWC", "NCHW"])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("order", ["C", "F"])
def test_layouts(load: Load, make_npz: Npz, layout: str, channels: int, order: str) -> None:
    nchw = GENERATOR.integers(0, 256, (30, channels, 6, 5), dtype=np.uint8)
    x = nchw if layout == "NCHW" else nchw.transpose(0, 2, 3, 1)
    data = load(make_npz(x_train=np.array(x, order=order), y_train=Y), "npz")
    assert data.image_shape == (channels, 6, 5)
    assert torch.equal(whole(data), rows(nchw))
    assert data.summary()["array_layout"] == layout


def test_all_arrays_make_all_splits(load: Load, make_npz: Npz) -> None:
    path = make_npz(x_train=X[:15], y_train=Y[:15, None], x_val=X[15:21], y_val=Y[15:21], x_test=X[21:], y_test=Y[21:])
    data = load(path, "npz")
    assert {name: (len(split), split.given) for name, split in data.splits.items()} == {
        "train": (15, True), "validation": (6, True), "test": (9, True),
    }  # fmt: skip
    assert torch.equal(data.splits["test"].x[:, 0], torch.from_numpy(X[21:]))
    assert data.splits["test"].y.tolist() == Y[21:].tolist()
    assert data.classes == ("0", "1", "2")


def test_resizing(load: Load, make_npz: Npz) -> None:
    assert load(make_npz(x_train=X, y_train=Y), "npz", size=(12, 10)).image_shape == (1, 12, 10)


# --- refusals --------------------------------------------------------------------------------------------------------


def refusal(load: Load, path: Path | None, kind: type[DatasetRefused]) -> dict[str, str]:
    with pytest.raises(kind) as caught:
        load(path, "npz")
    assert type(caught.value) is kind
    assert all(fault.expected for fault in caught.value.faults)
    return {fault.pointer: fault.message for fault in caught.value.faults}


def test_object_arrays_are_refused_and_never_unpickled(load: Load, tmp_path: Path) -> None:
    touched = tmp_path / "touched"

    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (touched,))

    path = tmp_path / "a.npz"
    np.savez(path, x_train=np.array([Evil()] * 3, dtype=object), y_train=Y[:3])
    faults = refusal(load, path, DatasetUnreadable)
    assert "unpickled" in faults["/file/x_train.npy"]
    assert not touched.exists()


def test_a_pickle_is_refused(load: Load, tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    path.write_bytes(pickle.dumps({"x_train": X}))
    assert refusal(load, path, DatasetUnreadable) == {"/file": "no zip archive, or a truncated one"}
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x_train.npy", pickle.dumps(X))
    assert refusal(load, path, DatasetUnreadable) == {"/file/x_train.npy": "damaged, or no .npy array"}


@pytest.mark.parametrize(
    "array", [np.array(["a", "b"]), np.array([1j]), np.array([True]), np.zeros(2, dtype=[("a", "u1")])]
)
def test_other_types_are_refused(load: Load, make_npz: Npz, array: np.ndarray) -> None:
    assert refusal(load, make_npz(x_train=X, y_train=array), DatasetUnreadable)["/file/y_train.npy"].startswith("type ")


def test_a_header_that_promises_more_than_there_is_takes_no_memory(load: Load, tmp_path: Path) -> None:
    buffer = io.BytesIO()
    header = {"descr": "|u1", "fortran_order": False, "shape": (10**12, 8, 8)}
    np.lib.format.write_array_header_1_0(buffer, header)
    path = tmp_path / "a.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x_train.npy", buffer.getvalue() + bytes(64))
    message = refusal(load, path, DatasetUnreadable)["/file/x_train.npy"]
    assert "64000000000000 bytes; there are 64" in message


@pytest.mark.parametrize("header", [b"(1,2", b"{'descr': '|u1'}", b"__import__('os').abort()", b"{" * 5000])
def test_a_hostile_header_is_refused(load: Load, tmp_path: Path, header: bytes) -> None:
    path = tmp_path / "a.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x_train.npy", b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header)
    assert refusal(load, path, DatasetUnreadable) == {"/file/x_train.npy": "damaged, or no .npy array"}


def test_a_truncated_file_is_refused(load: Load, make_npz: Npz) -> None:
    path = make_npz(x_train=X, y_train=Y)
    path.write_bytes(path.read_bytes()[:-200])
    assert refusal(load, path, DatasetUnreadable) == {"/file": "no zip archive, or a truncated one"}


def test_a_bomb_is_refused(load: Load, make_npz: Npz) -> None:
    path = make_npz(x_train=np.zeros((20_000, 32, 32), dtype=np.uint8), y_train=np.zeros(20_000, dtype=np.uint8))
    assert "/file/x_train.npy" in refusal(load, path, DatasetTooLarge)


def test_other_arrays_are_refused(load: Load, make_npz: Npz) -> None:
    path = make_npz(x_train=X, y_train=Y, images=X)
    assert refusal(load, path, DatasetUnreadable) == {"/file/images.npy": "not an array that is known"}


def test_missing_and_unpaired_arrays_are_told_together(load: Load, make_npz: Npz) -> None:
    faults = refusal(load, make_npz(x_train=X, y_train=Y[:-1], x_test=X, y_val=Y), DatasetUnsuitable)
    assert faults == {
        "/file/y_train": "x_train is 30×6×5, y_train is 29",
        "/file/y_test": "y_test is missing",
        "/file/x_val": "x_val is missing",
    }
    assert refusal(load, make_npz(x_test=X, y_test=Y), DatasetUnsuitable).keys() == {"/file/x_train", "/file/y_train"}


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (Y + 1, "3 different labels from 1 to 3"),
        (Y * 2, "3 different labels from 0 to 4"),
        (Y - 1, "3 different labels from -1 to 1"),
        (np.where(Y == 2, 10**15, Y), f"3 different labels from 0 to {10**15}"),
        (Y.astype(float), "labels are float64"),
        (np.eye(3)[Y], "labels are 30×3 (one-hot labels? give y.argmax(1))"),
        (np.int64(3), "labels are a single number"),
    ],
)
def test_labels_that_are_not_0_to_k_minus_1_are_refused(
    load: Load, make_npz: Npz, labels: np.ndarray, message: str
) -> None:
    assert message in refusal(load, make_npz(x_train=X, y_train=labels), DatasetUnsuitable)["/file/y_train"]


def test_test_labels_that_train_does_not_have_are_refused(load: Load, make_npz: Npz) -> None:
    path = make_npz(x_train=X, y_train=Y, x_test=X[:3], y_test=np.array([0, 3, 7]))
    assert refusal(load, path, DatasetUnsuitable) == {"/file/y_test": "labels [3, 7] are not in y_train"}


def test_one_class_is_refused(load: Load, make_npz: Npz) -> None:
    faults = refusal(load, make_npz(x_train=X, y_train=np.zeros(30, dtype=int)), DatasetUnsuitable)
    assert faults == {"/file": "only the class '0' was found"}


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (X.astype(np.float32) / 100 - 1, "values from -1 to"),
        (np.where(X[0, 0, 0] == X, np.nan, X), "values from nan to nan"),
        (X.astype(np.int32) * 2, "values from 0 to 5"),
        (X[:, 0], "images are 30×5"),
        (np.zeros((30, 6, 5, 4), dtype=np.uint8), "images are 30×6×5×4"),
        (np.zeros((30, 3, 5, 3), dtype=np.uint8), "N×C×H×W and N×H×W×C alike"),
        (np.zeros((30, 1, 8193, 1), dtype=np.uint8)[:, 0], "images are 30×8193×1"),
        (np.zeros((30, 0, 5), dtype=np.uint8), "images are 30×0×5: none"),
    ],
)
def test_images_that_are_none_are_refused(load: Load, make_npz: Npz, images: np.ndarray, message: str) -> None:
    assert message in refusal(load, make_npz(x_train=images, y_train=Y), DatasetUnsuitable)["/file/x_train"]


def test_splits_of_different_shapes_are_refused(load: Load, make_npz: Npz) -> None:
    path = make_npz(x_train=X, y_train=Y, x_test=X[:, :5], y_test=Y)
    message = refusal(load, path, DatasetUnsuitable)["/file"]
    assert message == "images of different shapes: x_train 30×6×5, x_test 30×5×5"


@pytest.mark.parametrize(("images", "kind"), [(3, DatasetUnreadable), (70, DatasetTooLarge)])
def test_an_image_folder_named_npz_is_told_its_extension(
    load: Load, tmp_path: Path, images: int, kind: type[DatasetRefused]
) -> None:
    path = tmp_path / "arrays.npz"
    with zipfile.ZipFile(path, "w") as archive:
        for number in range(images):
            archive.writestr(f"train/cat/{number}.png", b"x")
    with pytest.raises(kind) as caught:
        load(path, "npz")
    (fault,) = caught.value.faults
    assert fault.pointer == "/file"
    assert "an image folder is a .zip" in (fault.expected or "")


def test_no_file_is_refused(load: Load) -> None:
    assert refusal(load, None, DatasetUnreadable) == {"/file": "no file was given"}
