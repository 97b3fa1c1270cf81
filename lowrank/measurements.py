"""What a metric family is asked for and what it answers: checkpoints and their comparisons; values,
curves and spectra, and the keys of the rows that they become.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

from lowrank.positions import AGGREGATE_LAYER, ALL_MODULES


@dataclass(frozen=True)
class CheckpointRef:
    """A reference to a checkpoint, with what metric families need to know without loading it.

    ``last`` marks the final checkpoint of its run. ``layers`` is the number of transformer blocks,
    ``width`` the smaller side of the smallest target layer, and ``rank`` that of its factors, None
    if there are none. ``lengths`` has one (projection type, number of singular values of W, number
    of singular values of all factors of a layer) per projection type. ``has_dense`` is True if the
    method has a dense equivalent, ``baseline`` if other methods are compared with it.
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
    def recipe(self) -> str:
        """The method and its variant, which runs that differ only in their seed have in common."""
        return "-".join(part for part in (self.method, self.variant) if part)

    arm = recipe  # the name of 0.1

    @property
    def label(self) -> str:
        """The readable name: method, variant, scale, seed and step."""
        return f"{self.recipe}-{self.scale}-s{self.seed} step {self.step}"


@dataclass(frozen=True)
class Checkpoints:
    """The existing checkpoints of a study."""

    refs: tuple[CheckpointRef, ...]

    def runs(self) -> list[list[CheckpointRef]]:
        """Return the checkpoints of each run in ascending order of their steps."""
        grouped: dict[int, list[CheckpointRef]] = {}
        for checkpoint in sorted(
            self.refs, key=lambda p: (p.scale, p.recipe, p.seed, p.run_id, p.step)
        ):
            grouped.setdefault(checkpoint.run_id, []).append(checkpoint)
        return list(grouped.values())

    @property
    def points(self) -> tuple[CheckpointRef, ...]:
        """The name of ``refs`` in version 0.1."""
        return self.refs


@dataclass(frozen=True)
class Comparison:
    """A unit of work: a checkpoint, alone or against a reference.

    ``roles`` are labels by which a lens distinguishes what it computes. ``blocked`` is the reason
    why the comparison cannot be computed at present, for example because there is no reference run;
    empty if it can. ``others`` are further checkpoints that computing needs.
    """

    checkpoint: CheckpointRef
    reference: CheckpointRef | None = None
    roles: frozenset[str] = frozenset()
    blocked: str = ""
    others: tuple[CheckpointRef, ...] = ()

    @property
    def checkpoints(self) -> tuple[CheckpointRef, ...]:
        """All checkpoints that computing needs, the compared one last."""
        return (
            *self.others,
            *(() if self.reference is None else (self.reference,)),
            self.checkpoint,
        )

    points = checkpoints  # the name of 0.1

    @property
    def label(self) -> str:
        """The readable name."""
        return self.checkpoint.label + (
            f" against {self.reference.label}" if self.reference else ""
        )


@dataclass(frozen=True)
class Value:
    """One number. A value of None does not exist by definition; ``note`` gives the reason."""

    metric: str
    value: float | None
    layer: int = AGGREGATE_LAYER
    module: str = ALL_MODULES
    standard_error: float | None = None
    n: int | None = None
    note: str = ""


@dataclass(frozen=True)
class Curve:
    """One curve: mean losses at ascending offsets, in nats per token.

    ``variances`` are those over directions, and ``n`` is the number of samples (directions, or rows
    of the evaluation set). ``direction_index`` -1 denotes the mean over directions.
    """

    curve: str
    offsets: Sequence[float]
    means: Sequence[float]
    variances: Sequence[float] | None = None
    n: int | None = None
    direction_index: int = -1


@dataclass(frozen=True)
class Spectrum:
    """The singular values of a matrix ('w': W, 'dw': ΔW), in descending order."""

    matrix: str
    layer: int
    module: str
    values: Sequence[float]


Result = Value | Curve | Spectrum


@dataclass(frozen=True)
class Expected:
    """The keys of the rows of a comparison.

    ``values`` has (metric, layer, module), ``points`` the (curve, direction, position) of curves,
    and ``spectra`` (matrix, layer, module, number of singular values).
    """

    values: frozenset[tuple[str, int, str]] = frozenset()
    points: frozenset[tuple[str, int, int]] = frozenset()
    spectra: frozenset[tuple[str, int, str, int]] = frozenset()

    @classmethod
    def of(cls, results: Iterable[Result]) -> Expected:
        """Return the keys of computed results."""
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
        """Iterate over all keys."""
        return chain(self.values, self.points, self.spectra)
