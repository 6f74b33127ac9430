"""What a technician finds the device of an incident by.

Revision ID: 0008
"""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"


def upgrade() -> None:
    with op.batch_alter_table("incidents") as table:
        table.add_column(sa.Column("hardware", sa.JSON(), nullable=False, server_default="{}"))
