"""Migrations, transactions, and several processes on one SQLite file."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest
from sqlalchemy import Engine, inspect, select, text
from sqlalchemy.exc import IntegrityError, StatementError

from store import idempotency, migrate
from store.columns import storable
from store.database import connect, reading, transaction
from store.idempotency import Kept, Slot
from store.ids import new_id
from store.records import ApiKey, Dataset, Event, Job, Model, Record
from store.uploads import create_model
from tests.store.conftest import NOW, OWNER

ROOT = Path(__file__).parent.parent.parent


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


def test_answers_from_before_keys_were_reserved_stay(fresh: Engine) -> None:
    migrate.upgrade(fresh, "0004")
    with fresh.begin() as connection:
        connection.execute(text(
            "INSERT INTO idempotency_keys "
            "(owner, route, key, request_sha256, status, headers, body, created_at) VALUES "
            "('ann', 'POST /v1/jobs', 'k', '1', 202, '{\"a\": \"b\"}', '{\"id\": \"job_1\"}', '2026-01-01 00:00:00')"
        ))  # fmt: skip

    def kept() -> Kept:
        with transaction(fresh) as session:
            found = idempotency.reserve(session, Slot("ann", "POST /v1/jobs", "k"), "1", NOW)
            assert isinstance(found, Kept)
            return found

    migrate.upgrade(fresh)
    assert json.loads(kept().answer.body) == {"id": "job_1"}
    assert (kept().answer.status, kept().answer.headers) == (202, {"a": "b"})
    with transaction(fresh) as session:
        idempotency.reserve(session, Slot("ann", "POST /v1/jobs", "in flight"), "1", NOW)
    migrate.downgrade(fresh, "0004")
    migrate.upgrade(fresh)
    assert json.loads(kept().answer.body) == {"id": "job_1"}


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


def test_a_postgresql_that_went_away_without_a_word_is_not_waited_for_for_long(postgres: Engine) -> None:
    with postgres.connect() as connection:
        driver = connection.connection.driver_connection
        assert driver is not None
        parameters = driver.info.get_parameters()
    assert 0 < int(parameters["tcp_user_timeout"]) <= 30_000, "a worker's lease"
    assert 0 < sum(int(parameters[f"keepalives_{name}"]) for name in ("idle", "interval", "count")) <= 30


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
    with reading(engine) as session:
        assert migrate.revision_of(session) == migrate.revisions()[0]


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
