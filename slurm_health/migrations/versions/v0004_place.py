"""The nice value that puts a requeued job first in the queue, and the one that it gets back when it runs.

Revision ID: 0004
"""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    with op.batch_alter_table("victims") as table:
        table.add_column(sa.Column("nice", sa.BigInteger(), nullable=False, server_default="0"))
        table.add_column(sa.Column("lifted", sa.BigInteger(), nullable=False, server_default="0"))
        table.add_column(sa.Column("placed", sa.Float(), nullable=False, server_default="0"))
