"""Where the contact sheet of a dataset is stored.

Revision 0004, after 0002. Datasets that were checked before have none, until they are uploaded anew.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    with op.batch_alter_table("datasets") as table:
        table.add_column(sa.Column("contact_sheet_sha256", sa.String(length=64), nullable=True))
        table.add_column(sa.Column("contact_sheet_bytes", sa.BigInteger(), nullable=True))
        table.create_index("ix_datasets_contact_sheet_sha256", ["contact_sheet_sha256"])


def downgrade() -> None:
    with op.batch_alter_table("datasets") as table:
        table.drop_index("ix_datasets_contact_sheet_sha256")
        table.drop_column("contact_sheet_bytes")
        table.drop_column("contact_sheet_sha256")
