"""Tracebacks of runs and of units of work that failed for a reason that nobody expected."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

TABLES = ("run", "work_unit")


def upgrade() -> None:
    for table in TABLES:
        op.add_column(table, sa.Column("traceback", sa.Text(), nullable=False, server_default=""))


def downgrade() -> None:
    for table in reversed(TABLES):
        op.drop_column(table, "traceback")
