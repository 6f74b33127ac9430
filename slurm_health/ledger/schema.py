"""The tables. A change here is a new file in migrations/versions too; a test holds that both agree."""

from __future__ import annotations

import sqlalchemy as sa

metadata = sa.MetaData()

incidents = sa.Table(
    "incidents",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("node", sa.String(256), nullable=False),
    sa.Column("code", sa.String(40), nullable=False),
    sa.Column("device", sa.String(100), nullable=False),
    sa.Column("severity", sa.Integer, nullable=False),
    sa.Column("job", sa.String(12), nullable=False),
    sa.Column("text", sa.Text, nullable=False),
    sa.Column("since", sa.Float, nullable=False),
    sa.Column("opened", sa.Float, nullable=False),
    sa.Column("lasting", sa.Boolean, nullable=False),
    sa.Column("moment", sa.String(300), nullable=False),
    sa.Column("count", sa.Integer, nullable=False, default=1),
    sa.Column("seen", sa.Float, nullable=False),
    sa.Column("cleared", sa.Float, nullable=False, default=0.0),
    sa.Column("acknowledged", sa.Float, nullable=False, default=0.0),
    sa.Column("closed", sa.Float, nullable=False, default=0.0),
    sa.Column("closed_by", sa.Text, nullable=False, default=""),
    sa.Column("held", sa.Text, nullable=False, default=""),
    sa.Column("hardware", sa.JSON, nullable=False, server_default="{}"),  # what the device is (identity.py)
)
sa.Index(
    "one_open_incident_per_fault",
    incidents.c.node,
    incidents.c.code,
    incidents.c.device,
    unique=True,
    sqlite_where=incidents.c.closed == 0,
    postgresql_where=incidents.c.closed == 0,
)
# SQLite adds the id to each index: what is found through one of these comes in the order of ids.
sa.Index("ix_incidents_closed", incidents.c.closed)
sa.Index("ix_incidents_of_node_closed", incidents.c.node, incidents.c.closed)
sa.Index("ix_incidents_of_node_standing", incidents.c.node, incidents.c.lasting, incidents.c.cleared)
sa.Index("ix_incidents_of_node_severity", incidents.c.node, incidents.c.severity)

evidence = sa.Table(
    "evidence",
    metadata,
    sa.Column("node", sa.String(256), primary_key=True),
    sa.Column("moment", sa.String(300), primary_key=True),
    sa.Column("incident", sa.ForeignKey("incidents.id"), nullable=False, index=True),
    sa.Column("at", sa.Float, nullable=False),
    sa.Column("line", sa.Text, nullable=False),
)

actions = sa.Table(
    "actions",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("incident", sa.ForeignKey("incidents.id"), nullable=False, index=True),
    sa.Column("kind", sa.String(20), nullable=False),
    sa.Column("target", sa.String(256), nullable=False),
    sa.Column("detail", sa.Text, nullable=False, default=""),
    sa.Column("intended", sa.Float, nullable=False),
    sa.Column("done", sa.Float, nullable=False, default=0.0),
    sa.Column("outcome", sa.Text, nullable=False, default=""),
)
sa.Index("ix_actions_done", actions.c.kind, actions.c.done)
sa.Index("ix_actions_intended", actions.c.kind, actions.c.intended)

