"""Idempotency keys are reserved before they are answered; jobs say which one they were cloned from.

Revision 0005, after 0004. Answers that are kept stay.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

JSON = sa.JSON(none_as_null=True).with_variant(postgresql.JSONB(none_as_null=True), "postgresql")


def upgrade() -> None:
    with op.batch_alter_table("idempotency_keys") as table:
        table.add_column(sa.Column("token", sa.String(length=32), nullable=True))
        table.add_column(sa.Column("expires_at", sa.DateTime(timezone=True), nullable=True))
        table.alter_column("request_sha256", existing_type=sa.String(length=64), nullable=True)
        table.alter_column("status", existing_type=sa.Integer(), nullable=True)
        table.alter_column("headers", existing_type=JSON, nullable=True)
        table.alter_column(
            "body", existing_type=JSON, type_=sa.Text(), nullable=True, postgresql_using="body::text"
        )  # fmt: skip
    with op.batch_alter_table("jobs") as table:
        table.add_column(sa.Column("cloned_from", sa.String(length=40), nullable=True))


def downgrade() -> None:
    with op.batch_alter_table("jobs") as table:
        table.drop_column("cloned_from")
    op.execute("DELETE FROM idempotency_keys WHERE status IS NULL")  # what is being answered just now
    with op.batch_alter_table("idempotency_keys") as table:
        table.alter_column(
            "body", existing_type=sa.Text(), type_=JSON, nullable=False, postgresql_using="body::jsonb"
        )  # fmt: skip
        table.alter_column("headers", existing_type=JSON, nullable=False)
        table.alter_column("status", existing_type=sa.Integer(), nullable=False)
        table.alter_column("request_sha256", existing_type=sa.String(length=64), nullable=False)
        table.drop_column("expires_at")
        table.drop_column("token")
