"""A service's records and files in a folder of the test's own, with short leases and a fake child."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from store import migrate
from store.database import connect
from store.settings import Settings
from tests.worker.house import FAKE_CHILD, House
from worker.context import make_context


@pytest.fixture(scope="session")
def migrated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty database of the current schema."""
    path = tmp_path_factory.mktemp("database") / "billhook.db"
    engine = connect(f"sqlite:///{path}")
    migrate.upgrade(engine)
    engine.dispose()  # the last connection folds the write-ahead log into the file
    return path


@pytest.fixture
def settings(tmp_path: Path, migrated: Path) -> Settings:
    shutil.copy(migrated, tmp_path / "billhook.db")
    return Settings(
        _env_file=None, data_dir=tmp_path, lease_seconds=2, heartbeat_seconds=0.4, reaper_seconds=0.3,
        relay_seconds=0.1, cancel_grace_seconds=0.5, memory_limit_bytes=2**28, disk_limit_bytes=2**24,
    )  # fmt: skip


@pytest.fixture
def house(settings: Settings) -> Iterator[House]:
    context = make_context(settings, name="here:1", command=FAKE_CHILD)
    yield House(context)
    context.engine.dispose()
