"""The temporary files of uploads: room for all of them together, and what killed servers leave."""

from __future__ import annotations

import asyncio
import fcntl
import hashlib
import os
from collections import namedtuple
from pathlib import Path

import pytest

from api import spool as spool_module
from api.errors import Refused
from api.spool import Spool
from store.artifacts import ArtifactStore
from store.settings import Settings

Usage = namedtuple("Usage", "total used free")
FREE = 1_000_000


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(data_dir=tmp_path, min_free_bytes=100_000, max_upload_bytes=10 * FREE)


@pytest.fixture
def spool(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Spool:
    """On a disk where a megabyte is free."""
    monkeypatch.setattr("api.spool.shutil.disk_usage", lambda _: Usage(0, 0, FREE))
    return Spool(settings, ArtifactStore(settings.storage_url))


async def fits(spool: Spool, *announced: int) -> bool:
    """Whether uploads of so many bytes are let in, one while the others are there."""
    if not announced:
        return True
    try:
        async with spool.file(announced[0]):
            return await fits(spool, *announced[1:])
    except Refused as error:
        return error.code != "storage_full"


@pytest.mark.parametrize(
    ("moves", "announced", "fit"),
    [
        (True, (900_000,), True),  # moved into the storage: it is there once
        (True, (900_001,), False),
        (False, (450_000,), True),  # copied: it is there twice for a moment
        (False, (450_001,), False),
        (True, (500_000, 400_000), True),
        (True, (500_000, 400_001), False),
        (True, (900_000, 0), True),  # not announced
    ],
)
def test_there_is_room_for_all_of_them(spool: Spool, moves: bool, announced: tuple[int, ...], fit: bool) -> None:
    spool.__dict__["moves"] = moves
    assert asyncio.run(fits(spool, *announced)) is fit
    assert list(spool.settings.uploads_dir.iterdir()) == []


def test_a_folder_that_cannot_be_made(settings: Settings) -> None:
    settings.uploads_dir.write_text("no folder")
    spool = Spool(settings, ArtifactStore(settings.storage_url))

    async def upload() -> None:
        async with spool.file(1):
            pass

    with pytest.raises(Refused, match="could not be written"):
        asyncio.run(upload())


def test_a_storage_elsewhere_takes_no_room_here(
    settings: Settings, spool: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    elsewhere = Spool(settings, ArtifactStore("s3://bucket-1"))
    assert not elsewhere.moves
    assert asyncio.run(fits(elsewhere, 900_000))


def test_moving_is_tried(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    settings.uploads_dir.mkdir()
    assert Spool(settings, ArtifactStore(settings.storage_url)).moves
    assert list(settings.uploads_dir.iterdir()) == []

    def refuse(path: Path, target: Path) -> None:
        raise OSError("another mount")

    monkeypatch.setattr(Path, "replace", refuse)
    assert not Spool(settings, ArtifactStore(settings.storage_url)).moves
    assert list(settings.uploads_dir.iterdir()) == []
    assert list((settings.data_dir / "artifacts").iterdir()) == []


def test_an_upload_that_is_not_announced_ends_when_there_is_no_more_room(
    spool: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spool_module, "SPACE_BYTES", 100_000)
    left = FREE

    async def upload() -> None:
        nonlocal left
        async with spool.file(0) as file:
            while True:
                file.take(bytes(50_000))
                await file.flush()
                left -= 50_000

    monkeypatch.setattr("api.spool.shutil.disk_usage", lambda _: Usage(0, 0, left))
    monkeypatch.setattr(spool_module, "BATCH_BYTES", 50_000)
    monkeypatch.setattr(spool_module, "SMALLEST_BATCH_BYTES", 50_000)
    with pytest.raises(Refused, match="not enough free space"):
        asyncio.run(upload())
    assert list(spool.settings.uploads_dir.iterdir()) == []


@pytest.mark.parametrize("sizes", [[1] * 3_000, [100_000, 1, 100_000, 5, 7] * 30, [3 * 2**20 + 1], []])
def test_pieces_of_any_size(settings: Settings, sizes: list[int]) -> None:
    spool = Spool(settings, ArtifactStore(settings.storage_url))
    content = os.urandom(sum(sizes))

    async def upload() -> tuple[str, bytes]:
        start = 0
        async with spool.file(len(content)) as file:
            for size in sizes:
                file.take(memoryview(content)[start : start + size])
                await file.flush()
                start += size
            return await file.finish(), file.path.read_bytes()

    assert asyncio.run(upload()) == (hashlib.sha256(content).hexdigest(), content)


def test_an_upload_that_is_cancelled_leaves_nothing(settings: Settings) -> None:
    spool = Spool(settings, ArtifactStore(settings.storage_url))

    async def upload(begun: asyncio.Event) -> None:
        async with spool.file(0) as file:
            for _ in range(5):
                file.take(bytes(2**20))
                await file.flush()
            begun.set()
            await asyncio.sleep(60)

    async def cancel() -> None:
        begun = asyncio.Event()
        task = asyncio.create_task(upload(begun))
        await begun.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(cancel())
    assert list(settings.uploads_dir.iterdir()) == []


def test_what_a_killed_server_left_is_told_from_what_another_one_receives(settings: Settings) -> None:
    spool = Spool(settings, ArtifactStore(settings.storage_url))
    assert spool.remove_abandoned() == 0, "the folder is not there yet"
    settings.uploads_dir.mkdir()
    left = settings.uploads_dir / "upload-left"
    left.write_bytes(b"the beginning")

    async def upload() -> None:
        async with spool.file(10) as file:
            assert Spool(settings, ArtifactStore(settings.storage_url)).remove_abandoned() == 1
            assert [path.name for path in settings.uploads_dir.iterdir()] == [file.path.name]

    asyncio.run(upload())
    assert list(settings.uploads_dir.iterdir()) == []


def test_a_file_that_is_taken_for_abandoned_as_it_is_made_is_made_again(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    spool = Spool(settings, ArtifactStore(settings.storage_url))
    lock, swept = fcntl.flock, list[str]()

    def sweep_first(handle: int, how: int) -> None:
        if not swept:
            (path,) = settings.uploads_dir.iterdir()
            path.unlink()
            swept.append(path.name)
        lock(handle, how)

    async def upload() -> bool:
        async with spool.file(10) as file:
            return file.path.exists() and file.path.name not in swept

    monkeypatch.setattr(fcntl, "flock", sweep_first)
    assert asyncio.run(upload())
    assert swept
