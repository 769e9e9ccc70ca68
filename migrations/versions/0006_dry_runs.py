"""Dry runs: jobs that are only asked about.

Revision 0006, after 0004. No row outlives its answer for long: a downgrade loses nothing that anybody keeps.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

JSON = sa.JSON(none_as_null=True).with_variant(postgresql.JSONB(none_as_null=True), "postgresql")
TIME = sa.DateTime(timezone=True)

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "dry_runs",
        sa.Column("id", sa.String(length=40), nullable=False),
        sa.Column("owner", sa.String(length=200), nullable=False),
        sa.Column("model_id", sa.String(length=40), nullable=False),
        sa.Column("dataset_ids", JSON, nullable=False),
        sa.Column("recipe", JSON, nullable=False),
        sa.Column("requirements", JSON, nullable=False),
        sa.Column("elsewhere", sa.Boolean(), nullable=False),
        sa.Column("created_at", TIME, nullable=False),
        sa.Column("wanted_until", TIME, nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("result", JSON, nullable=True),
        sa.Column("refusal", JSON, nullable=True),
        sa.Column("token", sa.String(length=64), nullable=True),
        sa.Column("expires_at", TIME, nullable=True),
        sa.Column("claims", sa.Integer(), nullable=False),
        sa.CheckConstraint("state IN ('queued', 'running', 'done', 'refused')", name=op.f("ck_dry_runs_state")),
        sa.PrimaryKeyConstraint("id", name="pk_dry_runs"),
    )
    op.create_index("ix_dry_runs_wanted_until", "dry_runs", ["wanted_until"])


def downgrade() -> None:
    op.execute(sa.text("DELETE FROM outbox WHERE topic = 'dry_run'"))
    op.drop_index("ix_dry_runs_wanted_until", "dry_runs")
    op.drop_table("dry_runs")
