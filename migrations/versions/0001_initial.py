"""The first schema: every table of lowrank, and three views that spare queries the joins."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

TEXT, INTEGER, BIG, REAL, KIND = (
    sa.String(),
    sa.Integer(),
    sa.BigInteger(),
    sa.Double(),
    sa.String(8),
)
BIG_ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")

CHECKPOINT_VIEW = """
CREATE VIEW checkpoint_view AS
SELECT checkpoint.id AS checkpoint_id, run.id AS run_id, study.id AS study_id, study.name AS study,
       run.method, run.variant, run.scale, run.seed, run.status, run.kind AS run_kind, run.init_hash,
       checkpoint.step, checkpoint.kind, checkpoint.tokens_seen, checkpoint.path,
       checkpoint.validation_loss, checkpoint.validation_loss_kind, checkpoint.evaluation_set_id
FROM checkpoint
JOIN run ON run.id = checkpoint.run_id
JOIN study ON study.id = run.study_id
"""

METRIC_VIEW = """
CREATE VIEW metric_view AS
SELECT c.study, c.scale, c.method, c.variant, c.seed, c.step, c.kind AS checkpoint_kind,
       protocol.name AS protocol, protocol.lens, protocol.space, protocol.normalization, protocol.metric_revision,
       v.metric, v.layer, v.module, v.value, v.value_kind, v.standard_error, v.standard_error_kind, v.n, v.note,
       r.method AS reference_method, r.variant AS reference_variant, r.seed AS reference_seed, r.step AS reference_step,
       v.id AS metric_value_id, v.protocol_id, v.checkpoint_id, v.reference_checkpoint_id, c.run_id, c.study_id,
       r.run_id AS reference_run_id
FROM metric_value AS v
JOIN checkpoint_view AS c ON c.checkpoint_id = v.checkpoint_id
JOIN protocol ON protocol.id = v.protocol_id
LEFT JOIN checkpoint_view AS r ON r.checkpoint_id = v.reference_checkpoint_id
"""

# A barrier between two runs at one step is one row; here it is seen from both ends.
PAIR_VIEW = """
CREATE VIEW pair_view AS
SELECT study, scale, step, method, variant, seed, reference_method AS other_method, reference_variant AS other_variant,
       reference_seed AS other_seed, protocol, protocol_id, metric, layer, module, value, value_kind, standard_error,
       standard_error_kind, n, note, checkpoint_id, reference_checkpoint_id AS other_checkpoint_id, metric_value_id
FROM metric_view WHERE run_id <> reference_run_id
UNION ALL
SELECT study, scale, step, reference_method, reference_variant, reference_seed, method, variant,
       seed, protocol, protocol_id, metric, layer, module, value, value_kind, standard_error,
       standard_error_kind, n, note, reference_checkpoint_id, checkpoint_id, metric_value_id
