"""Indexes for what is asked each second, so that a long history costs nothing.

Revision ID: 0002
"""

from alembic import op

revision = "0002"
down_revision = "0001"

INDEXES = (
    ("ix_incidents_closed", "incidents", ["closed"]),
    ("ix_incidents_of_node_closed", "incidents", ["node", "closed"]),
    ("ix_incidents_of_node_standing", "incidents", ["node", "lasting", "cleared"]),
    ("ix_incidents_of_node_severity", "incidents", ["node", "severity"]),
    ("ix_actions_done", "actions", ["kind", "done"]),
    ("ix_actions_intended", "actions", ["kind", "intended"]),
    ("ix_touches_victim", "touches", ["victim"]),
    ("ix_nodes_reason", "nodes", ["reason"]),
)


def upgrade() -> None:
    for name, table, columns in INDEXES:
        op.create_index(name, table, columns, unique=False)
