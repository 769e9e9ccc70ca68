"""Migrations, transactions, and several processes on one SQLite file."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest
from sqlalchemy import Engine, inspect, make_url, select, text
from sqlalchemy.exc import IntegrityError, OperationalError, StatementError

from store import migrate
from store.columns import storable
from store.database import connect, ping, reading, transaction
from store.ids import new_id
from store.keys import SCOPES, add_key, authenticate, new_secret
from store.records import ApiKey, Dataset, Event, Job, Model, Record
from store.uploads import create_model
from tests.store.conftest import NOW, OWNER, POSTGRES

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(params=["sqlite", "postgresql"])
def fresh(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Engine]:
    """A database without a schema."""
    if request.param == "sqlite":
        engine = connect(f"sqlite:///{tmp_path}/new folder %/billhook.db")
        yield engine
        engine.dispose()
        return
    url: str = request.getfixturevalue("postgres_url")
    name = f"{make_url(url).database}_fresh"
    admin = connect(POSTGRES).execution_options(isolation_level="AUTOCOMMIT")
    with admin.connect() as connection:
        connection.execute(text(f"CREATE DATABASE {name}"))
    engine = connect(make_url(url).set(database=name).render_as_string(hide_password=False))
    try:
        yield engine
    finally:
        engine.dispose()
        with admin.connect() as connection:
            connection.execute(text(f"DROP DATABASE {name} WITH (FORCE)"))
        admin.dispose()


def tables(engine: Engine) -> set[str]:
    return set(inspect(engine).get_table_names()) - {"alembic_version"}


def test_migrations_go_up_and_down_and_match_the_records(fresh: Engine) -> None:
    migrate.upgrade(fresh)
    migrate.check(fresh)
    assert tables(fresh) == set(Record.metadata.tables)
    migrate.upgrade(fresh)  # again: nothing to do
    migrate.downgrade(fresh, "base")
    assert tables(fresh) == set()
    migrate.upgrade(fresh)
    migrate.check(fresh)


def test_uploads_from_before_graphs_and_contact_sheets_stay(fresh: Engine) -> None:
    migrate.upgrade(fresh, "0001")
    with fresh.begin() as connection:
        connection.execute(text(
            "INSERT INTO models "
            "(id, owner, filename, format, options, identity, bytes, state, created_at, check_count) VALUES "
            "('mdl_1', 'ann', 'm.onnx', 'onnx', '{}', 'x', 7, 'ready', '2026-01-01 00:00:00', 1)"
        ))  # fmt: skip
        connection.execute(text(
            "INSERT INTO datasets "
            "(id, owner, filename, format, options, identity, bytes, state, created_at, check_count, uri) VALUES "
            "('ds_1', 'ann', 'd.npz', 'npz', '{}', 'x', 7, 'ready', '2026-01-01 00:00:00', 1, 'upload')"
        ))  # fmt: skip
    migrate.upgrade(fresh)
    with reading(fresh) as session:
        model = session.get_one(Model, "mdl_1")
        assert (model.state, model.graph_sha256, model.graph_bytes) == ("ready", None, None)
        dataset = session.get_one(Dataset, "ds_1")
        assert (dataset.state, dataset.contact_sheet_sha256, dataset.contact_sheet_bytes) == ("ready", None, None)


def test_datasets_from_before_they_were_fetched_stay(fresh: Engine) -> None:
    migrate.upgrade(fresh, "0002")
    with fresh.begin() as connection:
        connection.execute(text(
            "INSERT INTO datasets "
            "(id, owner, filename, format, options, identity, bytes, state, created_at, check_count, uri) VALUES "
            "('ds_1', 'ann', 'd.npz', 'npz', '{}', 'x', 7, 'ready', '2026-01-01 00:00:00', 1, 'upload')"
        ))  # fmt: skip
    migrate.upgrade(fresh)
    with reading(fresh) as session:
        dataset = session.get_one(Dataset, "ds_1")
        assert (dataset.state, dataset.uri, dataset.pinned_sha256) == ("ready", "upload", None)
    with fresh.begin() as connection:
        connection.execute(text("UPDATE datasets SET uri = :uri"), {"uri": "https://a.com/" + "x" * 2000})
    migrate.check(fresh)


def test_two_servers_that_start_at_once_migrate_once(fresh: Engine) -> None:
    failures: list[BaseException] = []
    lock = threading.Lock()

    def run() -> None:
        command = "import sys; from store import database, migrate; migrate.upgrade(database.connect(sys.argv[1]))"
        url = fresh.url.render_as_string(hide_password=False)
        done = subprocess.run([sys.executable, "-c", command, url], cwd=ROOT, capture_output=True, text=True)
        if done.returncode:
            with lock:
                failures.append(RuntimeError(done.stderr))

    threads = [threading.Thread(target=run) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures, failures
    migrate.check(fresh)


def test_a_migration_does_not_wait_for_a_lock_for_long(postgres_url: str) -> None:
    """Somebody holds a table: the migration gives up, instead of holding up every query behind it."""
    engine = connect(postgres_url)
    migrate.upgrade(engine)
    with engine.connect() as other, other.begin():
        other.execute(text("LOCK TABLE jobs IN ACCESS SHARE MODE"))
        with pytest.raises(OperationalError, match="lock timeout"):
            migrate.downgrade(engine, "base")
    migrate.check(engine)
    engine.dispose()


HAMMER = """
import sys
from store import events
from store.database import connect, reading, transaction
engine = connect(sys.argv[1])
for turn in range(60):
    with reading(engine) as session:
        events.page(session, sys.argv[2])
    with transaction(engine) as session:
        events.page(session, sys.argv[2])          # reads first, then writes: the upgrade that locks a plain BEGIN
        events.append(session, sys.argv[2], None, [("x", {})])
