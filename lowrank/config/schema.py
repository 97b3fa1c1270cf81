"""The sections of a study file as frozen models; unknown keys and wrong types are errors.

A field marked ``weightless`` cannot change a bit of the trained weights and is excluded from a
run's hash; a field marked ``younger`` is included only where it differs from its default.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import (
    Field,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Strict,
)

from lowrank.settings import (
    WEIGHTLESS as WEIGHTLESS,
)
from lowrank.settings import (
    YOUNGER as YOUNGER,
)
from lowrank.settings import (
    Config as Config,
)
from lowrank.settings import (
    Fraction as Fraction,
)
from lowrank.settings import (
    Integers as Integers,
)
from lowrank.settings import (
    Names as Names,
)
from lowrank.settings import (
    Precision as Precision,
)
from lowrank.settings import (
    Training as Training,
)
from lowrank.settings import (
    weightless as weightless,
)
from lowrank.settings import (
    younger as younger,
)

Preset = Literal["exact", "published"]


class ModelShape(Config):
    """A LLaMA shape; ``rank`` is the scale's default rank for every low-rank method."""

    hidden_size: PositiveInt
    intermediate_size: PositiveInt
    num_hidden_layers: PositiveInt
    num_attention_heads: PositiveInt
    rank: PositiveInt
    initializer_range: PositiveFloat = 0.02
    rms_norm_eps: PositiveFloat = 1e-6
    rope_theta: PositiveFloat = 10_000.0


class Data(Config):
    """Where the text comes from, and how it becomes rows of ``max_length`` tokens."""

    source: str = "embedded"  # embedded | c4 | huggingface | text | jsonl | parquet | arrow
    path: str | None = (
        None  # file, glob or folder of a local source; name of a Hugging Face dataset
    )
    subset: str | None = None  # configuration name of a Hugging Face dataset
    revision: str | None = (
        None  # of a Hugging Face dataset; None: the newest, then what was resolved first offline
    )
    text_field: str = "text"
    separator: Annotated[str, Field(min_length=1)] | None = (
        None  # between documents of a text file; None: blank lines
    )
    tokenizer: str | None = (
        None  # name or folder; None: the source's own (trained for local text, t5-base for c4)
    )
    vocabulary_size: PositiveInt | None = (
        None  # of a trained tokenizer, or rows of the embedding for a given one
    )
    max_length: Annotated[int, Field(ge=2)] = 256
    layout: Literal["packed", "padded"] = "packed"
    validation_fraction: Annotated[float, Field(gt=0.0, lt=0.5)] = 0.02
    validation_tokens: PositiveInt = weightless(
        10_000_000
    )  # of the validation split, evaluated at every checkpoint
    evaluation_examples: PositiveInt = weightless(
        1000
    )  # rows of the fixed set that the metrics use
    evaluation_seed: NonNegativeInt = weightless(0)
    seed: NonNegativeInt | None = None  # order of the training rows; None: the run's seed
    order_per_method: bool = False  # as published: the order differs between methods
    shuffle_buffer: PositiveInt = 10_000  # documents, for streamed sources


class Overrides(Config):
    """What an entry of a study changes in the recipe.

    On loading, the keys are validated against the sections of the recipe.
    """

    training: dict[str, Any] = {}
    settings: dict[str, Any] = {}  # of the method


class MethodEntry(Overrides):
    """One method of a study.

    Each of its ``variants`` is a recipe under a label, for example the points of a learning-rate
    sweep; the entry itself holds what they share, and ``label: {}`` is the entry unchanged.
    """

    scales: dict[str, Overrides] = {}
    variants: dict[str, Overrides] = {}


class ScaleEntry(Config):
    """One scale of a study; ``shape`` defines a scale that is not built in."""

    training: dict[str, Any] = {}
    shape: ModelShape | None = None
    seeds: Integers | None = None  # None: the study's


class MetricEntry(Config):
    """One metric family (lens) under one protocol: the settings of a preset, with overrides."""

    lens: str
    preset: str | None = None  # None: the study's
    variants: Names | None = None  # of the preset, such as main; None: all of them
    every: PositiveInt = 1  # measure every n-th checkpoint of a run, counted back from its last
    settings: dict[str, Any] = {}


class Downstream(Config):
    """Which checkpoints are evaluated downstream, on which suites, and how."""

    suites: Names = ("embedded",)  # embedded | published
    tasks: Names = ()  # of the suites; empty: all
    limit: PositiveInt | None = None  # leading items of each task; None: all
    batch_size: PositiveInt = 32  # rows per forward pass; recorded, since scores depend on it
    bootstrap: PositiveInt = 1000  # for those of the harness's metrics that are not means
    every: PositiveInt | None = (
        1  # every n-th checkpoint of a run, counted back from its last; None: the last alone
    )
    initial: bool = False  # whether to evaluate step 0, too
    items: Literal["all", "final", "none"] | None = (
        None  # checkpoints whose single items are stored; None: the suite's
    )
    data_dir: str | None = None  # files fetched beforehand; None: from the hub


class Slurm(Config):
    """The resources that jobs of ``--launcher slurm`` request.

    A training run gets all of them; measuring and evaluating jobs get one node and one GPU each.
    """

    cluster: Literal["slurm", "local"] = (
        "slurm"  # local: processes on this machine instead of jobs, for testing
    )
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    nodes: PositiveInt = 1
    gpus_per_node: NonNegativeInt = 1
    cpus_per_task: PositiveInt = 8
    memory_gb: PositiveInt | None = None
    timeout_minutes: PositiveInt = 1440
    resubmit: NonNegativeInt = 3  # times that jobs which ended with work left are submitted again
    accelerate: Names = ()  # further arguments of accelerate launch
    additional: dict[str, Any] = {}  # further parameters of sbatch, such as constraint: a100


class Keep(Config):
    """Which checkpoints keep their weights on disk once no missing result needs them.

    ``lowrank doctor --fix`` deletes the other weights.
    """

    checkpoints: Literal["all", "final"] = "all"
    every: PositiveInt = 1  # with all: every k-th checkpoint of a run, counted back from its last
    weights_only: bool = False  # also delete resume points of failed and cancelled runs


class Study(Config):
    """The contents of a study file."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")]
    description: str = ""
    preset: Preset = "exact"
    output: str | None = None  # folder of the study; None: outputs/<name>
    methods: dict[str, MethodEntry]
    scales: dict[str, ScaleEntry]
    seeds: Integers = (0,)
    data: dict[str, Any] = {}
    training: dict[str, Any] = {}
    metrics: Annotated[tuple[MetricEntry, ...], Strict(False)] = ()
    downstream: Downstream | None = None  # None: no stage evaluate
    slurm: Slurm | None = None
    keep: Keep = Keep()
