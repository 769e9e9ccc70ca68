"""How Alembic reaches the database: by the connection it is handed, or by the service's settings."""

from __future__ import annotations

from alembic import context
from sqlalchemy import Connection, text

from store.database import connect
from store.migrate import Patience
from store.records import Record
from store.settings import Settings

ADVISORY_LOCK = 0x62696C6C  # two servers that start at once migrate one after the other
STATEMENT_SECONDS = 900  # an index over many events takes minutes; a role's own limit may be seconds
IDLE_SECONDS = 60  # a server that was stopped in the middle gives its locks back


def migrate(connection: Connection, patience: Patience) -> None:
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
            _limit(connection, "lock_timeout", patience.turn)
            connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": ADVISORY_LOCK})
            # waiting for a table lock holds up every query behind it: better to fail and try again
            _limit(connection, "lock_timeout", patience.table)
            _limit(connection, "statement_timeout", STATEMENT_SECONDS)
            _limit(connection, "idle_in_transaction_session_timeout", IDLE_SECONDS)
        context.run_migrations()


def _limit(connection: Connection, name: str, seconds: float) -> None:
    """Until the end of the transaction."""
    connection.execute(
        text("SELECT set_config(:name, :value, true)"), {"name": name, "value": f"{round(1000 * seconds)}ms"}
    )


def main() -> None:
    if context.is_offline_mode():
        raise SystemExit("migrations run against a database; printing SQL only is not supported")
    patience = context.config.attributes.get("patience", Patience())
    connection = context.config.attributes.get("connection")
    if connection is not None:
        migrate(connection, patience)
        return
    engine = connect(Settings().database_url)
    with engine.begin() as connection:
        migrate(connection, patience)
    engine.dispose()


main()