victims = sa.Table(
    "victims",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("incident", sa.ForeignKey("incidents.id"), nullable=False, index=True),
    sa.Column("job", sa.BigInteger, nullable=False),
    sa.Column("restarts", sa.Integer, nullable=False),
    # Slurm counts job ids from 1 again when its state is lost; a later life of the same id is another job.
    sa.Column("life", sa.Integer, nullable=False, default=0),
    sa.Column("label", sa.String(64), nullable=False),
    sa.Column("uid", sa.BigInteger, nullable=False),
    sa.Column("node", sa.String(256), nullable=False),
    sa.Column("urgency", sa.String(12), nullable=False),
    sa.Column("began", sa.Float, nullable=False, server_default="0"),
    sa.Column("since", sa.Float, nullable=False),
    sa.Column("touched", sa.Float, nullable=False),
    sa.Column("refused", sa.Float, nullable=False, default=0.0),
    sa.Column("requeued", sa.Float, nullable=False, default=0.0),
    sa.Column("started", sa.Float, nullable=False, default=0.0),
    sa.Column("running", sa.Float, nullable=False, default=0.0),
    sa.Column("ran", sa.Float, nullable=False, default=0.0),
    sa.Column("ran_nodes", sa.Text, nullable=False, default=""),
    sa.Column("settled", sa.Float, nullable=False, default=0.0, index=True),
    sa.Column("outcome", sa.Text, nullable=False, default=""),
    sa.Column("tries", sa.Integer, nullable=False, default=0),
    # Its own nice value, and the one that puts it first in the queue; equal where it is not put there.
    sa.Column("nice", sa.BigInteger, nullable=False, server_default="0"),
    sa.Column("lifted", sa.BigInteger, nullable=False, server_default="0"),
    sa.Column("placed", sa.Float, nullable=False, server_default="0"),
    sa.Column("signalled", sa.Float, nullable=False, server_default="0"),
    sa.Column("comment", sa.Text),  # what its owner wrote for us; NULL until Slurm has said
    sa.Column("asked", sa.String(80), nullable=False, server_default=""),
    sa.Column(
        "saved", sa.Float, nullable=False, server_default="0"
    ),  # when its owner's words say it last was
    sa.UniqueConstraint("job", "restarts", "life", name="each_run_once"),
)

sa.Index("ix_victims_label", victims.c.label)

touches = sa.Table(
    "touches",
    metadata,
    sa.Column("incident", sa.ForeignKey("incidents.id"), primary_key=True),
    sa.Column("victim", sa.ForeignKey("victims.id"), primary_key=True, index=True),
    sa.Column("ranks", sa.Text, nullable=False, server_default=""),  # that sat on the device, folded
)

nodes = sa.Table(
    "nodes",
    metadata,
    sa.Column("name", sa.String(256), primary_key=True),
    sa.Column("boot", sa.String(64), nullable=False, default=""),
    sa.Column("reported", sa.Float, nullable=False, default=0.0),  # when it last said something new
    sa.Column("blind", sa.Text, nullable=False, default=""),
    # The drain that is ours: its words, Slurm's ReasonTime of it, and when we did it; "" when none is.
    sa.Column("reason", sa.Text, nullable=False, default="", index=True),
    sa.Column("reason_time", sa.BigInteger, nullable=False, default=0),
    sa.Column("drained", sa.Float, nullable=False, default=0.0),
)

pauses = sa.Table(
    "pauses",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("nodes", sa.Text, nullable=False),  # a hostlist, "" for the whole cluster
    sa.Column("begins", sa.Float, nullable=False),
    sa.Column("ends", sa.Float, nullable=False),  # 0: until unpause
    sa.Column("reason", sa.Text, nullable=False),
    sa.Column("by", sa.Text, nullable=False),
)

# One row, which several controllers of a server's ledger contend for; see lease.py.
leases = sa.Table(
    "leases",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("holder", sa.Text, nullable=False),  # the address of the controller that acts
    sa.Column("host", sa.Text, nullable=False),
    sa.Column("life", sa.String(32), nullable=False),  # names one run of it
    sa.Column("until", sa.Float, nullable=False),  # seconds since the epoch, by the database's clock
)

# What is still to be told, a row for each way it goes, gone when it was sent; see outbox.py.
notices = sa.Table(
    "notices",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("way", sa.String(12), nullable=False),
    sa.Column("at", sa.Float, nullable=False),
    sa.Column("event", sa.String(12), nullable=False),
    sa.Column("severity", sa.Integer, nullable=False),
    sa.Column("incident", sa.Integer, nullable=False),
    sa.Column("node", sa.String(256), nullable=False),
    sa.Column("job", sa.String(64), nullable=False),
    sa.Column("text", sa.Text, nullable=False),
    sa.Column("tries", sa.Integer, nullable=False, default=0),
    sa.Column("tried", sa.Float, nullable=False, default=0.0),  # when it was last about to be sent
)
sa.Index("ix_notices_way_at", notices.c.way, notices.c.at)
