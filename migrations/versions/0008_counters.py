"""What is counted: attempts by outcome, leases lost, seconds of stages, images trained on.

Revision 0008. They begin at zero: what happened before was not counted.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "counters",
        sa.Column("name", sa.String(length=64), nullable=False),
        sa.Column("labels", sa.String(length=255), nullable=False),
        sa.Column("stripe", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("value", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("name", "labels", "stripe", name=op.f("pk_counters")),
    )


def downgrade() -> None:
    op.drop_table("counters")
