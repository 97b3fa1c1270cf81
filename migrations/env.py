"""Alembic's entry: one connection, given by :mod:`lowrank.store.migrate`, or opened for ``alembic``
at the checkout.
"""

from __future__ import annotations

from alembic import context
from sqlalchemy.engine import Connection

from lowrank.store.schema import Base


def migrate(connection: Connection) -> None:
    """Run the revisions on ``connection``; its transaction is the caller's."""
    context.configure(
        connection=connection,
        target_metadata=Base.metadata,
        render_as_batch=True,
        transactional_ddl=True,
    )
    context.run_migrations()


connection = context.config.attributes.get("connection")
if connection is not None:
    migrate(connection)
else:
    from lowrank.store.migrate import developer_connection

    with developer_connection() as own:
        migrate(own)