FROM metric_view WHERE run_id <> reference_run_id AND substr(metric, 1, 5) IN ('imbh', 'imbh_')
"""


def required(name: str, kind: Any, *more: Any) -> sa.Column[Any]:
    return sa.Column(name, kind, *more, nullable=False)


def texts(*names: str) -> list[sa.Column[Any]]:
    return [required(name, TEXT) for name in names]


def optional(name: str, kind: Any, *more: Any) -> sa.Column[Any]:
    return sa.Column(name, kind, *more, nullable=True)


def refers(table: str, column: str, target: str) -> sa.ForeignKey:
    return sa.ForeignKey(f"{target}.id", name=f"fk_{table}_{column}")


def one_of(table: str, column: str, *values: str) -> sa.CheckConstraint:
    return sa.CheckConstraint(f"{column} IN {values}", name=f"ck_{table}_{column}")


def result(table: str, column: str) -> sa.CheckConstraint:
    known = f"{column}_kind IN ('finite', 'nan', 'inf', '-inf', 'absent')"
    return sa.CheckConstraint(
        f"{known} AND ({column} IS NOT NULL) = ({column}_kind = 'finite')",
        name=f"ck_{table}_{column}",
    )


def create(table: str, *parts: Any, unique: tuple[str, ...], identity: Any = INTEGER) -> None:
    key = sa.UniqueConstraint(*unique, name=f"uq_{table}")
    op.create_table(
        table,
        required("id", identity),
        *parts,
        sa.PrimaryKeyConstraint("id", name=f"pk_{table}"),
        key,
    )


def create_evaluation_set() -> None:
    create(
        "evaluation_set",
        *texts("name", "dataset_fingerprint", "split"),
        required("seed", BIG),
        required("examples", INTEGER),
        required("tokens", BIG),
        required("max_length", INTEGER),
        required("packing", sa.Boolean()),
        *texts("tokenizer_hash", "sha256"),
        unique=("sha256",),
    )


def create_provenance() -> None:
    create(
        "provenance",
        *texts("hash", "lowrank_version", "git_commit"),
        required("library_versions", sa.JSON()),
        required("device", TEXT),
        required("threads", INTEGER),
        unique=("hash",),
    )


def create_published_value() -> None:
    create(
        "published_value",
        *texts("source", "source_table", "scale", "method", "quantity", "item"),
        required("value", REAL),
        optional("standard_error", REAL),
        required("note", TEXT),
        unique=("source", "source_table", "scale", "method", "quantity", "item"),
    )


def create_study() -> None:
    create(
        "study",
        required("name", TEXT),
        required("config", sa.JSON()),
        *texts("config_hash", "root"),
        unique=("name",),
    )


def create_predictor_fit() -> None:
    create(
        "predictor_fit",
        required("study_id", INTEGER, refers("predictor_fit", "study_id", "study")),
        required("feature_set", TEXT),
        required("features", sa.JSON()),
        *texts("selection", "scheme", "model", "target"),
        required("n", INTEGER),
        required("n_excluded", INTEGER),
        optional("pearson", REAL),
        optional("pearson_low", REAL),
        optional("pearson_high", REAL),
        optional("spearman", REAL),
        optional("r2", REAL),
        optional("r2_in_sample", REAL),
        optional("ranking_accuracy", REAL),
        optional("permutation_p", REAL),
        required("details", sa.JSON()),
        required("input_hash", TEXT),
        optional("provenance_id", INTEGER, refers("predictor_fit", "provenance_id", "provenance")),
        unique=("study_id", "feature_set", "selection", "scheme", "model", "target", "input_hash"),
    )


def create_protocol() -> None:
    create(
        "protocol",
        *texts("name", "lens"),
        required("metric_revision", INTEGER),
        *texts("space", "normalization"),
        optional(
            "evaluation_set_id", INTEGER, refers("protocol", "evaluation_set_id", "evaluation_set")
        ),
        optional("direction_seed", BIG),
        required("precision", TEXT),
        required("parameters", sa.JSON()),
        required("parameters_hash", TEXT),
        unique=("parameters_hash",),
    )


def create_run() -> None:
    create(
        "run",
        required("study_id", INTEGER, refers("run", "study_id", "study")),
        *texts("config_hash", "method", "scale"),
        required("seed", BIG),
        required("data_seed", BIG),
        required("init_seed", BIG),
        *texts("variant", "kind", "status"),
        optional("rank", INTEGER),
        required("config", sa.JSON()),
        optional("base_learning_rate", REAL),
        optional("effective_learning_rate", REAL),
        required("total_steps", INTEGER),
        required("precision", TEXT),
        required("world_size", INTEGER),
        required("attempts", INTEGER),
        required("error", TEXT),
        optional("failed_step", INTEGER),
        optional("last_finite_loss", REAL),
        required("init_hash", TEXT),
        optional("parameters_total", BIG),
        optional("parameters_trainable", BIG),
        optional("parameter_bytes", BIG),
        optional("gradient_bytes", BIG),
        optional("optimizer_state_bytes", BIG),
        optional("peak_memory_bytes", BIG),
        optional("train_seconds", REAL),
        *texts("dataset_fingerprint", "tokenizer_hash"),
        optional("provenance_id", INTEGER, refers("run", "provenance_id", "provenance")),
        one_of("run", "kind", "trained", "imported"),
        one_of("run", "status", "planned", "running", "done", "failed", "cancelled"),
        unique=("study_id", "config_hash"),
    )


def create_work_unit() -> None:
    create(
        "work_unit",
        *texts("unit_key", "kind", "status", "owner"),
        optional("lease_until", REAL),
        optional("heartbeat_at", REAL),
        required("attempts", INTEGER),
        required("error", TEXT),
        optional("study_id", INTEGER, refers("work_unit", "study_id", "study")),
        one_of("work_unit", "status", "claimed", "failed"),
        unique=("unit_key",),
    )


def create_checkpoint() -> None:
    create(
        "checkpoint",
        required("run_id", INTEGER, refers("checkpoint", "run_id", "run")),
        required("step", INTEGER),
        required("kind", TEXT),
        required("tokens_seen", BIG),
        *texts("path", "sha256"),
        required("bytes", BIG),
        optional("validation_loss", REAL),
        required("validation_loss_kind", KIND),
        required("validation_tokens", BIG),
        optional(
            "evaluation_set_id",
            INTEGER,
            refers("checkpoint", "evaluation_set_id", "evaluation_set"),
        ),
        result("checkpoint", "validation_loss"),
        one_of("checkpoint", "kind", "initial", "training", "final", "imported"),
        unique=("run_id", "step"),
    )


def create_training_log() -> None:
    create(
        "training_log",
        required("run_id", INTEGER, refers("training_log", "run_id", "run")),
        required("step", INTEGER),
        optional("loss", REAL),
        required("loss_kind", KIND),
        required("learning_rate", REAL),
        optional("gradient_norm", REAL),
        required("gradient_norm_kind", KIND),
        required("tokens_seen", BIG),
        optional("tokens_per_second", REAL),
        result("training_log", "loss"),
        result("training_log", "gradient_norm"),
        unique=("run_id", "step"),
        identity=BIG_ID,
    )


def create_curve_point() -> None:
    create(
        "curve_point",
        required("checkpoint_id", INTEGER, refers("curve_point", "checkpoint_id", "checkpoint")),
        optional(
            "reference_checkpoint_id",
            INTEGER,
            refers("curve_point", "reference_checkpoint_id", "checkpoint"),
        ),
        required(
            "reference_key",
            INTEGER,
            sa.Computed("coalesce(reference_checkpoint_id, 0)", persisted=True),
        ),
        required("protocol_id", INTEGER, refers("curve_point", "protocol_id", "protocol")),
        required("curve", TEXT),
        required("direction_index", INTEGER),
        required("position", INTEGER),
        required("offset_value", REAL),
        optional("mean", REAL),
        required("mean_kind", KIND),
        optional("variance", REAL),
        required("variance_kind", KIND),
        optional("n", BIG),
        result("curve_point", "mean"),
        result("curve_point", "variance"),
        unique=(
            "checkpoint_id",
            "reference_key",
            "protocol_id",
            "curve",
            "direction_index",
            "position",
        ),
        identity=BIG_ID,
    )


def create_downstream_item() -> None:
    create(
        "downstream_item",
        required(
            "checkpoint_id", INTEGER, refers("downstream_item", "checkpoint_id", "checkpoint")
        ),
        required("protocol_id", INTEGER, refers("downstream_item", "protocol_id", "protocol")),
        *texts("task", "metric", "item"),
        optional("value", REAL),
        required("value_kind", KIND),
        result("downstream_item", "value"),
        unique=("checkpoint_id", "protocol_id", "task", "metric", "item"),
        identity=BIG_ID,
    )


def create_downstream_score() -> None:
    create(
        "downstream_score",
        required(
            "checkpoint_id", INTEGER, refers("downstream_score", "checkpoint_id", "checkpoint")
        ),
        required("protocol_id", INTEGER, refers("downstream_score", "protocol_id", "protocol")),
        *texts("task", "category", "metric", "filter"),
        optional("value", REAL),
        required("value_kind", KIND),
        optional("standard_error", REAL),
        required("standard_error_kind", KIND),
        required("n", BIG),
        optional("chance", REAL),
        *texts("task_version", "harness_version", "note"),
        optional(
            "provenance_id", INTEGER, refers("downstream_score", "provenance_id", "provenance")
        ),
        result("downstream_score", "value"),
        result("downstream_score", "standard_error"),
        unique=("checkpoint_id", "protocol_id", "task", "metric", "filter"),
    )
    op.create_index("ix_downstream_score_task_metric", "downstream_score", ["task", "metric"])


def create_metric_value() -> None:
    create(
        "metric_value",
        required("checkpoint_id", INTEGER, refers("metric_value", "checkpoint_id", "checkpoint")),
        optional(
            "reference_checkpoint_id",
            INTEGER,
            refers("metric_value", "reference_checkpoint_id", "checkpoint"),
        ),
        required(
            "reference_key",
            INTEGER,
            sa.Computed("coalesce(reference_checkpoint_id, 0)", persisted=True),
        ),
        required("protocol_id", INTEGER, refers("metric_value", "protocol_id", "protocol")),
        required("metric", TEXT),
        required("layer", INTEGER),
        required("module", TEXT),
        optional("value", REAL),
        required("value_kind", KIND),
        optional("standard_error", REAL),
        required("standard_error_kind", KIND),
        optional("n", BIG),
        required("note", TEXT),
        optional("provenance_id", INTEGER, refers("metric_value", "provenance_id", "provenance")),
        result("metric_value", "value"),
        result("metric_value", "standard_error"),
        unique=("checkpoint_id", "reference_key", "protocol_id", "metric", "layer", "module"),
        identity=BIG_ID,
    )
    op.create_index(
        "ix_metric_value_metric_layer_module", "metric_value", ["metric", "layer", "module"]
    )


def create_prediction() -> None:
    create(
        "prediction",
        required("fit_id", INTEGER, refers("prediction", "fit_id", "predictor_fit")),
        required("row_label", TEXT),
        optional("checkpoint_id", INTEGER, refers("prediction", "checkpoint_id", "checkpoint")),
        required("fold", TEXT),
        required("target", REAL),
        required("predicted", REAL),
        unique=("fit_id", "row_label"),
    )


def create_singular_value() -> None:
    create(
        "singular_value",
        required("checkpoint_id", INTEGER, refers("singular_value", "checkpoint_id", "checkpoint")),
        optional(
            "reference_checkpoint_id",
            INTEGER,
            refers("singular_value", "reference_checkpoint_id", "checkpoint"),
        ),
        required(
            "reference_key",
            INTEGER,
            sa.Computed("coalesce(reference_checkpoint_id, 0)", persisted=True),
        ),
        required("protocol_id", INTEGER, refers("singular_value", "protocol_id", "protocol")),
        required("matrix", TEXT),
        required("layer", INTEGER),
        required("module", TEXT),
        required("position", INTEGER),
        required("value", REAL),
        one_of("singular_value", "matrix", "w", "dw"),
        unique=(
            "checkpoint_id",
            "reference_key",
            "protocol_id",
            "matrix",
            "layer",
            "module",
            "position",
        ),
        identity=BIG_ID,
    )


CREATED = {  # in the order of their references
    "evaluation_set": create_evaluation_set,
    "provenance": create_provenance,
    "published_value": create_published_value,
    "study": create_study,
    "predictor_fit": create_predictor_fit,
    "protocol": create_protocol,
    "run": create_run,
    "work_unit": create_work_unit,
    "checkpoint": create_checkpoint,
    "training_log": create_training_log,
    "curve_point": create_curve_point,
    "downstream_item": create_downstream_item,
    "downstream_score": create_downstream_score,
    "metric_value": create_metric_value,
    "prediction": create_prediction,
    "singular_value": create_singular_value,
}


def upgrade() -> None:
    for create_table in CREATED.values():
        create_table()
    for view in (CHECKPOINT_VIEW, METRIC_VIEW, PAIR_VIEW):
        op.execute(view)


def downgrade() -> None:
    for statement in ("DROP VIEW pair_view", "DROP VIEW metric_view", "DROP VIEW checkpoint_view"):
        op.execute(statement)
    for table in reversed(CREATED):
        op.drop_table(table)
