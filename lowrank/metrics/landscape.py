"""The loss around a checkpoint, along random directions, singular components and the trajectory.

Offsets are applied in float32 to a pristine copy, so that no error accumulates, and the weights are
restored bit for bit. Directions come from recorded seeds. The published grid has 12 offsets on each
side, but the sharpness needs only a Gauss rule on them: S(a) = ½[L(θ+ad)+L(θ-ad)]-L(θ) is even with
S(0) = 0, and a rule of q nodes gives the grid's mean exactly for S = c₁a² + … + c_{2q}a^{4q}.
``nodes: 0`` evaluates every offset of the grid.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import Annotated, Literal

import numpy as np
import torch
from pydantic import NonNegativeInt, PositiveFloat, PositiveInt, Strict

from lowrank.geometry.directions import (
    Components,
    Normalization,
    random_direction,
    trajectory_directions,
)
from lowrank.geometry.estimate import ALONE, Sharer
from lowrank.geometry.landscape import direction_variance as direction_variance
from lowrank.geometry.landscape import sharpness as sharpness
from lowrank.geometry.offsets import Rule, Walk, rule_for
from lowrank.geometry.probe import Average, Floats
from lowrank.metrics.base import (
    AGGREGATE_LAYER,
    ALL_MODULES,
    NO_DENSE,
    OWN_PARAMETERS,
    Checkpoints,
    Comparison,
    Context,
    Curve,
    Expected,
    Lens,
    MetricInfo,
    Result,
    TextSettings,
    Value,
    base_losses,
    parameters,
    require_same_shapes,
)
from lowrank.settings import Config

__all__ = ["LENS", "Landscape", "direction_variance", "sharpness"]


class Grid(Config):
    """A grid of ``count`` evenly spaced offsets: ``start``, ``start + step``, …"""

    start: float
    step: PositiveFloat
    count: PositiveInt

    def offsets(self) -> list[float]:
        """Return the offsets; those of a symmetric grid are exactly symmetric, with an exact 0."""
        half = (self.count - 1) / 2
        if math.isclose(self.start, -half * self.step, rel_tol=1e-9):
            return [(i - half) * self.step for i in range(self.count)]
        return [self.start + i * self.step for i in range(self.count)]


Directions = PositiveInt | Literal["auto"]
Components_ = Annotated[tuple[PositiveInt, ...], Strict(False)]


class LandscapeSettings(TextSettings):
    """Settings of the directions, of their offsets and of the arithmetic."""

    space: Literal["dense", "trained"] = "dense"
    normalization: Normalization = "raw"
    direction_seed: NonNegativeInt = 0
    directions: Directions = 100  # random ones; auto: as many as ``relative_error`` needs
    relative_error: PositiveFloat = 0.02  # of auto: standard error of the sharpness over its value
    fewest: PositiveInt = 10  # of auto
    most: PositiveInt = 1000  # of auto
    grid: Grid = Grid(start=-0.003, step=0.00025, count=25)
    nodes: NonNegativeInt = 2  # of the Gauss rule, per side; 0: every offset of the grid
    components: Components_ = (1, 5, 10, 20, 100)
    component_means: Components_ = ()  # K: also the mean over components 1 … K
    component_grid: Grid = Grid(start=-0.048, step=0.004, count=25)
    beyond_rank: Literal["absent", "last"] = "absent"  # a component that a matrix does not have
    trajectory: NonNegativeInt = (
        2  # principal directions of the run's trajectory, at its last checkpoint
    )
    trajectory_grid: Grid = Grid(start=-0.6, step=0.05, count=25)
    precision: Literal["float32", "bfloat16"] = "float32"  # type: ignore[assignment]  # of the displaced weights
    in_place: bool = False  # add and subtract offsets in place, as published
    loss_average: Average = "tokens"
    skip_initial: bool = False


RANDOM_FIELDS = {
    "normalization",
    "direction_seed",
    "directions",
    "relative_error",
    "fewest",
    "most",
    "grid",
    "nodes",
    "precision",
    "in_place",
    "loss_average",
    "examples",
    "batch_rows",
}
PAPER = "arXiv:2605.13652"
COMPONENTS = (1, 5, 10, 20, 100)


class Landscape(Lens):
    """Sharpness along random directions, singular components and the trajectory."""

    title = "Loss landscape around a checkpoint"
    Settings = LandscapeSettings
    position = 4
    presets = {
        "exact": {
            "main": {},
            "trained": {"space": "trained", "components": (), "trajectory": 0},
            "filter": {
                "normalization": "filter",
                "components": (),
                "trajectory": 0,
                "grid": {"start": -0.12, "step": 0.01, "count": 25},
            },
        },
        "published": {
            "main": {
                "space": "trained",
                "nodes": 0,
                "component_grid": {"start": -0.05, "step": 0.004, "count": 26},
                "beyond_rank": "last",
                "precision": "bfloat16",
                "in_place": True,
                "loss_average": "batches",
                "trajectory": 0,
                "skip_initial": True,
            }
        },
    }
    metrics = (
        MetricInfo(
            "sharpness_random",
            "mean over random directions and offsets a > 0 of ½[L(θ+ad)+L(θ-ad)] - L(θ)",
            "nats/token",
            "(-∞, ∞)",
            PAPER,
            "lower",
            section="landscape",
        ),
        MetricInfo(
            "direction_variance",
            "variance over random directions of L(θ+ad), mean over offsets",
            "(nats/token)²",
            "[0, ∞)",
            PAPER,
            "lower",
            section="landscape",
        ),
        *(
            MetricInfo(
                f"sharpness_pca_{k}",
                f"sharpness along σ_{k} u_{k} v_{k}ᵀ of every matrix",
                "nats/token",
                "(-∞, ∞)",
                PAPER,
                "lower",
                section="landscape",
            )
            for k in COMPONENTS
        ),
        MetricInfo(
            "sharpness_pca_mean_5",
            "mean of the sharpnesses along components 1 to 5, on request",
            "nats/token",
            "(-∞, ∞)",
            PAPER,
            "lower",
            section="landscape",
        ),
        *(
            MetricInfo(
                f"sigma_pca_{k}",
                f"mean over matrices of σ_{k}, the size of the displacement at offset 1",
                "weight",
                "[0, ∞)",
                PAPER,
                section="landscape",
            )
            for k in COMPONENTS
        ),
        *(
            MetricInfo(
                f"sharpness_trajectory_{k}",
                f"sharpness along principal direction {k} of the run's checkpoints",
                "nats/token",
                "(-∞, ∞)",
                "arXiv:1712.09913",
                "lower",
                section="landscape",
            )
            for k in (1, 2)
        ),
        *(
            MetricInfo(
                f"trajectory_share_{k}",
                f"share of the squared movement along principal direction {k}",
                "1",
                "[0, 1]",
                "arXiv:1712.09913",
                section="landscape",
            )
            for k in (1, 2)
        ),
    )

    def units(self, checkpoints: Checkpoints, settings: LandscapeSettings) -> list[Comparison]:
        """Return every checkpoint, and (last, first) of each run for its trajectory."""
        units = []
        for run in checkpoints.runs():
            kept = [p for p in run if p.step > 0 or not settings.skip_initial]
            units += [Comparison(p, None, frozenset({"around"})) for p in kept]
            if settings.trajectory and len(kept) > settings.trajectory and kept[-1].last:
                units.append(
                    Comparison(
                        kept[-1], kept[0], frozenset({"trajectory"}), others=tuple(kept[1:-1])
                    )
                )
        return units

    def expected(self, unit: Comparison, settings: LandscapeSettings) -> Expected:
        """Return the keys of the values and of the mean curves; an absent metric has no curve."""
        names, curves = [], []
        if "trajectory" in unit.roles:
            for k in range(1, settings.trajectory + 1):
                names += [f"sharpness_trajectory_{k}", f"trajectory_share_{k}"]
                curves.append((f"landscape_trajectory_{k}", settings.trajectory_grid))
        else:
            absent = settings.space == "dense" and not unit.checkpoint.has_dense
            names += ["sharpness_random", "direction_variance"]
            curves += [] if absent else [("landscape_random", settings.grid)]
            for k in settings.components:
                names += [f"sharpness_pca_{k}", f"sigma_pca_{k}"]
                curves += (
                    []
                    if absent or self._beyond(unit, k, settings)
                    else [(f"landscape_pca_{k}", settings.component_grid)]
                )
            names += [f"sharpness_pca_mean_{k}" for k in settings.component_means]
        points = frozenset(
            (name, -1, i)
            for name, grid in curves
            for i in range(len(rule_for(grid.offsets(), settings.nodes).offsets))
        )
        return Expected(frozenset((name, AGGREGATE_LAYER, ALL_MODULES) for name in names), points)

    def _beyond(self, unit: Comparison, k: int, settings: LandscapeSettings) -> bool:
        """Return whether component k does not exist in some matrix."""
        checkpoint = unit.checkpoint
        side = (
            checkpoint.width
            if settings.space == "dense" or checkpoint.rank is None
            else checkpoint.rank
        )
        return settings.beyond_rank == "absent" and k > side

    def compute(
        self, unit: Comparison, context: Context, settings: LandscapeSettings
    ) -> Iterable[Result]:
        """Yield values and curves of all directions of a checkpoint."""
        if "trajectory" in unit.roles:
            yield from self._trajectory(unit, context, settings)
        elif settings.space == "dense" and not unit.checkpoint.has_dense:
            for name, *_ in sorted(self.expected(unit, settings).values):
                yield Value(name, None, note=NO_DENSE)
        else:
            walk = self._walk(unit, context, settings, settings.space)
            with walk:
                yield from self._random(unit, walk, context, settings)
                yield from self._components(unit, walk, context, settings)

    def _walk(
        self, unit: Comparison, context: Context, settings: LandscapeSettings, space: str
    ) -> Walk:
        network = context.network(unit.checkpoint, space)
        assert network is not None
        batches = context.batches(unit, settings.batch_rows)
        centre = None
        if settings.precision == "float32" and not settings.in_place:
            centre = base_losses(unit.checkpoint, network, context, batches).mean(
                settings.loss_average
            )
        dtype = torch.bfloat16 if settings.precision == "bfloat16" else torch.float32
        return Walk(
            network, batches, settings.loss_average, centre, dtype=dtype, in_place=settings.in_place
        )

    def _random(
        self, unit: Comparison, walk: Walk, context: Context, settings: LandscapeSettings
    ) -> Iterator[Result]:
        rule = rule_for(settings.grid.offsets(), settings.nodes)
        # The trained parameters of a method without a custom architecture are the dense ones, so
        # that one evaluation serves both spaces.
        key = f"random/{id(walk.network)}/{settings.model_dump_json(include=RANDOM_FIELDS)}"
        table = context.memo(
            unit.checkpoint, key, lambda: random_table(walk, rule, settings, context)
        )
        estimate, variance = rule.sharpness(table), rule.variance(table)
        yield Value(
            "sharpness_random", estimate.value, standard_error=estimate.standard_error, n=len(table)
        )
        yield Value(
            "direction_variance",
            variance.value,
            standard_error=variance.standard_error,
            n=len(table),
        )
        yield _curve("landscape_random", rule, table)

    def _components(
        self, unit: Comparison, walk: Walk, context: Context, settings: LandscapeSettings
    ) -> Iterator[Result]:
        wanted = sorted(
            {*settings.components, *(k for K in settings.component_means for k in range(1, K + 1))}
        )
        if not wanted:
            return
        rule = rule_for(settings.component_grid.offsets(), settings.nodes)
        key = f"components/{id(walk.network)}/{wanted[-1]}"
        found = context.memo(unit.checkpoint, key, lambda: Components(walk.pristine, wanted[-1]))
        present = [k for k in wanted if not self._beyond(unit, k, settings)]
        losses = _independent(walk, context).map(
            lambda k: walk.losses(found.direction(k), rule.offsets), present
        )
        tables = {k: np.array([row]) for k, row in zip(present, losses, strict=True)}
        for k in settings.components:
            if k not in tables:
                note = f"component {k} does not exist: the smallest matrix has {found.sides()}"
                yield Value(f"sharpness_pca_{k}", None, note=note)
                yield Value(f"sigma_pca_{k}", None, note=note)
                continue
            sigmas = found.sigma(k)
            yield Value(f"sharpness_pca_{k}", rule.sharpness(tables[k]).value, n=1)
            yield Value(f"sigma_pca_{k}", math.fsum(sigmas) / len(sigmas), n=len(sigmas))
            yield _curve(f"landscape_pca_{k}", rule, tables[k])
        for K in settings.component_means:
            parts = [tables[k] for k in range(1, K + 1) if k in tables]
            mean = rule.sharpness(np.concatenate(parts)) if len(parts) == K else None
            note = (
                ""
                if mean
                else f"component {K} does not exist: the smallest matrix has {found.sides()}"
            )
            yield Value(
                f"sharpness_pca_mean_{K}",
                mean.value if mean else None,
                standard_error=mean.standard_error if mean else None,
                n=len(parts),
                note=note,
            )

    def _trajectory(
        self, unit: Comparison, context: Context, settings: LandscapeSettings
    ) -> Iterator[Result]:
        space = settings.space if all(p.has_dense for p in unit.checkpoints) else "trained"
        note = OWN_PARAMETERS if space != settings.space else ""
        assert unit.reference is not None
        ordered = (unit.reference, *unit.others, unit.checkpoint)
        path = [parameters(context.network(p, space)) for p in ordered]
        for weights in path[:-1]:
            require_same_shapes(weights, path[-1], unit)
        directions, shares = trajectory_directions(path, settings.trajectory)
        rule = rule_for(settings.trajectory_grid.offsets(), settings.nodes)
        with self._walk(unit, context, settings, space) as walk:
            losses = _independent(walk, context).map(
                lambda direction: walk.losses(direction, rule.offsets), directions
            )
            for k, (row, share) in enumerate(zip(losses, shares, strict=True), start=1):
                table = np.array([row])
                yield Value(
                    f"sharpness_trajectory_{k}", rule.sharpness(table).value, n=1, note=note
                )
                yield Value(f"trajectory_share_{k}", share, n=len(ordered), note=note)
                yield _curve(f"landscape_trajectory_{k}", rule, table)


def random_table(
    walk: Walk, rule: Rule, settings: LandscapeSettings, sharer: Sharer = ALONE
) -> Floats:
    """Return the losses (directions, offsets) along random directions, in nats per token.

    With ``directions`` "auto" there are as many as ``relative_error`` needs. Processes share them;
    neither their number nor any of them depends on the number of processes.
    """
    sharer = _independent(walk, sharer)
    most = settings.most if settings.directions == "auto" else settings.directions

    def losses(index: int) -> list[float]:
        direction = random_direction(
            walk.pristine, settings.direction_seed, index, settings.normalization
        )
        return walk.losses(direction, rule.offsets)

    rows: list[list[float]] = []
    fewest = min(most, max(2, settings.fewest))
    wanted = most if settings.directions != "auto" else fewest
    while True:
        rows += sharer.map(losses, range(len(rows), wanted))
        if settings.directions != "auto":
            return np.array(rows)
        for n in range(fewest, len(rows) + 1):
            estimate = rule.sharpness(np.array(rows[:n]))
            if n == most or (estimate.standard_error or 0.0) <= settings.relative_error * abs(
                estimate.value
            ):
                return np.array(rows[:n])
        wanted = min(most, len(rows) + sharer.processes)


def _independent(walk: Walk, sharer: Sharer) -> Sharer:
    """Return how to share directions: not at all if rounding errors accumulate over offsets.

    The losses along a direction then depend on the directions before it.
    """
    return ALONE if walk.in_place else sharer


def _curve(name: str, rule: Rule, table: Floats) -> Curve:
    variances = table.var(axis=0).tolist() if len(table) > 1 else None
    return Curve(name, rule.offsets, table.mean(axis=0).tolist(), variances, len(table))


LENS = Landscape
