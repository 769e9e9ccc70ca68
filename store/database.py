"""The engine and its transactions. The database is the truth; everything else can be made again from it.

SQLite runs in WAL mode: readers never wait, and a writer takes the write lock when its transaction begins (BEGIN
IMMEDIATE), so that two processes queue for it instead of failing when one upgrades from reading to writing.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, NullPool, create_engine, event, make_url
from sqlalchemy.orm import Session

from store import counters
from store.columns import to_json

BUSY_SECONDS = 60.0
_READ_ONLY = "billhook_read_only"
# a server that went away without a word (its machine died, the route is lost) would be waited for for a quarter of an
# hour and more, by whoever holds one of its connections
_LOST_ROUTE = {"tcp_user_timeout": 20_000, "keepalives_idle": 10, "keepalives_interval": 5, "keepalives_count": 2}


def connect(database_url: str, *, pool_size: int = 10) -> Engine:
    """An engine for `database_url`. Opens no connection yet; the folder of an SQLite file is made.

    `pool_size` bounds the connections of this process; a request for one more waits.
    """
    url = make_url(database_url)
    if url.get_backend_name() == "sqlite":
        if not url.database or url.database == ":memory:":
            raise ValueError(
                "SQLite in memory cannot be shared by processes; give a file: sqlite:////folder/billhook.db"
            )
        Path(url.database).parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        engine = create_engine(
            url, json_serializer=to_json, pool_size=pool_size, max_overflow=0, connect_args={"timeout": BUSY_SECONDS}
        )
        event.listen(engine, "connect", _open_sqlite)
        event.listen(engine, "begin", _begin_sqlite)
        return engine
    return create_engine(
        url,
        json_serializer=to_json,
        pool_size=pool_size,
        max_overflow=0,
        pool_pre_ping=True,  # a restarted server must not cost a request
        connect_args={"connect_timeout": 10, "options": "-c timezone=UTC"} | _LOST_ROUTE,
    )


def connect_briefly(database_url: str, seconds: int) -> Engine:
    """An engine for looking whether the database answers: each question has a connection of its own, so that none waits
    for those of the service, and none hangs much longer than `seconds` (2 or more)."""
    url = make_url(database_url)
    if url.get_backend_name() == "sqlite":
        engine = create_engine(url, poolclass=NullPool, connect_args={"timeout": seconds})
        event.listen(engine, "begin", _begin_sqlite)
        return engine
    return create_engine(
        url,
        poolclass=NullPool,
        connect_args={
            "connect_timeout": seconds,
            "tcp_user_timeout": seconds * 1_000,  # a network that swallows everything
            "keepalives_idle": seconds,
            "keepalives_interval": 1,
            "keepalives_count": seconds,
            "options": f"-c timezone=UTC -c statement_timeout={seconds * 1_000}",
        },
    )


def _open_sqlite(connection: sqlite3.Connection, _record: Any) -> None:
    connection.isolation_level = None  # the driver must not begin transactions of its own; _begin_sqlite does
    cursor = connection.cursor()
    cursor.execute(f"PRAGMA busy_timeout = {int(BUSY_SECONDS * 1000)}")
    _use_wal(cursor)
    cursor.execute("PRAGMA foreign_keys = ON")
    cursor.execute("PRAGMA synchronous = FULL")  # an answered 202 survives a power cut
    cursor.close()


def _use_wal(cursor: sqlite3.Cursor) -> None:
    """WAL is a property of the file: set once. Changing to it does not honour the busy timeout, hence the loop."""
    deadline = time.monotonic() + BUSY_SECONDS
    while True:
        try:
            if cursor.execute("PRAGMA journal_mode").fetchone()[0] != "wal":
                cursor.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > deadline:
                raise
            time.sleep(0.05)


def _begin_sqlite(connection: Connection) -> None:
    read_only = connection.get_execution_options().get(_READ_ONLY, False)
    connection.exec_driver_sql("BEGIN DEFERRED" if read_only else "BEGIN IMMEDIATE")


@contextmanager
def transaction(engine: Engine) -> Iterator[Session]:
    """A session that commits at the end, or rolls back if the block raises. For writing. What was counted in it
    (`store.counters`) is written last."""
    with Session(engine, expire_on_commit=False) as session, session.begin():
        yield session
        counters.write(session)


@contextmanager
def reading(engine: Engine) -> Iterator[Session]:
    """A session for reading only: on SQLite it takes no write lock. Nothing it changes is kept."""
    with Session(engine.execution_options(**{_READ_ONLY: True}), expire_on_commit=False) as session:
        yield session  # closing rolls back and detaches; a rollback of its own would expire what was read
