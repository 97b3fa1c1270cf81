"""The contract of a metric lens: one family of metrics, one file in this folder with a class
``LENS``.

A lens says which (checkpoint, reference) units a study has, which rows each unit gives, and
computes them: tensors in, numbers out. It knows neither the database nor the files;
``lowrank.measure`` plans, loads, stores and survives being killed. What may differ between two ways
of measuring is a field of ``Settings``; ``presets`` are data over these fields.

Guarantees that the conformance suite (``tests/metrics``) holds every registered lens to:

* ``compute`` yields exactly the rows that ``expected`` announces, and computing twice gives the
  same numbers;
* the model is left bit for bit as it was, also when computing fails;
* what does not exist by definition is a row with value None and the reason, never a missing row.
"""

from __future__ import annotations

import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol, TypeVar

from pydantic import Field, PositiveInt

from lowrank.errors import LowrankError, UnknownNameError
from lowrank.geometry.estimate import (
    ALONE as ALONE,
)
from lowrank.geometry.estimate import (
    Alone as Alone,
)
from lowrank.geometry.estimate import (
    Batch as Batch,
)
from lowrank.geometry.estimate import (
    Estimate as Estimate,
)
from lowrank.geometry.estimate import (
    Spreader as Spreader,
)
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
    """A checkpoint, a pair of checkpoints or an evaluation set that a metric cannot
    be computed on.
    """


@dataclass(frozen=True)
class MetricInfo:
    """What a metric is, for people; ``better`` says which way the field reads it, where there is
    one.
    """

    name: str
    definition: str
    unit: str
    range: str
    source: str
    better: Literal["lower", "higher", ""] = ""


@dataclass(frozen=True)
class Point:
    """A checkpoint as lenses see it. ``last`` marks the final one of its run.

    ``width`` is the smaller side of the smallest target layer, ``rank`` that of its factors where
    there are any; ``lengths`` has the numbers of singular values: (projection type, of W, of all
    factors of a layer together). ``has_dense`` and ``baseline`` are capabilities of its method: a
    dense equivalent, being what others are compared with.
    """

    checkpoint_id: int
    run_id: int
    method: str
    scale: str
    seed: int
    step: int
    layers: int
    width: int = 1 << 30
    rank: int | None = None
    has_dense: bool = True
    baseline: bool = False
    last: bool = False
    variant: str = ""
    init_hash: str = ""
    tokenizer_hash: str = ""
    lengths: tuple[tuple[str, int, int], ...] = ()

    @property
    def arm(self) -> str:
        """Method and recipe variation: what two runs of different seeds may share."""
        return "-".join(part for part in (self.method, self.variant) if part)

    @property
    def label(self) -> str:
        """A readable name: method, variant, scale, seed and step."""
        return f"{self.arm}-{self.scale}-s{self.seed} step {self.step}"


@dataclass(frozen=True)
class Panel:
    """The checkpoints of a study that exist, by run and step."""

    points: tuple[Point, ...]

    def runs(self) -> list[list[Point]]:
        """The points of each run in the order of their steps."""
        grouped: dict[int, list[Point]] = {}
        for point in sorted(self.points, key=lambda p: (p.scale, p.arm, p.seed, p.run_id, p.step)):
            grouped.setdefault(point.run_id, []).append(point)
        return list(grouped.values())


@dataclass(frozen=True)
class Unit:
    """One piece of work: a checkpoint, alone or against a reference. ``roles`` say what for, in the
    lens's own words.

    ``blocked`` is the reason why the unit cannot be computed as things stand (a reference run that
    does not exist); ``others`` are further checkpoints that computing needs.
    """

    checkpoint: Point
    reference: Point | None = None
    roles: frozenset[str] = frozenset()
    blocked: str = ""
    others: tuple[Point, ...] = ()

    @property
    def points(self) -> tuple[Point, ...]:
        """The checkpoints that computing needs."""
        return (
            *self.others,
            *(() if self.reference is None else (self.reference,)),
            self.checkpoint,
        )

    @property
    def label(self) -> str:
        """A readable name."""
        return self.checkpoint.label + (
            f" against {self.reference.label}" if self.reference else ""
        )


