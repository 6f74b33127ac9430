"""What a touched job's owner wrote for us, and when the job was told to save its work.

Revision ID: 0006
"""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    with op.batch_alter_table("victims") as table:
        table.add_column(sa.Column("signalled", sa.Float(), nullable=False, server_default="0"))
        table.add_column(sa.Column("comment", sa.Text()))
        table.add_column(sa.Column("asked", sa.String(length=80), nullable=False, server_default=""))
