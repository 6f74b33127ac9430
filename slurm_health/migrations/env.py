"""How alembic runs here: on the ledger's own connection, without an ini file."""

from alembic import context

from slurm_health.ledger.schema import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    render_as_batch=True,  # SQLite cannot alter columns in place
)
with context.begin_transaction():
    context.run_migrations()
