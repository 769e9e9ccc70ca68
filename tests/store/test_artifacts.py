"""Files by content; what nothing names is swept away."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import os
from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import Engine

from store import jobs, leases
from store.artifacts import ArtifactStore, hash_file
from store.columns import now_utc
from store.database import transaction
from store.errors import ArtifactCorrupt, ArtifactMissing, StorageUnavailable
from store.records import Dataset, Model
from store.sweep import GRACE, sweep
from store.uploads import create_model
from tests.store.conftest import OWNER, add_inputs

CONTENT = os.urandom(6_000_000)  # more than obstore's chunk: a multipart upload
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def artifacts(tmp_path: Path) -> ArtifactStore:
    return ArtifactStore(f"file://{tmp_path}/artifacts")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "file"
    path.write_bytes(CONTENT)
    return path


def stored(tmp_path: Path) -> Path:
    return tmp_path / "artifacts" / "sha256" / SHA256[:2] / SHA256


def test_what_goes_in_comes_out(artifacts: ArtifactStore, file: Path, tmp_path: Path) -> None:
    assert not artifacts.exists(SHA256)
    assert artifacts.put_file(file) == (SHA256, len(CONTENT)) == hash_file(file)
    assert artifacts.put_file(file) == (SHA256, len(CONTENT))
    assert artifacts.exists(SHA256)
    assert artifacts.get_file(SHA256, tmp_path / "out") == len(CONTENT)
    assert (tmp_path / "out").read_bytes() == CONTENT == artifacts.read_bytes(SHA256)
    assert [name for name, _ in artifacts.list_hashes()] == [SHA256]


@pytest.mark.parametrize(("start", "end"), [(0, 6_000_000), (0, 1), (5_999_999, 6_000_000), (100, 5_000_000), (7, 7)])
def test_ranges(artifacts: ArtifactStore, file: Path, start: int, end: int) -> None:
    artifacts.put_file(file)

    async def read() -> bytes:
        return b"".join([chunk async for chunk in artifacts.stream(SHA256, start, end)])

    assert asyncio.run(read()) == CONTENT[start:end]


def test_damage_is_noticed(artifacts: ArtifactStore, file: Path, tmp_path: Path) -> None:
    artifacts.put_file(file)
    stored(tmp_path).write_bytes(CONTENT[:-1] + b"?")
    for read in (lambda: artifacts.get_file(SHA256, tmp_path / "out"), lambda: artifacts.read_bytes(SHA256)):
        with pytest.raises(ArtifactCorrupt):
            read()
    assert not (tmp_path / "out").exists()
    assert {path.name for path in tmp_path.iterdir()} == {"artifacts", "file"}, "nothing half-written is left"


def test_an_object_of_the_wrong_size_is_written_again(artifacts: ArtifactStore, file: Path, tmp_path: Path) -> None:
    artifacts.put_file(file)
    stored(tmp_path).write_bytes(b"short")
    artifacts.put_file(file)
    assert artifacts.read_bytes(SHA256) == CONTENT


@pytest.mark.parametrize("name", ["0" * 64, "../../etc/passwd", "", "A" * 64, "0" * 63 + "\n"])
def test_what_is_not_there(artifacts: ArtifactStore, tmp_path: Path, name: str) -> None:
    with pytest.raises(ArtifactMissing) as caught:
        artifacts.get_file(name, tmp_path / "out")
    assert str(tmp_path) not in caught.value.message
    assert not artifacts.exists(name)
    artifacts.delete(name)


def test_a_storage_that_cannot_be_written(tmp_path: Path, file: Path) -> None:
    artifacts = ArtifactStore(f"file://{tmp_path}/artifacts")
    (tmp_path / "artifacts").rmdir()
    (tmp_path / "artifacts").write_text("not a folder")
    for call in (artifacts.ping, lambda: artifacts.put_file(file)):
        with pytest.raises(StorageUnavailable) as caught:
            call()
        assert str(tmp_path) not in caught.value.message


def _age(artifacts_folder: Path, sha256: str) -> None:
    then = (now_utc() - GRACE - timedelta(minutes=1)).timestamp()
    os.utime(artifacts_folder / "sha256" / sha256[:2] / sha256, (then, then))


@pytest.fixture
def three(artifacts: ArtifactStore, tmp_path: Path) -> list[str]:
    hashes = []
    for word in (b"one", b"two", b"three"):
        (tmp_path / "word").write_bytes(word)
        hashes.append(artifacts.put_file(tmp_path / "word")[0])
    return hashes


def test_only_what_is_old_and_unnamed_is_swept(
    engine: Engine, artifacts: ArtifactStore, tmp_path: Path, three: list[str]
) -> None:
    model, checkpoint, _ = three
    inputs = add_inputs(engine)
    with transaction(engine) as session:
        create_model(session, owner=OWNER, sha256=model, bytes=3, filename="m", format="onnx", options={})
        job = jobs.create_job(session, owner=OWNER, model_id=inputs[0], dataset_ids=[inputs[1]], recipe={})
        lease = leases.claim(session, job.id, "w", "cpu")
        assert lease is not None
        leases.add_artifact(session, lease, "c", "checkpoint", checkpoint, 3, "x/y")
    assert sweep(engine, artifacts) == 0, "all are young"
    for sha256 in three:
        _age(tmp_path / "artifacts", sha256)
    assert sweep(engine, artifacts) == 1
    assert [artifacts.exists(sha256) for sha256 in three] == [True, True, False]
    with transaction(engine) as session:
        leases.add_artifact(session, lease, "c", "checkpoint", "f" * 64, 3, "x/y")
    assert sweep(engine, artifacts) == 1, "a replaced checkpoint goes"
    assert not artifacts.exists(checkpoint)


def test_what_a_killed_process_stored_in_part_is_swept(
    engine: Engine, artifacts: ArtifactStore, file: Path, tmp_path: Path
) -> None:
    artifacts.put_file(file)
    old, young = (stored(tmp_path).with_name(f"{SHA256}#{number}") for number in (1, 2))
    for path in (old, young):
        path.write_bytes(b"the beg")
    past = (now_utc() - GRACE - timedelta(minutes=1)).timestamp()
    os.utime(old, (past, past))
    assert sweep(engine, artifacts) == 1
    assert (old.exists(), young.exists(), artifacts.exists(SHA256)) == (False, True, True)


def test_what_is_stored_survives_a_power_cut(
    artifacts: ArtifactStore, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[Path] = []

    def fsync(handle: int) -> None:
        assert stored(tmp_path).exists(), "under its name already"
        synced.append(Path(f"/proc/self/fd/{handle}").readlink())

    monkeypatch.setattr(os, "fsync", fsync)
    artifacts.put_file(file)
    assert synced == [stored(tmp_path), *list(stored(tmp_path).parents)[:3]]


def test_what_is_moved_into_the_storage_survives_a_power_cut(
    artifacts: ArtifactStore, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.utime(file, (1, 1))  # its last byte came long ago
    synced: list[Path] = []
    monkeypatch.setattr(os, "fsync", lambda handle: synced.append(Path(f"/proc/self/fd/{handle}").readlink()))
    inode = file.stat().st_ino
    artifacts.take_over(file, SHA256, len(CONTENT))
    assert synced == [file, *list(stored(tmp_path).parents)[:3]], "its bytes before its name"
    assert (stored(tmp_path).stat().st_ino, file.exists()) == (inode, False)
    written = artifacts.written(SHA256)
    assert written is not None
    assert now_utc() - written < timedelta(minutes=1), "or the sweep would take it at once"


def test_what_cannot_be_moved_is_copied(artifacts: ArtifactStore, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path, target: Path) -> None:
        raise OSError(errno.EXDEV, "another file system")

    monkeypatch.setattr(Path, "replace", refuse)
    artifacts.take_over(file, SHA256, len(CONTENT))
    assert artifacts.read_bytes(SHA256) == CONTENT == file.read_bytes()


def test_what_is_there_and_young_is_not_moved(artifacts: ArtifactStore, file: Path, tmp_path: Path) -> None:
    artifacts.put_file(file)
    inode = stored(tmp_path).stat().st_ino
    artifacts.take_over(file, SHA256, len(CONTENT))
    assert stored(tmp_path).stat().st_ino == inode
    _age(tmp_path / "artifacts", SHA256)
    artifacts.take_over(file, SHA256, len(CONTENT))
    assert stored(tmp_path).stat().st_ino != inode, "the sweep may be about to take the old one"


def test_storing_again_what_is_about_to_be_swept_keeps_it(
    engine: Engine, artifacts: ArtifactStore, tmp_path: Path, three: list[str]
) -> None:
    for sha256 in three:
        _age(tmp_path / "artifacts", sha256)
    (tmp_path / "word").write_bytes(b"two")
    artifacts.put_file(tmp_path / "word")
    assert sweep(engine, artifacts) == 2
    assert artifacts.exists(three[1])


def test_the_graph_of_a_model_and_the_sheet_of_a_dataset_are_kept(
    engine: Engine, artifacts: ArtifactStore, tmp_path: Path, three: list[str]
) -> None:
    for sha256 in three:
        _age(tmp_path / "artifacts", sha256)
    model_id, dataset_id = add_inputs(engine)
    with transaction(engine) as session:
        session.get_one(Model, model_id).graph_sha256 = three[0]
        session.get_one(Dataset, dataset_id).contact_sheet_sha256 = three[1]
    assert sweep(engine, artifacts) == 1
    assert artifacts.exists(three[0])
    assert artifacts.exists(three[1])
