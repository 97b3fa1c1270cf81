"""What the store takes and gives: frozen dataclasses, one for each table, free of SQLAlchemy.

``key`` names the natural key of a record; two stores are the same when natural keys and values
agree, whatever the autoincrement ids. ``volatile`` names what may differ between two computations
of the same thing (timing, memory, provenance) and is never compared. Float fields may be nan or
infinite: the store keeps value and kind in two columns.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

from lowrank.positions import AGGREGATE_LAYER as AGGREGATE_LAYER
from lowrank.positions import ALL_MODULES as ALL_MODULES
from lowrank.positions import EMBEDDING_LAYER as EMBEDDING_LAYER

Json = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Record:
    """Base of all records; ``id`` is None until the store has given one."""

    key: ClassVar[tuple[str, ...]]
    volatile: ClassVar[frozenset[str]] = frozenset()
    mutable: ClassVar[frozenset[str]] = frozenset()
    id: int | None = field(default=None, compare=False)


@dataclass(frozen=True, kw_only=True)
class Study(Record):
    """A study file under its name; editing the file (more seeds, say) updates the row and extends
    the study.
    """

    key = ("name",)
    mutable = frozenset({"config", "config_hash", "root"})
    volatile = frozenset({"root"})
    name: str
    config: Json
    config_hash: str
    root: str = ""  # folder that checkpoint paths are relative to, as last used on some machine


@dataclass(frozen=True, kw_only=True)
class Provenance(Record):
    """Code and machine behind a value."""

    key = ("hash",)
    hash: str
    lowrank_version: str
    git_commit: str
    library_versions: Json
    device: str
    threads: int


@dataclass(frozen=True, kw_only=True)
class Run(Record):
    """One training run (or an imported one). ``config_hash`` covers what changes the weights and
    nothing else.
    """

    key = ("study_id", "config_hash")
    mutable = frozenset(
        {
            "status",
            "attempts",
            "error",
            "traceback",
            "failed_step",
            "last_finite_loss",
            "world_size",
            "init_hash",
            "parameters_total",
            "parameters_trainable",
            "parameter_bytes",
            "gradient_bytes",
            "optimizer_state_bytes",
            "peak_memory_bytes",
            "dataset_fingerprint",
            "tokenizer_hash",
            "provenance_id",
            "train_seconds",
            "config",
        }
    )
    volatile = frozenset(
        {"peak_memory_bytes", "provenance_id", "train_seconds", "attempts", "config", "traceback"}
    )
    study_id: int
    config_hash: str
    method: str
    scale: str
    seed: int
    data_seed: int
    init_seed: int
    variant: str = ""  # label of a recipe variation within the study ('' where there is none)
    kind: str = "trained"  # trained | imported
    status: str = "planned"  # planned | running | done | failed | cancelled
    rank: int | None = None
    config: Json = field(default_factory=dict)
    base_learning_rate: float | None = None
    # Learning rate times the scale of the method's update.
    effective_learning_rate: float | None = None
    total_steps: int = 0
    precision: str = "float32"
    world_size: int = 1
    attempts: int = 0
    error: str = ""
    traceback: str = ""  # of an unexpected exception; '' for any other end
    failed_step: int | None = None  # update whose loss or gradient was not finite
    last_finite_loss: float | None = None
    init_hash: str = ""  # equal for runs that start from the same effective weights
    parameters_total: int | None = None
    parameters_trainable: int | None = None
    parameter_bytes: int | None = None
    gradient_bytes: int | None = None
    optimizer_state_bytes: int | None = None
    peak_memory_bytes: int | None = None
    train_seconds: float | None = None
    dataset_fingerprint: str = ""
    tokenizer_hash: str = ""
    provenance_id: int | None = None


@dataclass(frozen=True, kw_only=True)
class EvaluationSet(Record):
    """A fixed set of rows of tokens, known by the hash of its content."""

    key = ("sha256",)
    name: str
    dataset_fingerprint: str
    split: str
    seed: int
    examples: int
    tokens: int  # scored target tokens
    max_length: int
    packing: bool
    tokenizer_hash: str
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Checkpoint(Record):
    """Weights at a step. ``path`` is relative to the study's root; ``validation_loss`` is in nats
    per token.
    """

    key = ("run_id", "step")
    run_id: int
    step: int
    kind: str  # initial | training | final | imported
    tokens_seen: int
    path: str
    sha256: str  # of the weights
    bytes: int
    validation_loss: float | None = None
    validation_tokens: int = 0
    evaluation_set_id: int | None = None


@dataclass(frozen=True, kw_only=True)
class TrainingLog(Record):
    """One point of the training curve; ``loss`` is in nats per token, of the update's batch."""

    key = ("run_id", "step")
    volatile = frozenset({"tokens_per_second"})
    run_id: int
    step: int
    loss: float
    learning_rate: float
    gradient_norm: float | None = None
    tokens_seen: int = 0
    tokens_per_second: float | None = None


