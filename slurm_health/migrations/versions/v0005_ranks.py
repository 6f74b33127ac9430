"""Which ranks of a touched job sat on the device that broke.

Revision ID: 0005
"""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    with op.batch_alter_table("touches") as table:
        table.add_column(sa.Column("ranks", sa.Text(), nullable=False, server_default=""))
