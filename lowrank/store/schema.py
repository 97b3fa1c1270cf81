"""The tables as SQLAlchemy models, the same on SQLite and PostgreSQL; Alembic alone creates them.

Columns are the fields of :mod:`lowrank.store.records`, and two kinds of columns more:

- ``<field>_kind`` beside every result that may be missing or not finite: finite, nan, inf, -inf or
  absent. The value is NULL unless its kind is finite, since SQLite would store nan as NULL and lose
  the difference.
- ``reference_key`` = coalesce(reference_checkpoint_id, 0), computed by the database, because NULLs
  in a unique key do not collide.
"""

from __future__ import annotations

from typing import Annotated, Any

import sqlalchemy as sa
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

FINITE, NAN, INFINITE, NEGATIVE_INFINITE, ABSENT = KINDS = (
    "finite",
    "nan",
    "inf",
    "-inf",
    "absent",
)
KIND_SUFFIX = "_kind"
REFERENCE_KEY = "reference_key"
NAMING = {
    "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    "uq": "uq_%(table_name)s",
    "ck": "ck_%(table_name)s_%(constraint_name)s",
    "fk": "fk_%(table_name)s_%(column_0_name)s",
    "pk": "pk_%(table_name)s",
}

Real = Annotated[float, mapped_column(sa.Double)]
Big = Annotated[int, mapped_column(sa.BigInteger)]  # bytes, tokens, parameters, seeds
Kind = Annotated[str, mapped_column(sa.String(8))]
Long = Annotated[str, mapped_column(sa.Text, server_default="")]
Json = Annotated[dict[str, Any], mapped_column(sa.JSON)]
Id = Annotated[int, mapped_column(primary_key=True)]
BigId = Annotated[
    int, mapped_column(sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True)
]
StudyId = Annotated[int, mapped_column(sa.ForeignKey("study.id"))]
RunId = Annotated[int, mapped_column(sa.ForeignKey("run.id"))]
CheckpointId = Annotated[int, mapped_column(sa.ForeignKey("checkpoint.id"))]
ProtocolId = Annotated[int, mapped_column(sa.ForeignKey("protocol.id"))]
ProvenanceId = Annotated[int, mapped_column(sa.ForeignKey("provenance.id"))]
EvaluationSetId = Annotated[int, mapped_column(sa.ForeignKey("evaluation_set.id"))]
FitId = Annotated[int, mapped_column(sa.ForeignKey("predictor_fit.id"))]


class Base(DeclarativeBase):
    """Base of the models; constraint names follow one convention, so that later revisions can name
    them.
    """

    metadata = sa.MetaData(naming_convention=NAMING)


def one_of(column: str, *values: str) -> sa.CheckConstraint:
    """Return the constraint that ``column`` holds one of ``values``."""
    allowed = ", ".join(f"'{value}'" for value in values)
    return sa.CheckConstraint(f"{column} IN ({allowed})", name=column)


def result(column: str) -> sa.CheckConstraint:
    """Return the constraint that a value is stored exactly where its kind is finite, and that the
    kind is known.
    """
    kinds = ", ".join(f"'{kind}'" for kind in KINDS)
    condition = (
        f"{column}_kind IN ({kinds}) AND ({column} IS NOT NULL) = ({column}_kind = '{FINITE}')"
    )
    return sa.CheckConstraint(condition, name=column)


def reference_key() -> Mapped[int]:
    """Return the computed column that stands for a reference checkpoint in a unique key, 0 where
    there is none.
    """
    return mapped_column(
        sa.Integer, sa.Computed("coalesce(reference_checkpoint_id, 0)", persisted=True)
    )


class Study(Base):
    __tablename__ = "study"
    __table_args__ = (sa.UniqueConstraint("name"),)
    id: Mapped[Id]
    name: Mapped[str]
    config: Mapped[Json]
    config_hash: Mapped[str]
    root: Mapped[str]


class Provenance(Base):
    __tablename__ = "provenance"
    __table_args__ = (sa.UniqueConstraint("hash"),)
    id: Mapped[Id]
    hash: Mapped[str]
    lowrank_version: Mapped[str]
    git_commit: Mapped[str]
    library_versions: Mapped[Json]
    device: Mapped[str]
    threads: Mapped[int]


class Run(Base):
    __tablename__ = "run"
    __table_args__ = (
        sa.UniqueConstraint("study_id", "config_hash"),
        one_of("kind", "trained", "imported"),
        one_of("status", "planned", "running", "done", "failed", "cancelled"),
    )
    id: Mapped[Id]
    study_id: Mapped[StudyId]
    config_hash: Mapped[str]
    method: Mapped[str]
    scale: Mapped[str]
    seed: Mapped[Big]
    data_seed: Mapped[Big]
    init_seed: Mapped[Big]
    variant: Mapped[str]
    kind: Mapped[str]
    status: Mapped[str]
    rank: Mapped[int | None]
    config: Mapped[Json]
    base_learning_rate: Mapped[Real | None]
    effective_learning_rate: Mapped[Real | None]
    total_steps: Mapped[int]
    precision: Mapped[str]
    world_size: Mapped[int]
    attempts: Mapped[int]
    error: Mapped[str]
    traceback: Mapped[Long]
    failed_step: Mapped[int | None]
    last_finite_loss: Mapped[Real | None]
    init_hash: Mapped[str]
    parameters_total: Mapped[Big | None]
    parameters_trainable: Mapped[Big | None]
    parameter_bytes: Mapped[Big | None]
    gradient_bytes: Mapped[Big | None]
    optimizer_state_bytes: Mapped[Big | None]
    peak_memory_bytes: Mapped[Big | None]
    train_seconds: Mapped[Real | None]
    dataset_fingerprint: Mapped[str]
    tokenizer_hash: Mapped[str]
    provenance_id: Mapped[ProvenanceId | None]


