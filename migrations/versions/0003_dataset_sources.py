"""Where a dataset is fetched from, and what its sha256 must be.

Revision 0003, after 0002.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    with op.batch_alter_table("datasets") as table:
        table.alter_column("uri", existing_type=sa.String(length=255), type_=sa.String(length=2048), nullable=False)
        table.add_column(sa.Column("pinned_sha256", sa.String(length=64), nullable=True))


def downgrade() -> None:
    with op.batch_alter_table("datasets") as table:
        table.drop_column("pinned_sha256")
        table.alter_column("uri", existing_type=sa.String(length=2048), type_=sa.String(length=255), nullable=False)
