"""The contract of a metric family (lens): one file in this folder that defines ``LENS``.

A lens lists the comparisons of a study (a checkpoint, alone or against a reference), announces the
rows of each, and computes them: tensors in, numbers out. It uses neither the database nor files;
``lowrank.measure`` plans the work, loads checkpoints, stores results and resumes after a crash.
Whatever may differ between two ways of measuring is a field of ``Settings``; ``presets`` give
values to these fields.

The conformance suite (``tests/metrics``) checks these guarantees for every registered lens:

* ``compute`` yields exactly the rows that ``expected`` announces, and computing twice gives the
  same numbers;
* the model is the same afterwards, bit for bit, even if computing fails;
* a value that does not exist by definition is a row with value None and the reason, never a
  missing row.
"""

from __future__ import annotations

import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol, TypeVar

from pydantic import Field, PositiveInt

from lowrank.errors import LowrankError, UnknownNameError
from lowrank.geometry.estimate import ALONE as ALONE
from lowrank.geometry.estimate import Alone as Alone
from lowrank.geometry.estimate import Estimate as Estimate
from lowrank.geometry.estimate import EvaluationBatch as EvaluationBatch
from lowrank.geometry.estimate import Sharer as Sharer
from lowrank.measurements import CheckpointRef as CheckpointRef
from lowrank.measurements import Checkpoints as Checkpoints
from lowrank.measurements import Comparison as Comparison
from lowrank.measurements import Curve as Curve
from lowrank.measurements import Expected as Expected
from lowrank.measurements import Result as Result
from lowrank.measurements import Spectrum as Spectrum
from lowrank.measurements import Value as Value
from lowrank.positions import AGGREGATE_LAYER as AGGREGATE_LAYER
from lowrank.positions import ALL_MODULES as ALL_MODULES
from lowrank.positions import EMBEDDING_LAYER as EMBEDDING_LAYER
from lowrank.settings import Config

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from lowrank.checkpoint import Loaded
    from lowrank.geometry.probe import Losses

T = TypeVar("T")
OWN_PARAMETERS = "in the method's own parameters: it has no dense equivalent"
NO_DENSE = "the method has no dense equivalent; measure space: trained"
MODULES = ("q", "k", "v", "o", "gate", "up", "down")
"""Projection types: the target layers of a block without their suffix."""


class MetricError(LowrankError):
    """Raised when checkpoints or an evaluation set do not allow a metric to be computed."""


@dataclass(frozen=True)
class MetricInfo:
    """The declaration of a metric; the first five fields are for readers.

    ``better`` is the direction that is considered better, empty if there is none. ``role``:
    predictors may select a ``geometry`` metric as a feature; a ``loss``, on any text, is a feature
    only if it is named; a value of a ``pair`` of runs belongs to both and is never a feature of a
    checkpoint. ``column`` is the feature's name if it differs from the metric's.
    ``against_baseline`` marks a metric whose value for the baseline itself is fixed by definition.
    ``section`` is the chapter of the report that shows the metric.
    """

    name: str
    definition: str
    unit: str
    range: str
    source: str
    better: Literal["lower", "higher", ""] = ""
    role: Literal["geometry", "loss", "pair"] = "geometry"
    column: str = ""
    against_baseline: bool = False
    section: Literal["landscape", "barriers", "spectra", "activations", "further"] = "further"

    @property
    def feature(self) -> str:
        """The name of the aggregate in feature tables."""
        return self.column or self.name