@dataclass(frozen=True, kw_only=True)
class Protocol(Record):
    """The way in which a value was made; ``parameters_hash`` covers every other field.

    The version of the code is provenance, not protocol.
    """

    key = ("parameters_hash",)
    name: str  # exact | published | …
    lens: str
    metric_revision: int
    space: str = ""  # trained | dense | factor | '' where it does not apply
    normalization: str = ""
    evaluation_set_id: int | None = None
    direction_seed: int | None = None
    precision: str = ""
    parameters: Json = field(default_factory=dict)
    parameters_hash: str = ""  # set by the store, which has the evaluation set's content hash


@dataclass(frozen=True, kw_only=True)
class MetricValue(Record):
    """One number of one checkpoint. ``value`` None means absent by definition;
    ``note`` states the reason.
    """

    key = ("checkpoint_id", "reference_checkpoint_id", "protocol_id", "metric", "layer", "module")
    volatile = frozenset({"provenance_id"})
    checkpoint_id: int
    protocol_id: int
    metric: str
    reference_checkpoint_id: int | None = None
    layer: int = AGGREGATE_LAYER
    module: str = ALL_MODULES
    value: float | None
    standard_error: float | None = None
    n: int | None = None  # directions, positions, matrices … behind the value
    note: str = ""
    provenance_id: int | None = None


@dataclass(frozen=True, kw_only=True)
class CurvePoint(Record):
    """One point of a curve along a direction (``direction_index`` -1: mean over directions)."""

    key = (
        "checkpoint_id",
        "reference_checkpoint_id",
        "protocol_id",
        "curve",
        "direction_index",
        "position",
    )
    checkpoint_id: int
    protocol_id: int
    curve: str
    reference_checkpoint_id: int | None = None
    direction_index: int = -1
    position: int
    offset_value: float
    mean: float
    variance: float | None = None
    n: int | None = None


@dataclass(frozen=True, kw_only=True)
class SingularValue(Record):
    """One singular value of W ('w') or of ΔW(last, first) ('dw'); position 0 is the largest."""

    key = (
        "checkpoint_id",
        "reference_checkpoint_id",
        "protocol_id",
        "matrix",
        "layer",
        "module",
        "position",
    )
    checkpoint_id: int
    protocol_id: int
    matrix: str
    layer: int
    module: str
    position: int
    value: float
    reference_checkpoint_id: int | None = None


@dataclass(frozen=True, kw_only=True)
class DownstreamScore(Record):
    """One metric of one task for one checkpoint."""

    key = ("checkpoint_id", "protocol_id", "task", "metric", "filter")
    volatile = frozenset({"provenance_id"})
    checkpoint_id: int
    protocol_id: int
    task: str
    category: str
    metric: str
    filter: str = "none"
    value: float | None
    standard_error: float | None = None
    n: int = 0
    chance: float | None = None
    task_version: str = ""
    harness_version: str = ""
    note: str = ""
    provenance_id: int | None = None


@dataclass(frozen=True, kw_only=True)
class DownstreamItem(Record):
    """The value of one item of a task, for paired comparison of checkpoints."""

    key = ("checkpoint_id", "protocol_id", "task", "metric", "item")
    checkpoint_id: int
    protocol_id: int
    task: str
    metric: str
    item: str  # hash of the item's content
    value: float


@dataclass(frozen=True, kw_only=True)
class PredictorFit(Record):
    """One cross-validated fit; ``input_hash`` covers the rows it saw, so that new rows make a new
    fit.
    """

    key = ("study_id", "feature_set", "selection", "scheme", "model", "target", "input_hash")
    volatile = frozenset({"provenance_id"})
    study_id: int
    feature_set: str
    features: Json  # {"names": […], "per_fold": …}
    selection: str
    scheme: str  # loso | lomo | loro | loseo
    model: str
    target: str
    n: int
    n_excluded: int = 0
    pearson: float | None = None
    pearson_low: float | None = None
    pearson_high: float | None = None
    spearman: float | None = None
    r2: float | None = None
    r2_in_sample: float | None = None
    ranking_accuracy: float | None = None
    permutation_p: float | None = None
    details: Json = field(default_factory=dict)
    input_hash: str
    provenance_id: int | None = None


@dataclass(frozen=True, kw_only=True)
class Prediction(Record):
    """The out-of-fold prediction of one row."""

    key = ("fit_id", "row_label")
    fit_id: int
    row_label: str
    checkpoint_id: int | None = None
    fold: str
    target: float
    predicted: float


@dataclass(frozen=True, kw_only=True)
class PublishedValue(Record):
    """A number of the literature, with its source."""

    key = ("source", "source_table", "scale", "method", "quantity", "item")
    source: str
    source_table: str
    scale: str
    method: str
    quantity: str
    item: str
    value: float
    standard_error: float | None = None
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class WorkUnit(Record):
    """A claimed or failed unit of work; a finished one has results and no row here."""

    key = ("unit_key",)
    mutable = frozenset(
        {"status", "owner", "lease_until", "heartbeat_at", "attempts", "error", "traceback"}
    )
    volatile = frozenset({"traceback"})
    unit_key: str
    kind: str
    status: str  # claimed | failed
    owner: str = ""
    lease_until: float | None = None  # seconds since the epoch, of the database's clock
    heartbeat_at: float | None = None
    attempts: int = 0
    error: str = ""
    traceback: str = ""  # of an unexpected exception
    study_id: int | None = None
