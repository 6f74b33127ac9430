"""When a touched run of a job had begun: a job that keeps meeting the same fault is known by its short runs.

Revision ID: 0003
"""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    with op.batch_alter_table("victims") as table:
        table.add_column(sa.Column("began", sa.Float(), nullable=False, server_default="0"))