class Context(Sharer, Protocol):
    """What a lens computes with.

    Checkpoints are loaded and verified once and stay in memory as long as tasks need them.
    """

    device: torch.device

    def loaded(self, checkpoint: CheckpointRef) -> Loaded:
        """Return a checkpoint's model and method.

        The model is in float32 on the CPU, in evaluation mode, and all its weights are finite.
        """

    def network(self, checkpoint: CheckpointRef, space: str) -> nn.Module | None:
        """Return a checkpoint's network on the device.

        ``space`` "trained" asks for the network as trained, "dense" for the equivalent plain LLaMA;
        None if there is none. A lens may change its weights temporarily and must restore them bit
        for bit.
        """

    def memo(self, checkpoint: CheckpointRef, key: str, compute: Callable[[], T]) -> T:
        """Return ``compute()``, cached under ``key`` as long as the checkpoint is."""

    def batches(self, unit: Comparison, rows: int) -> list[EvaluationBatch]:
        """Return the evaluation set on the device in batches of ``rows`` rows.

        Raises :class:`MetricError` if a checkpoint of ``unit`` has another tokenizer.
        """


SELECTION: dict[str, Any] = {"selection": True}


def selection(default: Any, **constraints: Any) -> Any:
    """Declare a setting that selects what is measured, or how fast, and never changes a value.

    It is not part of the protocol.
    """
    return Field(default, json_schema_extra=SELECTION, **constraints)


class LensSettings(Config):
    """The settings of every lens.

    A lens narrows ``precision``, that of its arithmetic, to what it offers.
    """

    precision: str


class PlainSettings(LensSettings):
    """The settings of a lens that declares none and needs no evaluation set."""

    precision: Literal["float32"] = "float32"


class TextSettings(LensSettings):
    """The settings of every lens that uses the evaluation set."""

    precision: Literal["float32"] = "float32"
    examples: PositiveInt | None = None  # rows of the evaluation set; None: as in the data section
    split: Literal["validation", "selection"] = "validation"  # which the rows are drawn from
    batch_rows: PositiveInt = 16  # rows of one forward pass


@dataclass(frozen=True)
class LensPreset:
    """A named way of measuring: the settings of one variant of a preset.

    ``name`` is that of the protocol, such as exact or exact/filter.
    """

    name: str
    settings: Mapping[str, Any] = field(default_factory=dict)


class Lens(ABC):
    """The base class of metric families.

    A subclass declares ``title`` and ``metrics`` and implements :meth:`compute`; everything else
    has defaults. Increase ``revision`` when a definition changes, so that new values never mix with
    old ones. ``Settings`` is a subclass of :class:`TextSettings` if the lens uses the evaluation
    set, and ``needs_data`` follows from it. ``presets`` maps each preset to its variants (label →
    settings), of which reports and predictors read ``main``. ``position`` orders the columns of
    wide tables: lower ones come first, equal ones by name.
    """

    revision: ClassVar[int] = 1
    position: ClassVar[int] = 100
    title: ClassVar[str]
    metrics: ClassVar[tuple[MetricInfo, ...]]
    Settings: ClassVar[type[LensSettings]] = PlainSettings
    presets: ClassVar[Mapping[str, Mapping[str, Mapping[str, Any]]]] = {
        "exact": {"main": {}},
        "published": {"main": {}},
    }
    needs_data: ClassVar[bool] = False

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls.needs_data = issubclass(cls.Settings, TextSettings)

    @classmethod
    def name(cls) -> str:
        """Return the lens's name, the stem of the file that defines it."""
        return cls.__module__.rpartition(".")[2]

    @classmethod
    def variants(cls, preset: str) -> list[LensPreset]:
        """Return the variants of a preset, the main one first.

        Raises :class:`UnknownNameError` for an unknown preset.
        """
        if preset not in cls.presets:
            raise UnknownNameError(f"preset of lens '{cls.name()}'", preset, cls.presets)
        found = cls.presets[preset].items()
        return [
            LensPreset(preset if label == "main" else f"{preset}/{label}", settings)
            for label, settings in found
        ]

    def units(self, checkpoints: Checkpoints, settings: Any) -> list[Comparison]:
        """Return the comparisons to compute, at most one per (checkpoint, reference).

        The default is every checkpoint by itself, without those of step 0 if the settings have a
        ``skip_initial`` that is True.
        """
        first = 1 if getattr(settings, "skip_initial", False) else 0
        return [
            Comparison(checkpoint)
            for run in checkpoints.runs()
            for checkpoint in run
            if checkpoint.step >= first
        ]

    def expected(self, unit: Comparison, settings: Any) -> Expected:
        """Return the keys of the rows that :meth:`compute` yields, without loading anything.

        The default is the aggregate of every metric.
        """
        return Expected(
            frozenset((info.name, AGGREGATE_LAYER, ALL_MODULES) for info in self.metrics)
        )

    @abstractmethod
    def compute(self, unit: Comparison, context: Context, settings: Any) -> Iterable[Result]:
        """Yield the rows of ``unit``.

        ``context`` gives checkpoints, networks and batches; ``settings`` is an instance of
        ``Settings``. Raises :class:`MetricError` if the checkpoints do not allow the metric.
        """


