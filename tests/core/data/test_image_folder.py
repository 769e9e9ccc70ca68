from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from core.data.datasets import Dataset
from core.errors import DatasetRefused, DatasetTooLarge, DatasetUnreadable, DatasetUnsuitable
from core.job import Room

Load = Callable[..., Dataset]
Zip = Callable[[dict[str, bytes]], Path]
ClassFiles = Callable[..., dict[str, bytes]]


def pixels_of(data: bytes) -> torch.Tensor:
    with Image.open(io.BytesIO(data)) as image:
        return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)


def test_class_folders_become_splits_with_the_stored_pixels(load: Load, make_zip: Zip, class_files: ClassFiles) -> None:
    files = class_files(cat=10, dog=10)
    data = load(make_zip(files), "image_folder")
    assert data.classes == ("cat", "dog")
    assert data.image_shape == (3, 6, 5)
    assert {name: len(split) for name, split in data.splits.items()} == {"train": 14, "validation": 2, "test": 4}
    found = {
        (row.numpy().tobytes(), data.classes[label])
        for split in data.splits.values()
        for row, label in zip(split.x, split.y.tolist(), strict=True)
    }
    assert found == {(pixels_of(png).numpy().tobytes(), name.split("/")[0]) for name, png in files.items()}


@pytest.mark.parametrize("prefix", ["", "data/", "outer/inner/"])
@pytest.mark.parametrize("validation", ["val", "valid", "validation"])
def test_the_upload_s_own_splits_are_kept(
    load: Load, make_zip: Zip, class_files: ClassFiles, prefix: str, validation: str
) -> None:
    files = {
        **class_files(f"{prefix}train/", cat=4, dog=3, seed=1),
        **class_files(f"{prefix}{validation}/", cat=2, dog=1, seed=2),
        **class_files(f"{prefix}test/", cat=1, dog=2, seed=3),
        f"{prefix}README.txt": b"hello",
        f"__MACOSX/{prefix}train/cat/._0.png": b"litter",
        f"{prefix}.DS_Store": b"litter",
    }
    data = load(make_zip(files), "image_folder")
    assert {name: (len(split), split.given) for name, split in data.splits.items()} == {
        "train": (7, True), "validation": (3, True), "test": (3, True),
    }  # fmt: skip
    assert data.summary()["splits"]["test"]["per_class"] == {"cat": 1, "dog": 2}
    assert any("README.txt" in warning for warning in data.warnings)


def test_only_what_is_missing_is_taken_from_train(load: Load, make_zip: Zip, class_files: ClassFiles) -> None:
    files = {**class_files("train/", cat=10, dog=10, seed=1), **class_files("test/", cat=3, dog=3, seed=2)}
    data = load(make_zip(files), "image_folder")
    assert {name: (len(split), split.given) for name, split in data.splits.items()} == {
        "train": (18, False), "validation": (2, False), "test": (6, True),
    }  # fmt: skip


def test_folders_inside_a_class_belong_to_it(load: Load, make_zip: Zip, class_files: ClassFiles) -> None:
    data = load(make_zip({**class_files("cat/", a=3, b=3), **class_files(dog=5, seed=1)}), "image_folder")
    assert data.classes == ("cat", "dog")


@pytest.mark.parametrize(("kind", "suffix"), [("PNG", "png"), ("JPEG", "JPG"), ("BMP", "bmp"), ("GIF", "gif"),
                                              ("WEBP", "webp")])  # fmt: skip
