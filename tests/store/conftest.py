"""A migrated, empty database for each test: SQLite, and the real PostgreSQL where there is one."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from sqlalchemy import Engine, create_engine, make_url, text
from sqlalchemy.exc import OperationalError

from store.database import connect, transaction
from store.migrate import upgrade
from store.records import Dataset, Model, Record
from store.uploads import create_dataset, create_model

POSTGRES = os.environ.get("BILLHOOK_TEST_POSTGRES", "postgresql+psycopg://root@127.0.0.1/postgres")
NOW = datetime(2026, 1, 1, tzinfo=UTC)
OWNER = "ann"


@pytest.fixture(scope="session")
def postgres_url() -> Iterator[str]:
    """A database of its own on the PostgreSQL server, dropped at the end."""
    admin = create_engine(POSTGRES, isolation_level="AUTOCOMMIT", connect_args={"connect_timeout": 3})
    name = f"billhook_test_{secrets.token_hex(4)}"
    try:
        with admin.connect() as connection:
            connection.execute(text(f"CREATE DATABASE {name}"))
    except OperationalError as error:
        admin.dispose()
        reason = f"no PostgreSQL to be had (BILLHOOK_TEST_POSTGRES): {str(error.orig).splitlines()[0]}"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    try:
        yield make_url(POSTGRES).set(database=name).render_as_string(hide_password=False)
    finally:
        with admin.connect() as connection:
            connection.execute(text(f"DROP DATABASE {name} WITH (FORCE)"))
        admin.dispose()


@pytest.fixture(scope="session")
def postgres(postgres_url: str) -> Iterator[Engine]:
    engine = connect(postgres_url, pool_size=20)
    upgrade(engine)
    yield engine
    engine.dispose()


@pytest.fixture(scope="session")
def sqlite_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A migrated SQLite file to copy."""
    path = tmp_path_factory.mktemp("template") / "billhook.db"
    engine = connect(f"sqlite:///{path}")
    upgrade(engine)
    engine.dispose()
    return path


def empty(engine: Engine) -> None:
    """Remove every record."""
    with transaction(engine) as session:
        for table in reversed(Record.metadata.sorted_tables):
            session.execute(table.delete())


@pytest.fixture(params=["sqlite", "postgresql"])
def engine(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Engine]:
    if request.param == "postgresql":
        shared: Engine = request.getfixturevalue("postgres")
        empty(shared)
        yield shared
        return
    template: Path = request.getfixturevalue("sqlite_template")
    path = tmp_path / "billhook.db"
    shutil.copy(template, path)
    engine = connect(f"sqlite:///{path}", pool_size=20)
    yield engine
    engine.dispose()


@pytest.fixture
def fresh_postgres(postgres_url: str) -> Iterator[Engine]:
    """A PostgreSQL database without a schema."""
    name = f"{make_url(postgres_url).database}_fresh"
    admin = connect(POSTGRES).execution_options(isolation_level="AUTOCOMMIT")
    with admin.connect() as connection:
        connection.execute(text(f"CREATE DATABASE {name}"))
    engine = connect(make_url(postgres_url).set(database=name).render_as_string(hide_password=False))
    try:
        yield engine
    finally:
        engine.dispose()
        with admin.connect() as connection:
            connection.execute(text(f"DROP DATABASE {name} WITH (FORCE)"))
        admin.dispose()


@pytest.fixture(params=["sqlite", "postgresql"])
def fresh(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Engine]:
    """A database without a schema."""
    if request.param == "postgresql":
        yield request.getfixturevalue("fresh_postgres")
        return
    engine = connect(f"sqlite:///{tmp_path}/new folder %/billhook.db")
    yield engine
    engine.dispose()


@pytest.fixture
def inputs(engine: Engine) -> tuple[str, str]:
    """Ids of a model and a dataset."""
    return add_inputs(engine)


def add_inputs(engine: Engine) -> tuple[str, str]:
    with transaction(engine) as session:
        model: Model = create_model(
            session, owner=OWNER, sha256="a" * 64, bytes=7, filename="m.onnx", format="onnx", options={}, now=NOW
        )[0]
        dataset: Dataset = create_dataset(
            session, owner=OWNER, sha256=None, bytes=0, filename="digits", format="digits", options={},
            uri="builtin:digits", now=NOW,
        )[0]  # fmt: skip
        return model.id, dataset.id
