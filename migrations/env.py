"""How Alembic reaches the database: by the connection it is handed, or by the service's settings."""

from __future__ import annotations

from alembic import context
from sqlalchemy import Connection, text

from store.database import connect
from store.records import Record
from store.settings import Settings

LOCK_SECONDS = 5
ADVISORY_LOCK = 0x62696C6C  # two servers that start at once migrate one after the other


def migrate(connection: Connection) -> None:
    """Run the migrations in one transaction; on PostgreSQL a lock that is not to be had soon is an error."""
    context.configure(
        connection=connection,
        target_metadata=Record.metadata,
        compare_type=True,
        compare_server_default=True,
        render_as_batch=connection.dialect.name == "sqlite",
        transactional_ddl=True,
    )
    with context.begin_transaction():
        if connection.dialect.name == "postgresql":
            connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": ADVISORY_LOCK})
            # waiting for a table lock holds up every query behind it: better to fail and try again
            connection.execute(text(f"SET LOCAL lock_timeout = '{LOCK_SECONDS}s'"))
        context.run_migrations()


def main() -> None:
    if context.is_offline_mode():
        raise SystemExit("migrations run against a database; printing SQL only is not supported")
    connection = context.config.attributes.get("connection")
    if connection is not None:
        migrate(connection)
        return
    engine = connect(Settings().database_url)
    with engine.begin() as connection:
        migrate(connection)
    engine.dispose()


main()
