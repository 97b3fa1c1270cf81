"""A view of the metric that stands for each task, as the protocol of the scores names it."""

from __future__ import annotations

from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

# rows (key, value) of the object 'primary' in a protocol's parameters; none where it has no such
# object
EACH = {
    "sqlite": "json_each(p.parameters, '$.primary')",
    "postgresql": "json_each_text(p.parameters -> 'primary')",
}


def upgrade() -> None:
    each = EACH[op.get_bind().dialect.name]
    op.execute(
        "CREATE VIEW primary_metric_view AS "
        f"SELECT p.id AS protocol_id, j.key AS task, j.value AS metric FROM protocol AS p, {each} AS j WHERE p.lens = 'downstream'"
    )


def downgrade() -> None:
    op.execute("DROP VIEW primary_metric_view")