def merge_units(units: Iterable[Comparison]) -> list[Comparison]:
    """Merge comparisons of the same two checkpoints into one that has the roles of all.

    They are returned in the order of their first appearance.
    """
    merged: dict[tuple[int, int | None], Comparison] = {}
    for unit in units:
        key = (
            unit.checkpoint.checkpoint_id,
            unit.reference.checkpoint_id if unit.reference else None,
        )
        known = merged.get(key)
        merged[key] = Comparison(
            unit.checkpoint,
            unit.reference,
            (known.roles if known else frozenset()) | unit.roles,
            unit.blocked,
        )
    return list(merged.values())


def consecutive(
    checkpoints: Checkpoints, skip_initial: bool
) -> Iterable[tuple[CheckpointRef, CheckpointRef]]:
    """Yield each checkpoint with the previous one of its run.

    ``skip_initial`` omits step 0, as in the published rows.
    """
    for run in checkpoints.runs():
        kept = [p for p in run if p.step > 0 or not skip_initial]
        yield from zip(kept[1:], kept[:-1], strict=True)


def place(path: str) -> tuple[int, str]:
    """Return (layer, projection type) of a target layer, given its module path.

    Raises :class:`MetricError` for a path without a layer number.
    """
    parts = path.split(".")
    layer = next((int(part) for part in parts if part.isdigit()), None)
    if layer is None:
        raise MetricError(
            f"the target layer '{path}' has no layer number in its path; name layers as in model.layers.0.self_attn.q_proj"
        )
    return layer, parts[-1].removesuffix("_proj")


def base_losses(
    checkpoint: CheckpointRef,
    network: nn.Module,
    context: Context,
    batches: Sequence[EvaluationBatch],
) -> Losses:
    """Return the losses of a checkpoint's unchanged network.

    They are computed once for all lenses that use the same ``network`` and batches.
    """
    from lowrank.geometry.probe import row_losses

    content = 0
    for batch in batches:
        content = zlib.crc32(batch.input_ids.cpu().numpy().tobytes(), content)
    return context.memo(
        checkpoint,
        f"losses/{id(network)}/{content}/{len(batches)}",
        lambda: row_losses(network, batches),
    )


def parameters(network: nn.Module | None) -> dict[str, Tensor]:
    """Return the parameters of a network by name, without their gradients."""
    assert network is not None  # callers ask for a space that the checkpoint has
    return {name: p.data for name, p in network.named_parameters()}


def require_same_shapes(
    one: Mapping[str, Tensor], other: Mapping[str, Tensor], unit: Comparison
) -> None:
    """Raise :class:`MetricError` if two networks differ in names or shapes of parameters."""
    shapes: list[dict[str, Any]] = [
        {name: tuple(t.shape) for name, t in weights.items()} for weights in (one, other)
    ]
    if shapes[0] != shapes[1]:
        odd = min(
            name
            for name in shapes[0].keys() | shapes[1].keys()
            if shapes[0].get(name) != shapes[1].get(name)
        )
        raise MetricError(
            f"{unit.label}: the two checkpoints have different shapes ({odd}); compare models of one shape"
        )


# Names of version 0.1, which lenses of other packages import.
Panel, Point, Unit, Bench, Variant = Checkpoints, CheckpointRef, Comparison, Context, LensPreset
Batch, Spreader = EvaluationBatch, Sharer
