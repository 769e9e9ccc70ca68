from __future__ import annotations

import os
import re
import zipfile
from pathlib import Path

import pytest

from billhook.archive import local_file, zip_folder
from billhook.errors import InputInvalid


def images(folder: Path, names: list[str]) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(name.encode() * 100)
    return folder


NAMES = ["cat/1.png", "cat/2.JPG", "dog/1.png", "dog/ä b.jpeg"]


def test_the_same_images_are_the_same_bytes(tmp_path: Path) -> None:
    first = zip_folder(images(tmp_path / "a", NAMES), tmp_path / "a.zip")
    other = images(tmp_path / "b", NAMES[::-1])
    for path in other.rglob("*"):
        os.utime(path, (1, 1))
        path.chmod(0o700)
    second = zip_folder(other, tmp_path / "b.zip")
    assert first.sha256 == second.sha256 == local_file(tmp_path / "a.zip").sha256
    assert first.size == (tmp_path / "a.zip").stat().st_size
    with zipfile.ZipFile(tmp_path / "a.zip") as archive:
        assert archive.namelist() == sorted(NAMES)
        assert archive.read("cat/1.png") == b"cat/1.png" * 100
        assert archive.testzip() is None


def test_the_hash_is_that_of_other_machines_too(tmp_path: Path) -> None:
    """A number written down: another Python or system that made other bytes would upload everything anew."""
    zipped = zip_folder(images(tmp_path / "a", NAMES), tmp_path / "a.zip")
    assert zipped.sha256 == "7a8f2c0c254cbc126adc84eb1ef1ecd9074c3181d13e853ef8ed219a1edb55dd"


def test_another_name_or_content_is_another_hash(tmp_path: Path) -> None:
    hashes = {zip_folder(images(tmp_path / "a", NAMES), tmp_path / "1.zip").sha256}
    (tmp_path / "a" / "cat/1.png").write_bytes(b"other")
    hashes.add(zip_folder(tmp_path / "a", tmp_path / "2.zip").sha256)
    (tmp_path / "a" / "cat/1.png").rename(tmp_path / "a" / "cat/3.png")
    hashes.add(zip_folder(tmp_path / "a", tmp_path / "3.zip").sha256)
    assert len(hashes) == 3


def test_only_litter_is_left_out(tmp_path: Path) -> None:
    litter = [".DS_Store", "__MACOSX/cat/1.png", ".hidden/1.png", "cat/._1.png", "dog/Thumbs.db"]
    folder = images(tmp_path / "a", [*NAMES, "labels.csv", *litter])
    zip_folder(folder, tmp_path / "a.zip")
    with zipfile.ZipFile(tmp_path / "a.zip") as archive:
        assert archive.namelist() == sorted([*NAMES, "labels.csv"])


def test_classes_without_images_are_named_as_they_are_here(tmp_path: Path) -> None:
    folder = images(tmp_path / "a", [f"train/{name}" for name in [*NAMES, "fox/notes.txt", "gnu/.DS_Store"]])
    (folder / "train" / "emu").mkdir()
    empty = ", ".join(str(folder / "train" / name) for name in ("emu", "fox", "gnu"))
    with pytest.raises(InputInvalid, match=f"^there are no images in {re.escape(empty)}: every folder in"):
        zip_folder(folder, tmp_path / "a.zip")
    assert not (tmp_path / "a.zip").exists()


def test_links_are_followed_but_not_round_in_a_circle(tmp_path: Path) -> None:
    folder = images(tmp_path / "a", ["cat/1.png"])
    elsewhere = images(tmp_path / "elsewhere", ["1.png"])
    (folder / "dog").symlink_to(elsewhere)
    zip_folder(folder, tmp_path / "a.zip")
    with zipfile.ZipFile(tmp_path / "a.zip") as archive:
        assert archive.namelist() == ["cat/1.png", "dog/1.png"]
    (folder / "cat" / "round").symlink_to(folder)
    with pytest.raises(InputInvalid, match="link to a folder above it"):
        zip_folder(folder, tmp_path / "b.zip")


def test_a_folder_without_images_says_what_was_expected(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputInvalid, match="one folder per class"):
        zip_folder(tmp_path / "empty", tmp_path / "a.zip")


def test_what_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(InputInvalid, match="there is no file"):
        local_file(tmp_path / "nowhere")
    with pytest.raises(InputInvalid, match="is a folder"):
        local_file(tmp_path)