"""


def test_processes_share_an_sqlite_file_without_locking_each_other_out(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/billhook.db"
    engine = connect(url)
    migrate.upgrade(engine)
    with transaction(engine) as session:
        job = Job(id=new_id("job"), owner="o", name="", kind="", tags=[], model_id="", dataset_ids=[], recipe={},
                  requirements={}, device="cpu", queue="cpu", run_seconds_limit=1, created_at=NOW)  # fmt: skip
        session.add(job)
    running = [
        subprocess.Popen([sys.executable, "-c", HAMMER, url, job.id], cwd=ROOT, stderr=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    for process in running:
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 0, errors
    with reading(engine) as session:
        numbers = session.scalars(select(Event.seq).order_by(Event.seq)).all()
        assert numbers == list(range(1, 181))
    engine.dispose()


def test_sqlite_is_set_up_as_meant(tmp_path: Path) -> None:
    engine = connect(f"sqlite:///{tmp_path}/billhook.db")
    with engine.connect() as connection:
        values = {name: connection.execute(text(f"PRAGMA {name}")).scalar() for name in
                  ("journal_mode", "foreign_keys", "busy_timeout", "synchronous")}  # fmt: skip
    assert values == {"journal_mode": "wal", "foreign_keys": 1, "busy_timeout": 60_000, "synchronous": 2}
    engine.dispose()


def test_sqlite_in_memory_is_refused() -> None:
    for url in ("sqlite://", "sqlite:///:memory:"):
        with pytest.raises(ValueError, match="cannot be shared"):
            connect(url)


def test_what_fails_is_rolled_back_and_what_is_read_is_not_kept(engine: Engine) -> None:
    key = ApiKey(id="k", owner="o", name="n", sha256="s", scopes=[], created_at=NOW)
    with transaction(engine) as session:
        session.add(key)
    with pytest.raises(IntegrityError), transaction(engine) as session:  # noqa: PT012  # the first is undone too
        create_model(session, owner=OWNER, sha256="a" * 64, bytes=1, filename="m", format="onnx", options={})
        session.add(ApiKey(id="k", owner="o", name="n", sha256="other", scopes=[], created_at=NOW))
    with reading(engine) as session:
        assert session.scalars(select(Model)).all() == []
        session.add(ApiKey(id="k2", owner="o", name="n", sha256="s2", scopes=[], created_at=NOW))
        session.flush()
    with reading(engine) as session:
        assert session.scalars(select(ApiKey.id)).all() == ["k"]
    ping(engine)


def test_a_foreign_key_holds(engine: Engine) -> None:
    with pytest.raises(IntegrityError), transaction(engine) as session:
        session.add(Event(job_id="job_x", seq=1, attempt=None, name="n", body={}, created_at=NOW))


def test_times_are_aware_and_in_utc(engine: Engine) -> None:
    east = datetime(2026, 1, 1, 5, 30, tzinfo=timezone(timedelta(hours=5, minutes=30)))
    with transaction(engine) as session:
        session.add(ApiKey(id="k", owner="o", name="n", sha256="s", scopes=[], created_at=east))
    with reading(engine) as session:
        (key,) = session.scalars(select(ApiKey))
        assert key.created_at == NOW
        assert key.created_at.tzinfo is UTC
    naive = datetime(2026, 1, 1)
    with pytest.raises(StatementError, match="time zone"), transaction(engine) as session:
        session.add(ApiKey(id="k2", owner="o", name="n", sha256="s2", scopes=[], created_at=naive))


def test_nan_is_refused_by_json_columns(engine: Engine) -> None:
    with pytest.raises((StatementError, ValueError), match="not JSON compliant"), transaction(engine) as session:
        session.add(ApiKey(id="k", owner="o", name="n", sha256="s", scopes=[float("nan")], created_at=NOW))  # type: ignore[list-item]
    assert storable({"x": float("nan")}) == {"x": {"$float": "nan"}}


def test_ids_sort_by_time() -> None:
    ids = [new_id("job") for _ in range(200)]
    assert len(set(ids)) == 200
    assert all(len(item) == 30 and item.startswith("job_") for item in ids)
    early = new_id("job")
    threading.Event().wait(0.001)
    assert early < new_id("job")


def test_keys(engine: Engine) -> None:
    secret, other = new_secret(), new_secret()
    assert secret.startswith("bh_")
    with transaction(engine) as session:
        key = add_key(session, secret, owner="ann", name="laptop", now=NOW)
        assert add_key(session, secret, owner="bob", name="again").id == key.id
        assert secret not in repr(key)
        with pytest.raises(ValueError, match="unknown scopes"):
            add_key(session, other, owner="ann", name="x", scopes=["admin"])
        add_key(session, other, owner="ann", name="x", scopes=["read"], expires_at=NOW + timedelta(seconds=10))
    with transaction(engine) as session:
        principal = authenticate(session, secret, NOW)
        assert principal is not None
        assert (principal.owner, principal.key_id, principal.scopes) == ("ann", key.id, frozenset(SCOPES))
        reader = authenticate(session, other, NOW)
        assert reader is not None
        assert reader.scopes == {"read"}
        assert authenticate(session, other, NOW + timedelta(seconds=10)) is None, "expired"
        assert authenticate(session, secret + "x", NOW) is None
        assert authenticate(session, "\ud800", NOW) is None
        session.get_one(ApiKey, key.id).revoked_at = NOW
        session.flush()
        assert authenticate(session, secret, NOW) is None, "revoked"
