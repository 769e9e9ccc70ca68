"""Datasets below an operator's folders: files, folders packed as the client packs them, and no way out."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from billhook.archive import zip_folder
from store.settings import Settings
from tests.worker.conftest import record
from worker.sources import Fetched, fetch, files
from worker.sources.errors import SourceNotFound, SourceRefused, SourceTooLarge, Stopped

Fetch = Callable[..., Fetched]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "root"
    root.mkdir()
    return root


@pytest.fixture
def get(settings: Settings, root: Path, tmp_path: Path) -> Fetch:
    """get(path, format=…, **settings): what is fetched into `tmp_path / "got"`."""

    def get(path: Path | str, format: str = "image_folder", order: Any = lambda: None, **changes: Any) -> Fetched:
        allowed = settings.model_copy(update={"dataset_roots": (root,), **changes})
        return fetch(allowed, record(f"file://{path}", format=format), tmp_path / "got", order)

    return get


def images(folder: Path) -> Path:
    for name in ("train/cat/1.png", "train/cat/deep/2.png", "train/dog/ü 3.jpg", "test/cat/4.png", "test/dog/5.png"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(name.encode() * 1000)
    return folder


def test_a_file(get: Fetch, root: Path, tmp_path: Path) -> None:
    (root / "a b.npz").write_bytes(b"arrays")
    found = get(f"{root}/a%20b.npz", "npz")
    assert found == Fetched(hashlib.sha256(b"arrays").hexdigest(), 6, "a b.npz")
    assert (tmp_path / "got").read_bytes() == b"arrays"


@pytest.mark.parametrize("slash", ["", "/"])
def test_a_folder_is_packed_into_the_bytes_that_the_client_makes_of_it(
    get: Fetch, root: Path, tmp_path: Path, slash: str
) -> None:
    folder = images(root / "photos")
    (folder / ".hidden").write_bytes(b"x")
    (folder / "train" / "Thumbs.db").write_bytes(b"x")
    (folder / "__MACOSX").mkdir()
    (folder / "__MACOSX" / "1.png").write_bytes(b"x")
    theirs = zip_folder(folder, tmp_path / "theirs.zip")
    ours = get(f"{folder}{slash}")
    assert (ours.sha256, ours.bytes, ours.filename) == (theirs.sha256, theirs.size, "photos.zip")
    assert (tmp_path / "got").read_bytes() == (tmp_path / "theirs.zip").read_bytes()


def test_a_link_inside_the_root_is_followed_to_its_end(get: Fetch, root: Path) -> None:
    (root / "a.npz").write_bytes(b"arrays")
    (root / "latest.npz").symlink_to(root / "a.npz")
    assert get(root / "latest.npz", "npz").bytes == 6


def test_a_root_may_be_a_link(get: Fetch, root: Path, tmp_path: Path) -> None:
    (root / "a.npz").write_bytes(b"arrays")
    other = tmp_path / "other"
    other.symlink_to(root)
    assert get(other / "a.npz", "npz", dataset_roots=(other,)).bytes == 6


@pytest.mark.parametrize(
    "path",
    ["{root}/../secret.zip", "{root}/%2e%2e/secret.zip", "{root}x/secret.zip", "{root}/a/../../secret.zip",
     "/etc/passwd", "{root}"],
)  # fmt: skip
def test_a_path_outside_of_the_roots(get: Fetch, root: Path, tmp_path: Path, path: str) -> None:
    (tmp_path / "secret.zip").write_bytes(b"secret")
    (tmp_path / "rootx").mkdir()
    (tmp_path / "rootx" / "secret.zip").write_bytes(b"secret")
    with pytest.raises(SourceRefused) as caught:
        get(path.format(root=root))
    assert caught.value.faults[0].pointer == "/uri"


def test_no_root_is_allowed_by_default(get: Fetch, root: Path) -> None:
    (root / "a.zip").write_bytes(b"x")
    with pytest.raises(SourceRefused) as caught:
        get(root / "a.zip", dataset_roots=())
    assert "BILLHOOK_DATASET_ROOTS" in str(caught.value.faults[0].expected)


@pytest.mark.parametrize("there", [True, False])
def test_a_link_out_of_the_root(get: Fetch, root: Path, tmp_path: Path, there: bool) -> None:
    if there:
        (tmp_path / "secret.zip").write_bytes(b"secret")
        images(tmp_path / "outside")
    (root / "a.zip").symlink_to(tmp_path / "secret.zip")
    (root / "folder").symlink_to(tmp_path / "outside")
    messages = set()
    for path in (root / "a.zip", root / "folder", root / "folder" / "train"):
        with pytest.raises(SourceRefused, match="BILLHOOK_DATASET_ROOTS") as caught:
            get(path)
        messages.add(caught.value.message.replace(str(path), ""))
    assert len(messages) == 1, "whether something is there is not told"


def link_to_file(path: Path) -> None:
    path.symlink_to("/etc/passwd")


def link_to_folder(path: Path) -> None:
    path.symlink_to("/etc")


def link_inside(path: Path) -> None:
    path.symlink_to("1.png")


def pipe(path: Path) -> None:
    os.mkfifo(path)


@pytest.mark.parametrize("make", [link_to_file, link_to_folder, link_inside, pipe])
def test_a_folder_with_something_else_inside(get: Fetch, root: Path, make: Callable[[Path], None]) -> None:
    folder = images(root / "photos")
    make(folder / "train" / "cat" / "odd.png")
    with pytest.raises(SourceRefused, match=r"train/cat/odd\.png in .* is (a link|no plain file): only plain files"):
        get(folder)


def test_a_device_is_not_opened(get: Fetch) -> None:
    with pytest.raises(SourceRefused, match="/dev/zero is neither a file nor a folder"):
        get("/dev/zero", dataset_roots=(Path("/dev"),))


def test_a_pipe_is_not_waited_for(get: Fetch, root: Path) -> None:
    os.mkfifo(root / "a.zip")
    with pytest.raises(SourceRefused, match="neither a file nor a folder"):
        get(root / "a.zip")


def test_a_file_that_becomes_a_link_is_not_followed(
    get: Fetch, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = images(root / "photos")
    names = files._names

    def swap(*given: Any) -> list[str]:
        found = names(*given)
        (folder / "train" / "cat").rename(folder / "train" / "was")
        (folder / "train" / "cat").symlink_to(tmp_path)
        return found

    monkeypatch.setattr(files, "_names", swap)
    with pytest.raises(SourceRefused, match="cannot be opened"):
        get(folder)


def test_what_is_not_there(get: Fetch, root: Path) -> None:
    with pytest.raises(SourceNotFound, match=r"there is no file or folder .*/no\.zip"):
        get(root / "no.zip")


def test_a_folder_where_a_file_is_needed(get: Fetch, root: Path) -> None:
    images(root / "data.npz")
    with pytest.raises(SourceRefused, match="is a folder"):
        get(root / "data.npz", "npz")


def test_an_empty_folder(get: Fetch, root: Path) -> None:
    (root / "photos").mkdir()
    with pytest.raises(SourceRefused, match="is an empty folder"):
        get(root / "photos")


def test_too_large(get: Fetch, root: Path) -> None:
    folder = images(root / "photos")
    with pytest.raises(SourceTooLarge, match="BILLHOOK_MAX_UPLOAD_BYTES"):
        get(folder, max_upload_bytes=10_000)
    total = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    with pytest.raises(SourceTooLarge):  # the files are within it, the zip around them is not
        get(folder, max_upload_bytes=total + 10)
    (root / "a.zip").write_bytes(bytes(1000))
    with pytest.raises(SourceTooLarge):
        get(root / "a.zip", max_upload_bytes=999)


def test_folders_that_are_too_deep(get: Fetch, root: Path) -> None:
    folder = images(root / "photos")
    folder.joinpath(*["a"] * 70).mkdir(parents=True)
    with pytest.raises(SourceRefused, match="more than 64 deep"):
        get(folder)


def test_names_that_are_no_text(get: Fetch, root: Path) -> None:
    folder = images(root / "photos")
    (folder / "train" / "cat" / os.fsdecode(b"\xff.png")).write_bytes(b"x")
    with pytest.raises(SourceRefused, match="no UTF-8"):
        get(folder)


def test_packing_ends_when_it_is_not_wanted_any_more(get: Fetch, root: Path) -> None:
    folder = images(root / "photos")
    asked = []

    def ask() -> str | None:
        asked.append(1)
        return "lost" if len(asked) > 12 else None

    with pytest.raises(Stopped):
        get(folder, order=ask)
