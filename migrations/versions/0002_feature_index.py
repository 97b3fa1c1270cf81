"""A covering index of the aggregate rows, from which the feature tables are read without touching
the table.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

NAME = "ix_metric_value_aggregate"
COLUMNS = ["checkpoint_id", "metric", "protocol_id", "value", "layer", "module"]
WHERE = "layer = -2 AND module = ''"


def upgrade() -> None:
    op.create_index(
        NAME, "metric_value", COLUMNS, sqlite_where=sa.text(WHERE), postgresql_where=sa.text(WHERE)
    )


def downgrade() -> None:
    op.drop_index(NAME, "metric_value")