class EvaluationSet(Base):
    __tablename__ = "evaluation_set"
    __table_args__ = (sa.UniqueConstraint("sha256"),)
    id: Mapped[Id]
    name: Mapped[str]
    dataset_fingerprint: Mapped[str]
    split: Mapped[str]
    seed: Mapped[Big]
    examples: Mapped[int]
    tokens: Mapped[Big]
    max_length: Mapped[int]
    packing: Mapped[bool]
    tokenizer_hash: Mapped[str]
    sha256: Mapped[str]


class Checkpoint(Base):
    __tablename__ = "checkpoint"
    __table_args__ = (
        sa.UniqueConstraint("run_id", "step"),
        one_of("kind", "initial", "training", "final", "imported"),
        result("validation_loss"),
    )
    id: Mapped[Id]
    run_id: Mapped[RunId]
    step: Mapped[int]
    kind: Mapped[str]
    tokens_seen: Mapped[Big]
    path: Mapped[str]
    sha256: Mapped[str]
    bytes: Mapped[Big]
    validation_loss: Mapped[Real | None]
    validation_loss_kind: Mapped[Kind]
    validation_tokens: Mapped[Big]
    evaluation_set_id: Mapped[EvaluationSetId | None]


class TrainingLog(Base):
    __tablename__ = "training_log"
    __table_args__ = (
        sa.UniqueConstraint("run_id", "step"),
        result("loss"),
        result("gradient_norm"),
    )
    id: Mapped[BigId]
    run_id: Mapped[RunId]
    step: Mapped[int]
    loss: Mapped[Real | None]
    loss_kind: Mapped[Kind]
    learning_rate: Mapped[Real]
    gradient_norm: Mapped[Real | None]
    gradient_norm_kind: Mapped[Kind]
    tokens_seen: Mapped[Big]
    tokens_per_second: Mapped[Real | None]


class Protocol(Base):
    __tablename__ = "protocol"
    __table_args__ = (sa.UniqueConstraint("parameters_hash"),)
    id: Mapped[Id]
    name: Mapped[str]
    lens: Mapped[str]
    metric_revision: Mapped[int]
    space: Mapped[str]
    normalization: Mapped[str]
    evaluation_set_id: Mapped[EvaluationSetId | None]
    direction_seed: Mapped[Big | None]
    precision: Mapped[str]
    parameters: Mapped[Json]
    parameters_hash: Mapped[str]


class MetricValue(Base):
    __tablename__ = "metric_value"
    __table_args__ = (
        sa.UniqueConstraint(
            "checkpoint_id", REFERENCE_KEY, "protocol_id", "metric", "layer", "module"
        ),
        sa.Index(None, "metric", "layer", "module"),
        # Feature tables are read from this index alone; it holds layer and module because SQLite
        # needs them for that.
        sa.Index(
            "ix_metric_value_aggregate",
            "checkpoint_id",
            "metric",
            "protocol_id",
            "value",
            "layer",
            "module",
            sqlite_where=sa.text("layer = -2 AND module = ''"),
            postgresql_where=sa.text("layer = -2 AND module = ''"),
        ),
        result("value"),
        result("standard_error"),
    )
    id: Mapped[BigId]
    checkpoint_id: Mapped[CheckpointId]
    reference_checkpoint_id: Mapped[CheckpointId | None]
    reference_key: Mapped[int] = reference_key()
    protocol_id: Mapped[ProtocolId]
    metric: Mapped[str]
    layer: Mapped[int]
    module: Mapped[str]
    value: Mapped[Real | None]
    value_kind: Mapped[Kind]
    standard_error: Mapped[Real | None]
    standard_error_kind: Mapped[Kind]
    n: Mapped[Big | None]
    note: Mapped[str]
    provenance_id: Mapped[ProvenanceId | None]


class CurvePoint(Base):
    __tablename__ = "curve_point"
    __table_args__ = (
        sa.UniqueConstraint(
            "checkpoint_id", REFERENCE_KEY, "protocol_id", "curve", "direction_index", "position"
        ),
        result("mean"),
        result("variance"),
    )
    id: Mapped[BigId]
    checkpoint_id: Mapped[CheckpointId]
    reference_checkpoint_id: Mapped[CheckpointId | None]
    reference_key: Mapped[int] = reference_key()
    protocol_id: Mapped[ProtocolId]
    curve: Mapped[str]
    direction_index: Mapped[int]
    position: Mapped[int]
    offset_value: Mapped[Real]
    mean: Mapped[Real | None]
    mean_kind: Mapped[Kind]
    variance: Mapped[Real | None]
    variance_kind: Mapped[Kind]
    n: Mapped[Big | None]