@dataclass(frozen=True)
class Value:
    """One number; ``value`` None means absent by definition, and ``note`` says why."""

    metric: str
    value: float | None
    layer: int = AGGREGATE_LAYER
    module: str = ALL_MODULES
    standard_error: float | None = None
    n: int | None = None
    note: str = ""


@dataclass(frozen=True)
class Curve:
    """Points of one curve in the order of their offsets; ``direction_index`` -1 is the mean over
    directions.
    """

    curve: str
    offsets: Sequence[float]
    means: Sequence[float]
    variances: Sequence[float] | None = None
    n: int | None = None
    direction_index: int = -1


@dataclass(frozen=True)
class Spectrum:
    """Singular values of a matrix, largest first; ``matrix`` is 'w' or 'dw'."""

    matrix: str
    layer: int
    module: str
    values: Sequence[float]


Result = Value | Curve | Spectrum


@dataclass(frozen=True)
class Expected:
    """The rows of a unit: (metric, layer, module) of values, (curve, direction, position) of curve
    points and (matrix, layer, module, number of singular values) of spectra.
    """

    values: frozenset[tuple[str, int, str]] = frozenset()
    points: frozenset[tuple[str, int, int]] = frozenset()
    spectra: frozenset[tuple[str, int, str, int]] = frozenset()

    @classmethod
    def of(cls, results: Iterable[Result]) -> Expected:
        """The keys of computed results."""
        results = list(results)
        return cls(
            frozenset((r.metric, r.layer, r.module) for r in results if isinstance(r, Value)),
            frozenset(
                (r.curve, r.direction_index, i)
                for r in results
                if isinstance(r, Curve)
                for i in range(len(r.offsets))
            ),
            frozenset(
                (r.matrix, r.layer, r.module, len(r.values))
                for r in results
                if isinstance(r, Spectrum)
            ),
        )

    def __or__(self, other: Expected) -> Expected:
        return Expected(
            self.values | other.values, self.points | other.points, self.spectra | other.spectra
        )

    def __and__(self, other: Expected) -> Expected:
        return Expected(
            self.values & other.values, self.points & other.points, self.spectra & other.spectra
        )

    def __sub__(self, other: Expected) -> Expected:
        return Expected(
            self.values - other.values, self.points - other.points, self.spectra - other.spectra
        )

    def __bool__(self) -> bool:
        return bool(self.values or self.points or self.spectra)

    def __iter__(self) -> Iterator[tuple[Any, ...]]:
        """All keys."""
        return chain(self.values, self.points, self.spectra)


class Bench(Spreader, Protocol):
    """What computing may ask for; checkpoints are loaded and verified once and stay as long as work
    needs them.
    """

    device: torch.device

    def loaded(self, point: Point) -> Loaded:
        """The checkpoint's model (float32, on the CPU, evaluation mode) and method; every weight is
        finite.
        """

    def network(self, point: Point, space: str) -> nn.Module | None:
        """The checkpoint as a network on the device: as trained, or (``space`` dense) as the
        equivalent plain LLaMA, None where there is none. Its weights may be changed for a while and
        must come back bit for bit.
        """

    def memo(self, point: Point, key: str, compute: Callable[[], T]) -> T:
        """``compute()``, kept as long as the checkpoint is."""

    def batches(self, unit: Unit, rows: int) -> list[Batch]:
        """The evaluation set on the device in batches of ``rows`` rows; raises where a checkpoint
        of the unit has another tokenizer.
        """


SELECTION: dict[str, Any] = {"selection": True}


def selection(default: Any, **constraints: Any) -> Any:
    """A setting that selects what is measured or how fast, and cannot change a value: it stays out
    of the protocol.
    """
    return Field(default, json_schema_extra=SELECTION, **constraints)


class LensSettings(Config):
    """What every lens may be told; a lens narrows ``precision``, that of its arithmetic, to what it
    offers.
    """

    precision: str


class TextSettings(LensSettings):
    """What every lens that uses the evaluation set may be told."""

    precision: Literal["float32"] = "float32"
    examples: PositiveInt | None = None  # rows of the evaluation set; None: as the study's data say
    split: Literal["validation", "selection"] = "validation"  # that the rows are drawn from
    batch_rows: PositiveInt = 16  # rows of one forward pass


