"""When a touched job last saved its work, as it says itself, and jobs by the name that their owners use.

Revision ID: 0010
"""

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"


def upgrade() -> None:
    with op.batch_alter_table("victims") as table:
        table.add_column(sa.Column("saved", sa.Float(), nullable=False, server_default="0"))
    op.create_index("ix_victims_label", "victims", ["label"])