class SingularValue(Base):
    __tablename__ = "singular_value"
    __table_args__ = (
        sa.UniqueConstraint(
            "checkpoint_id", REFERENCE_KEY, "protocol_id", "matrix", "layer", "module", "position"
        ),
        one_of("matrix", "w", "dw"),
    )
    id: Mapped[BigId]
    checkpoint_id: Mapped[CheckpointId]
    reference_checkpoint_id: Mapped[CheckpointId | None]
    reference_key: Mapped[int] = reference_key()
    protocol_id: Mapped[ProtocolId]
    matrix: Mapped[str]
    layer: Mapped[int]
    module: Mapped[str]
    position: Mapped[int]
    value: Mapped[Real]


class DownstreamScore(Base):
    __tablename__ = "downstream_score"
    __table_args__ = (
        sa.UniqueConstraint("checkpoint_id", "protocol_id", "task", "metric", "filter"),
        sa.Index(None, "task", "metric"),
        result("value"),
        result("standard_error"),
    )
    id: Mapped[Id]
    checkpoint_id: Mapped[CheckpointId]
    protocol_id: Mapped[ProtocolId]
    task: Mapped[str]
    category: Mapped[str]
    metric: Mapped[str]
    filter: Mapped[str]
    value: Mapped[Real | None]
    value_kind: Mapped[Kind]
    standard_error: Mapped[Real | None]
    standard_error_kind: Mapped[Kind]
    n: Mapped[Big]
    chance: Mapped[Real | None]
    task_version: Mapped[str]
    harness_version: Mapped[str]
    note: Mapped[str]
    provenance_id: Mapped[ProvenanceId | None]


class DownstreamItem(Base):
    __tablename__ = "downstream_item"
    __table_args__ = (
        sa.UniqueConstraint("checkpoint_id", "protocol_id", "task", "metric", "item"),
        result("value"),
    )
    id: Mapped[BigId]
    checkpoint_id: Mapped[CheckpointId]
    protocol_id: Mapped[ProtocolId]
    task: Mapped[str]
    metric: Mapped[str]
    item: Mapped[str]
    value: Mapped[Real | None]
    value_kind: Mapped[Kind]


class PredictorFit(Base):
    __tablename__ = "predictor_fit"
    __table_args__ = (
        sa.UniqueConstraint(
            "study_id", "feature_set", "selection", "scheme", "model", "target", "input_hash"
        ),
    )
    id: Mapped[Id]
    study_id: Mapped[StudyId]
    feature_set: Mapped[str]
    features: Mapped[Json]
    selection: Mapped[str]
    scheme: Mapped[str]
    model: Mapped[str]
    target: Mapped[str]
    n: Mapped[int]
    n_excluded: Mapped[int]
    pearson: Mapped[Real | None]
    pearson_low: Mapped[Real | None]
    pearson_high: Mapped[Real | None]
    spearman: Mapped[Real | None]
    r2: Mapped[Real | None]
    r2_in_sample: Mapped[Real | None]
    ranking_accuracy: Mapped[Real | None]
    permutation_p: Mapped[Real | None]
    details: Mapped[Json]
    input_hash: Mapped[str]
    provenance_id: Mapped[ProvenanceId | None]


class Prediction(Base):
    __tablename__ = "prediction"
    __table_args__ = (sa.UniqueConstraint("fit_id", "row_label"),)
    id: Mapped[Id]
    fit_id: Mapped[FitId]
    row_label: Mapped[str]
    checkpoint_id: Mapped[CheckpointId | None]
    fold: Mapped[str]
    target: Mapped[Real]
    predicted: Mapped[Real]


class PublishedValue(Base):
    __tablename__ = "published_value"
    __table_args__ = (
        sa.UniqueConstraint("source", "source_table", "scale", "method", "quantity", "item"),
    )
    id: Mapped[Id]
    source: Mapped[str]
    source_table: Mapped[str]
    scale: Mapped[str]
    method: Mapped[str]
    quantity: Mapped[str]
    item: Mapped[str]
    value: Mapped[Real]
    standard_error: Mapped[Real | None]
    note: Mapped[str]


class WorkUnit(Base):
    __tablename__ = "work_unit"
    __table_args__ = (sa.UniqueConstraint("unit_key"), one_of("status", "claimed", "failed"))
    id: Mapped[Id]
    unit_key: Mapped[str]
    kind: Mapped[str]
    status: Mapped[str]
    owner: Mapped[str]
    lease_until: Mapped[Real | None]
    heartbeat_at: Mapped[Real | None]
    attempts: Mapped[int]
    error: Mapped[str]
    traceback: Mapped[Long]
    study_id: Mapped[StudyId | None]
