"""A view of the runs that count: of each method, variant, scale and seed of a study the newest."""

from __future__ import annotations

from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute(
        "CREATE VIEW current_run_view AS "
        "SELECT study_id, method, variant, scale, seed, max(id) AS run_id, count(*) - 1 AS superseded "
        "FROM run GROUP BY study_id, method, variant, scale, seed"
    )


def downgrade() -> None:
    op.execute("DROP VIEW current_run_view")