def test_formats(load: Load, make_zip: Zip, kind: str, suffix: str) -> None:
    def image(value: int) -> bytes:
        buffer = io.BytesIO()
        Image.new("RGB", (8, 8), (value, value // 2, 0)).save(buffer, kind)
        return buffer.getvalue()

    files = {f"{name}/{number}.{suffix}": image(50 * number + start)
             for start, name in enumerate("ab") for number in range(4)}  # fmt: skip
    data = load(make_zip(files), "image_folder")
    assert data.image_shape == (3, 8, 8)
    assert sum(len(split) for split in data.splits.values()) == 8


def test_the_first_frame_of_an_animation_is_taken(load: Load, make_zip: Zip, class_files: ClassFiles) -> None:
    buffer = io.BytesIO()
    frames = [Image.new("RGB", (5, 6), colour) for colour in ("red", "blue")]
    frames[0].save(buffer, "GIF", save_all=True, append_images=frames[1:])
    files = {**class_files("train/", cat=3, dog=3), "test/cat/a.gif": buffer.getvalue(),
             **class_files("test/", dog=1, seed=5)}  # fmt: skip
    test = load(make_zip(files), "image_folder").splits["test"]
    assert test.x[test.y == 0][0, :, 0, 0].tolist() == [255, 0, 0]


def test_grey_images_stay_grey(load: Load, make_zip: Zip, png: Callable[..., bytes]) -> None:
    files = {f"{name}/{number}.png": png(ord(name) + 10 * number, channels=1) for name in "ab" for number in range(4)}
    assert load(make_zip(files), "image_folder").image_shape == (1, 6, 5)
    files["a/0.png"] = png(0, channels=3)
    assert load(make_zip(files), "image_folder").image_shape == (3, 6, 5)
    assert load(make_zip(files), "image_folder", channels="L").image_shape == (1, 6, 5)


def test_images_of_several_sizes_are_resized_where_a_size_is_given(
    load: Load, make_zip: Zip, png: Callable[..., bytes]
) -> None:
    files = {f"{name}/{number}.png": png(ord(name) + 10 * number, size=(6 + number, 9)) for name in "ab"
             for number in range(4)}  # fmt: skip
    with pytest.raises(DatasetUnsuitable) as caught:
        load(make_zip(files), "image_folder")
    (fault,) = caught.value.faults
    assert fault.pointer == "/preprocess/size"
    assert "4 sizes" in fault.message
    data = load(make_zip(files), "image_folder", size=(4, 4))
    assert data.image_shape == (3, 4, 4)
    assert data.splits["train"].x.dtype == torch.uint8


def test_resizing_is_pillow_s_antialiased_bilinear(load: Load, make_zip: Zip) -> None:
    ramp = np.linspace(0, 255, 32 * 32 * 3).reshape(32, 32, 3).astype(np.uint8)
    image = Image.fromarray(ramp)
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    files = {f"train/{name}/{n}.png": _flat(ord(name) + n) for name in "ab" for n in range(4)}
    files |= {"test/a/0.png": buffer.getvalue(), "test/b/0.png": _flat(3)}
    test = load(make_zip(files), "image_folder", size=(8, 8)).splits["test"]
    expected = np.array(image.resize((8, 8), Image.Resampling.BILINEAR)).transpose(2, 0, 1)
    assert np.abs(test.x[0].numpy().astype(int) - expected.astype(int)).max() <= 1


def _flat(value: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (32, 32), (value, 0, 0)).save(buffer, "PNG")
    return buffer.getvalue()


def test_transparency_is_dropped_and_counted(load: Load, make_zip: Zip, class_files: ClassFiles,
                                             png: Callable[..., bytes]) -> None:  # fmt: skip
    data = load(make_zip({**class_files(cat=4, dog=4), "dog/9.png": png(77, channels=4)}), "image_folder")
    assert "1 image(s) have transparency, which was dropped" in data.warnings


# --- refusals --------------------------------------------------------------------------------------------------------


def refusal(load: Load, path: Path, kind: type[Exception], **preprocess: Any) -> list[tuple[str, str]]:
    with pytest.raises(kind) as caught:
        load(path, "image_folder", **preprocess)
    assert type(caught.value) is kind
    return [(fault.pointer, fault.message) for fault in caught.value.faults]  # type: ignore[attr-defined]


@pytest.mark.parametrize("folder", ["", "cat/", "data/cat/"])
@pytest.mark.parametrize("splits", [("",), ("train/", "test/")])
def test_images_in_no_folder_or_one_have_no_labels(
    load: Load, make_zip: Zip, png: Callable[..., bytes], folder: str, splits: tuple[str, ...]
) -> None:
    files = {f"{split}{folder}{number}.png": png(100 * len(split) + number) for split in splits for number in range(10)}
    data = load(make_zip(files), "image_folder")
    assert data.classes == ()
    summary = data.summary()
    assert (summary["classes"], summary["images"]) == ([], 10 * len(splits))
    assert all(split["per_class"] == {} for split in summary["splits"].values())
    assert summary["splits"]["test"]["given"] == (len(splits) > 1)
    assert any("no labels" in warning for warning in data.warnings)
    found = {row.numpy().tobytes() for split in data.splits.values() for row in split.x}
    assert found == {pixels_of(png).numpy().tobytes() for png in files.values()}


def test_no_images_are_refused(load: Load, make_zip: Zip) -> None:
    assert ("/file", "no class folder was found") in refusal(load, make_zip({}), DatasetUnsuitable)


def test_images_beside_class_folders_are_refused(
    load: Load, make_zip: Zip, png: Callable[..., bytes], class_files: ClassFiles
) -> None:
    faults = refusal(load, make_zip({**class_files(cat=5), "1.png": png(1)}), DatasetUnsuitable)
    assert ("/file/1.png", "not in a class folder") in faults


@pytest.mark.parametrize("field", ["classes", "holdout_classes", "class_order"])
def test_classes_of_images_without_labels_are_refused(
    load: Load, make_zip: Zip, png: Callable[..., bytes], field: str
) -> None:
    file = make_zip({f"{number}.png": png(number) for number in range(10)})
    options = {field: ["a", "b"]} if field == "class_order" else {"splits": {field: ["a", "b"]}}
    with pytest.raises(DatasetRefused) as refused:
        load(file, "image_folder", **options)
    assert "no labels" in str(refused.value.faults[0])


def test_too_few_images_without_labels(load: Load, make_zip: Zip, png: Callable[..., bytes]) -> None:
    faults = refusal(load, make_zip({"1.png": png(1), "2.png": png(2)}), DatasetUnsuitable)
    assert faults == [("/file", "there are 2 images to share among train, test, validation")]


def test_empty_class_folders_are_refused_all_at_once(load: Load, make_zip: Zip, class_files: ClassFiles) -> None:
    files = {**class_files(cat=3, dog=3), "eel/": b"", "fox/notes.tiff": b"II*\0"}
    assert refusal(load, make_zip(files), DatasetUnsuitable) == [
        ("/file/train/eel", "the class folder 'eel' of train has no images"),
        ("/file/train/fox", "the class folder 'fox' of train has no images"),
    ]


def test_a_class_that_train_does_not_have_is_refused(load: Load, make_zip: Zip, class_files: ClassFiles) -> None:
    files = {**class_files("train/", cat=3, dog=3), **class_files("test/", cat=2, eel=2, seed=3)}
    assert refusal(load, make_zip(files), DatasetUnsuitable) == [("/file/train/eel", "no class folder 'eel' in train")]


def test_split_folders_beside_other_folders_are_refused(load: Load, make_zip: Zip, class_files: ClassFiles) -> None:
    files = {**class_files("val/", cat=3, dog=3), **class_files("valid/", cat=2, seed=1), **class_files(eel=2, seed=2)}
    messages = {message for _, message in refusal(load, make_zip(files), DatasetUnsuitable)}
    assert messages >= {
        "a folder beside the split folders", "more than one folder for validation", "no folder train",
    }  # fmt: skip


def test_few_corrupt_images_are_left_out_and_listed(load: Load, make_zip: Zip, class_files: ClassFiles) -> None:
    files = class_files(cat=100, dog=101)
    files["cat/5.png"] = files["cat/5.png"][:-30]  # its header is good, its pixels are not
    files["dog/7.png"] = b"no image"
    data = load(make_zip(files), "image_folder")
    assert sum(len(split) for split in data.splits.values()) == 199
    summary = data.summary()
    assert summary["unreadable"]["count"] == 2
    assert {name for name, _ in summary["unreadable"]["files"]} == {"cat/5.png", "dog/7.png"}
    assert any("2 image(s) could not be read" in warning for warning in data.warnings)


def test_many_corrupt_images_are_refused(load: Load, make_zip: Zip, class_files: ClassFiles) -> None:
    files = class_files(cat=50, dog=50)
    files["cat/5.png"] = files["cat/5.png"][:-30]
    files["dog/7.jpg"] = b"no image"
    faults = refusal(load, make_zip(files), DatasetUnreadable)
    assert faults[0] == ("/file", "2 of 101 images cannot be read")
    assert {pointer for pointer, _ in faults[1:]} == {"/file/cat~15.png", "/file/dog~17.jpg"}


def test_sixteen_bit_images_are_refused(load: Load, make_zip: Zip) -> None:
    buffer = io.BytesIO()
    Image.fromarray(np.full((4, 4), 40_000, dtype=np.uint16)).save(buffer, "PNG")
    faults = refusal(load, make_zip({"a/1.png": buffer.getvalue(), "b/1.png": buffer.getvalue()}), DatasetUnreadable)
    assert "not 8 bits per channel" in faults[1][1]


@pytest.mark.parametrize(("width", "height"), [(50_000, 50_000), (10_000, 10_000)])
def test_an_image_bomb_is_refused_by_its_header(
    load: Load, make_zip: Zip, class_files: ClassFiles, width: int, height: int
) -> None:
    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">L", len(data)) + name + data + struct.pack(">L", zlib.crc32(name + data))

    header = chunk(b"IHDR", struct.pack(">LLBBBBB", width, height, 8, 2, 0, 0, 0))
    bomb = b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    faults = refusal(load, make_zip({**class_files(cat=3, dog=3), "dog/bomb.png": bomb}), DatasetTooLarge)
    assert faults[0][0] == "/file/dog~1bomb.png"
    assert "pixels" in faults[0][1]


def test_more_than_memory_and_disk_is_refused_before_it_is_taken(
    load: Load, make_zip: Zip, class_files: ClassFiles
) -> None:
    room = Room(memory_bytes=1000, disk_bytes=1439)
    ((place, message),) = refusal(load, make_zip(class_files(cat=8, dog=8)), DatasetTooLarge, room=room)
    assert place == "/preprocess/size"
    assert message.startswith("16 images of 6×5×3 take 1440 bytes: more than the 1000 of memory")
    assert message.endswith("and 1440 on disk, of 1439")


def test_no_file_is_refused(load: Load) -> None:
    with pytest.raises(DatasetUnreadable):
        load(None, "image_folder")
