"""Migrations beside other servers, versions and whoever holds the tables; what is said where the schema is another."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from sqlalchemy import Engine, text

from store import database, migrate
from store.database import connect
from store.errors import MigrationBlocked, SchemaMismatch
from store.migrate import Patience

ROOT = Path(__file__).parent.parent.parent
IMPATIENT = Patience(turn=1.0, table=0.3, pauses=(0.1, 0.1))
ADVISORY_LOCK = 0x62696C6C


def revision(engine: Engine) -> str:
    with engine.begin() as connection:
        return str(connection.execute(text("SELECT version_num FROM alembic_version")).scalar_one())


def test_servers_that_start_at_once_migrate_once(fresh: Engine) -> None:
    failures: list[str] = []

    def run() -> None:
        command = "import sys; from store import database, migrate; migrate.upgrade(database.connect(sys.argv[1]))"
        url = fresh.url.render_as_string(hide_password=False)
        done = subprocess.run([sys.executable, "-c", command, url], cwd=ROOT, capture_output=True, text=True)
        if done.returncode:
            failures.append(done.stderr)

    threads = [threading.Thread(target=run) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures, failures
    migrate.check(fresh)
    migrate.require_current(fresh)


def test_a_table_that_somebody_holds_is_an_error_in_bounded_time_and_nothing_is_changed(fresh_postgres: Engine) -> None:
    """Not waited for: every query would queue up behind the migration that waits."""
    migrate.upgrade(fresh_postgres, "0001")
    with fresh_postgres.connect() as other, other.begin():
        other.execute(text("LOCK TABLE datasets IN ACCESS SHARE MODE"))  # as a long report or a dump does
        began = time.monotonic()
        with pytest.raises(MigrationBlocked, match="something else holds its tables") as blocked:
            migrate.upgrade(fresh_postgres, patience=IMPATIENT)
        assert time.monotonic() - began < 10
        assert "Nothing was changed" in blocked.value.message
        assert revision(fresh_postgres) == "0001"
        columns = "SELECT count(*) FROM information_schema.columns WHERE column_name = 'graph_sha256'"
        assert other.execute(text(columns)).scalar() == 0, "0002, which met no lock, is undone with the rest"
    migrate.upgrade(fresh_postgres, patience=IMPATIENT)
    migrate.check(fresh_postgres)


def test_a_migration_is_tried_again_until_the_table_is_free(fresh_postgres: Engine) -> None:
    migrate.upgrade(fresh_postgres, "0001")
    with fresh_postgres.connect() as other:
        other.execute(text("LOCK TABLE datasets IN ACCESS SHARE MODE"))
        release = threading.Timer(0.5, other.rollback)
        release.start()
        migrate.upgrade(fresh_postgres, patience=Patience(turn=20, table=0.2, pauses=(0.2,) * 20))
        release.join()
    migrate.check(fresh_postgres)


def test_another_server_that_migrates_for_too_long_is_not_waited_for(fresh_postgres: Engine) -> None:
    with fresh_postgres.connect() as other, other.begin():
        other.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": ADVISORY_LOCK})
        began = time.monotonic()
        with pytest.raises(MigrationBlocked):
            migrate.upgrade(fresh_postgres, patience=IMPATIENT)
        assert 1 <= time.monotonic() - began < 10
    migrate.upgrade(fresh_postgres, patience=IMPATIENT)
    with fresh_postgres.connect() as other, other.begin():
        other.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": ADVISORY_LOCK})
        migrate.upgrade(fresh_postgres, patience=IMPATIENT)  # there is nothing to do, and nothing to wait for


def test_a_migration_has_limits_of_its_own(fresh_postgres: Engine) -> None:
    """A role's limit on statements is for queries; it would end a migration in the middle, at every start."""
    with fresh_postgres.begin() as connection:
        name = connection.execute(text("SELECT current_database()")).scalar()
        connection.execute(text(f"ALTER DATABASE {name} SET statement_timeout = '20ms'"))
    fresh_postgres.dispose()
    migrate.upgrade(fresh_postgres)
    with fresh_postgres.begin() as connection:
        assert connection.execute(text("SHOW statement_timeout")).scalar() == "20ms", "and afterwards it holds again"


def test_a_file_that_somebody_writes_to_is_an_error_in_bounded_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database, "BUSY_SECONDS", 0.5)
    first, second = connect(f"sqlite:///{tmp_path}/a.db"), connect(f"sqlite:///{tmp_path}/a.db")
    migrate.upgrade(first, "0001")
    with first.begin():
        began = time.monotonic()
        with pytest.raises(MigrationBlocked, match="database is locked"):
            migrate.upgrade(second, patience=Patience(turn=0.5, pauses=(0.1,) * 50))
        assert time.monotonic() - began < 5
    assert revision(second) == "0001"
    migrate.upgrade(second)
    first.dispose()
    second.dispose()


def set_revision(engine: Engine, value: str) -> None:
    with engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = :value"), {"value": value})


def test_a_newer_schema_is_said_to_be_newer(fresh: Engine) -> None:
    migrate.upgrade(fresh)
    set_revision(fresh, "9999")
    assert migrate.state(fresh) == "ahead"
    for action in (
        lambda: migrate.upgrade(fresh),
        lambda: migrate.downgrade(fresh, "base"),
        lambda: migrate.require_current(fresh),
        lambda: migrate.wait_until_current(fresh, threading.Event(), seconds=30),
    ):
        began = time.monotonic()
        with pytest.raises(SchemaMismatch, match=r"\(revision 9999\) is newer"):
            action()
        assert time.monotonic() - began < 5, "waiting would not help"


def test_an_older_schema_is_waited_for(fresh: Engine) -> None:
    assert migrate.state(fresh) == "behind"
    with pytest.raises(SchemaMismatch, match=r"\(revision none\) is older"):
        migrate.require_current(fresh)
    migrate.upgrade(fresh, "0002")
    with pytest.raises(SchemaMismatch, match=r"\(revision 0002\) is older"):
        migrate.wait_until_current(fresh, threading.Event(), seconds=0.2, look_seconds=0.05)
    later = threading.Timer(0.3, lambda: migrate.upgrade(fresh))
    later.start()
    assert migrate.wait_until_current(fresh, threading.Event(), seconds=30, look_seconds=0.05)
    later.join()
    stopping = threading.Event()
    stopping.set()
    assert not migrate.wait_until_current(fresh, stopping), "told to stop meanwhile"
