"""Where the description of a model's graph is stored.

Revision 0002, after 0001. Models that were checked before have none, until they are uploaded anew.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    with op.batch_alter_table("models") as table:
        table.add_column(sa.Column("graph_sha256", sa.String(length=64), nullable=True))
        table.add_column(sa.Column("graph_bytes", sa.BigInteger(), nullable=True))
        table.create_index("ix_models_graph_sha256", ["graph_sha256"])


def downgrade() -> None:
    with op.batch_alter_table("models") as table:
        table.drop_index("ix_models_graph_sha256")
        table.drop_column("graph_bytes")
        table.drop_column("graph_sha256")