@dataclass(frozen=True)
class Variant:
    """One named way of measuring: a preset's settings, ``name`` such as exact or exact/filter."""

    name: str
    settings: Mapping[str, Any] = field(default_factory=dict)


class Lens(ABC):
    """Base of all lenses. ``Settings`` is a :class:`TextSettings` where the lens ``needs_data``.

    ``revision`` rises when a definition changes, so that new values never mix with old ones.
    ``presets`` maps a preset to its variants: label → settings, where ``main`` is the one that
    reports and predictors read.
    """

    revision: ClassVar[int] = 1
    title: ClassVar[str]
    metrics: ClassVar[tuple[MetricInfo, ...]]
    Settings: ClassVar[type[LensSettings]]
    presets: ClassVar[Mapping[str, Mapping[str, Mapping[str, Any]]]]
    needs_data: ClassVar[bool] = True

    @classmethod
    def name(cls) -> str:
        """The stem of the file that defines the lens."""
        return cls.__module__.rpartition(".")[2]

    @classmethod
    def variants(cls, preset: str) -> list[Variant]:
        """The ways of measuring of a preset, the main one first; an unknown preset raises."""
        if preset not in cls.presets:
            raise UnknownNameError(f"preset of lens '{cls.name()}'", preset, cls.presets)
        found = cls.presets[preset].items()
        return [
            Variant(preset if label == "main" else f"{preset}/{label}", settings)
            for label, settings in found
        ]

    @abstractmethod
    def units(self, panel: Panel, settings: Any) -> list[Unit]:
        """The (checkpoint, reference) units of the panel; at most one of the same
        two checkpoints.
        """

    @abstractmethod
    def expected(self, unit: Unit, settings: Any) -> Expected:
        """The rows that :meth:`compute` gives for ``unit``; called without loading anything."""

    @abstractmethod
    def compute(self, unit: Unit, bench: Bench, settings: Any) -> Iterable[Result]:
        """The rows of ``unit``. Raises :class:`MetricError` where the checkpoints do not allow
        them.
        """


def merge_units(units: Iterable[Unit]) -> list[Unit]:
    """Units of the same two checkpoints become one with all roles, in the order of their first
    appearance.
    """
    merged: dict[tuple[int, int | None], Unit] = {}
    for unit in units:
        key = (
            unit.checkpoint.checkpoint_id,
            unit.reference.checkpoint_id if unit.reference else None,
        )
        known = merged.get(key)
        merged[key] = Unit(
            unit.checkpoint,
            unit.reference,
            (known.roles if known else frozenset()) | unit.roles,
            unit.blocked,
        )
    return list(merged.values())


def consecutive(panel: Panel, skip_initial: bool) -> Iterable[tuple[Point, Point]]:
    """(checkpoint, previous checkpoint of its run); ``skip_initial`` leaves step 0 out, as the
    published rows do.
    """
    for run in panel.runs():
        kept = [p for p in run if p.step > 0 or not skip_initial]
        yield from zip(kept[1:], kept[:-1], strict=True)


def place(path: str) -> tuple[int, str]:
    """(layer, projection type) of a target layer's module path."""
    parts = path.split(".")
    layer = next((int(part) for part in parts if part.isdigit()), None)
    if layer is None:
        raise MetricError(f"the target layer '{path}' has no layer number in its path")
    return layer, parts[-1].removesuffix("_proj")


def base_losses(point: Point, network: nn.Module, bench: Bench, batches: Sequence[Batch]) -> Losses:
    """Losses of a checkpoint as it is, computed once for all lenses that use ``network``."""
    from lowrank.geometry.probe import row_losses

    content = 0
    for batch in batches:
        content = zlib.crc32(batch.input_ids.cpu().numpy().tobytes(), content)
    return bench.memo(
        point,
        f"losses/{id(network)}/{content}/{len(batches)}",
        lambda: row_losses(network, batches),
    )


def parameters(network: nn.Module | None) -> dict[str, Tensor]:
    """Return the parameters of a network by name, without their gradients."""
    assert network is not None  # callers ask for a space that the checkpoint has
    return {name: p.data for name, p in network.named_parameters()}


def require_same_shapes(one: Mapping[str, Tensor], other: Mapping[str, Tensor], unit: Unit) -> None:
    """Raise where two networks differ in the names or shapes of their parameters."""
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
