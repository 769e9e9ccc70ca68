"""Which key made a key, and when it was last used.

Revision 0009. Keys from before have neither; their scopes stay as they are.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    with op.batch_alter_table("api_keys") as table:
        table.add_column(sa.Column("created_by", sa.String(length=40), nullable=True))
        table.add_column(sa.Column("last_used_at", sa.DateTime(timezone=True), nullable=True))
        table.create_index("ix_api_keys_owner_id", ["owner", "id"])


def downgrade() -> None:
    with op.batch_alter_table("api_keys") as table:
        table.drop_index("ix_api_keys_owner_id")
        table.drop_column("last_used_at")
        table.drop_column("created_by")
