"""Base class of validated settings, and the section ``training`` of a study file.

Every section of a study file and the settings of every method and metric family subclass
:class:`Config`. A field marked ``weightless`` cannot change a bit of the trained weights and is
excluded from a run's hash; a field marked ``younger`` is included only where it differs from its
default.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Strict,
)

Precision = Literal["float32", "bfloat16_autocast", "pure_bfloat16"]
Names = Annotated[tuple[str, ...], Strict(False)]
Integers = Annotated[tuple[int, ...], Strict(False)]
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
WEIGHTLESS: dict[str, Any] = {"weightless": True}
YOUNGER: dict[str, Any] = {"younger": True}


def weightless(default: Any, **constraints: Any) -> Any:
    """Declare a field that changes what is recorded, never the trained weights."""
    return Field(default, json_schema_extra=WEIGHTLESS, **constraints)


def younger(default: Any, **constraints: Any) -> Any:
    """Declare a field that was added after runs had been stored.

    At its default the field is excluded from the hash, so that stored runs keep their hashes.
    """
    return Field(default, json_schema_extra=YOUNGER, **constraints)


class Config(BaseModel):
    """Base class of every section: frozen, with strict types, and without unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Training(Config):
    """The training recipe of a run.

    Update k = 1, 2, … consumes ``batch_size`` rows and uses the learning rate ``learning_rate`` ·
    factor(k).
    """

    steps: PositiveInt = 300
    batch_size: PositiveInt = 8  # rows per update, over all processes
    micro_batch_size: PositiveInt | None = (
        None  # rows per forward pass; None: as many as divide evenly among the processes
    )
    learning_rate: PositiveFloat
    untargeted_learning_rate: PositiveFloat | None = (
        None  # of embeddings, norms and head; None: learning_rate
    )
    warmup_steps: NonNegativeInt | None = None  # None: warmup_fraction of the steps
    warmup_fraction: Fraction = 0.1
    min_lr_ratio: Fraction = 0.1
    betas: Annotated[tuple[float, float], Strict(False)] = (0.9, 0.999)
    eps: PositiveFloat = 1e-8
    weight_decay: Annotated[float, Field(ge=0.0)] = 0.0
    max_grad_norm: PositiveFloat | None = None
    precision: Precision = "float32"
    compile: bool = False
    gradient_checkpointing: bool = weightless(False)
    per_layer_updates: bool = weightless(
        False
    )  # each parameter is updated within the backward pass and its gradient is freed at once
    state_bits: Literal[32, 8] = younger(
        32
    )  # of the optimizer's moments; 32: the precision of the weights, 8: quantised in blocks
    loss_average: Literal["tokens", "micro_batches"] = (
        "tokens"  # published: mean of the micro-batch means
    )
    schedule_lag: NonNegativeInt = 0  # published: 1, update k uses factor(k - 1)
    extra_updates: NonNegativeInt = 0  # published: 1, one update more than requested
    validation_average: Literal["tokens", "published"] = weightless(
        "tokens"
    )  # published: batch means, n/(n+1) of the truth
    checkpoint_every: PositiveInt | None = weightless(None)  # None: a tenth of the steps
    resume_every: PositiveInt | None = weightless(None)  # None: at every checkpoint
    log_every: PositiveInt = weightless(1)
    evaluation_batch_size: PositiveInt = weightless(32)
    trackers: Names = weightless(())  # of Accelerate, such as tensorboard

    @property
    def warmup(self) -> int:
        """Number of updates of linear warm-up."""
        return (
            round(self.warmup_fraction * self.steps)
            if self.warmup_steps is None
            else self.warmup_steps
        )

    @property
    def updates(self) -> int:
        """Number of optimizer updates that the run makes."""
        return self.steps + self.extra_updates

    def checkpoint_steps(self) -> list[int]:
        """Return the steps at which weights are saved: 0, every ``checkpoint_every``, and the
        last.
        """
        every = self.checkpoint_every or max(1, self.steps // 10)
        return sorted({0, *range(every, self.updates + 1, every), self.updates})
