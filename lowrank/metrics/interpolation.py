"""Loss barriers on the line between two checkpoints, of one run (CCBH) or of two runs (IMBH).

The reference is at α = 0, the checkpoint at α = 1. Effective dense weights are interpolated; for
consecutive checkpoints of a method without a dense equivalent, its own parameters are, and the note
states it. Pairs of runs have equal scale and step: either two methods of equal seed, or two seeds
of one method, which are the null distribution. The note of a pair states whether the two runs share
their initialisation.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import combinations
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import Field, Strict
from torch import Tensor

from lowrank.geometry.alignment import align, fold_gains
from lowrank.geometry.estimate import EvaluationBatch
from lowrank.geometry.probe import (
    Average,
    Floats,
    Losses,
    borrowed_weights,
    row_losses,
    standard_error,
)
from lowrank.metrics.base import (
    AGGREGATE_LAYER,
    ALL_MODULES,
    OWN_PARAMETERS,
    CheckpointRef,
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
    consecutive,
    parameters,
    require_same_shapes,
    selection,
)

Kind = Literal["consecutive", "methods", "seeds"]
CONSECUTIVE = ("ccbh", "ccbh_excess")
PAIR = ("imbh", "imbh_excess")
ALIGNED = ("imbh_folded", "imbh_aligned")
SAME_INIT, OTHER_INIT = (
    "the runs share their initialisation",
    "the runs have different initialisations",
)


def barrier(alphas: Sequence[float], losses: Sequence[float]) -> float:
    """Return the published barrier height: max over interior α of L(α), minus ½[L(0) + L(1)].

    ``alphas`` ascend from 0 to 1, and ``losses`` are L at these, in nats per token. The height may
    be negative, and that of a straight falling line is positive. Raises ValueError if there is no
    interior α, or if ``alphas`` do not ascend from 0 to 1.
    """
    _, values = _checked(alphas, losses)
    return float(values[1:-1].max() - 0.5 * (values[0] + values[-1]))


def barrier_excess(alphas: Sequence[float], losses: Sequence[float]) -> float:
    """Return the largest excess of L(α) over the chord between its ends (arXiv:2110.06296).

    It is never negative, and 0 if no loss lies above the chord. Arguments and errors are as in
    :func:`barrier`.
    """
    position, values = _checked(alphas, losses)
    excess = values - ((1 - position) * values[0] + position * values[-1])
    return float(max(0.0, excess[1:-1].max()))


def _checked(alphas: Sequence[float], losses: Sequence[float]) -> tuple[Floats, Floats]:
    position, values = np.asarray(alphas, dtype=np.float64), np.asarray(losses, dtype=np.float64)
    if position.ndim != 1 or position.shape != values.shape:
        raise ValueError(
            f"alphas and losses must be two lists of one length, got shapes {position.shape} and {values.shape}"
        )
    if len(position) < 3:
        raise ValueError("a barrier needs at least one point between its ends")
    if position[0] != 0 or position[-1] != 1 or (np.diff(position) <= 0).any():
        raise ValueError("alphas must ascend from 0 to 1")
    return position, values


class InterpolationSettings(TextSettings):
    """Settings of the lines between checkpoints."""

    space: Literal["dense", "trained"] = (
        "dense"  # of consecutive checkpoints; two runs are always compared dense
    )
    points: Annotated[int, Field(ge=3)] = 21  # evenly spaced α in [0, 1], both ends included
    loss_average: Average = "tokens"
    skip_initial: bool = False  # omit pairs with step 0, as in the published rows
    kinds: Annotated[tuple[Kind, ...], Strict(False)] = selection(
        ("consecutive", "methods", "seeds")
    )
    align: bool = selection(True)  # also the barriers after folding gains and after alignment

    @property
    def alphas(self) -> list[float]:
        """The positions on the line, from 0 to 1."""
        return [i / (self.points - 1) for i in range(self.points)]


class Interpolation(Lens):
    """Barrier heights between consecutive checkpoints, between methods and between seeds."""

    title = "Loss barriers between checkpoints"
    Settings = InterpolationSettings
    position = 1
    presets = {
        "exact": {"main": {}},
        "published": {
            "main": {"space": "trained", "loss_average": "batches", "skip_initial": True}
        },
    }
    metrics = (
        MetricInfo(
            "ccbh",
            "barrier between checkpoint t-1 and t: max over interior α of L minus the mean of the ends",
            "nats/token",
            "(-∞, ∞)",
            "arXiv:2605.13652",
            "lower",
            section="barriers",
        ),
        MetricInfo(
            "ccbh_excess",
            "largest excess over the chord between checkpoint t-1 and t",
            "nats/token",
            "[0, ∞)",
            "arXiv:2110.06296",
            "lower",
            section="barriers",
        ),
        MetricInfo(
            "imbh",
            "barrier between two runs at equal scale and step, as dense weights",
            "nats/token",
            "(-∞, ∞)",
            "arXiv:2605.13652",
            "lower",
            role="pair",
            section="barriers",
        ),
        MetricInfo(
            "imbh_excess",
            "largest excess over the chord between two runs",
            "nats/token",
            "[0, ∞)",
            "arXiv:2110.06296",
            "lower",
            role="pair",
            section="barriers",
        ),
        MetricInfo(
            "imbh_folded",
            "imbh after norm gains are folded into the next layers",
            "nats/token",
            "(-∞, ∞)",
            "arXiv:2209.04836",
            "lower",
            role="pair",
            section="barriers",
        ),
        MetricInfo(
            "imbh_aligned",
            "imbh_folded after permuting residual channels, heads and MLP units of the second run "
            "to match the reference",
            "nats/token",
            "(-∞, ∞)",
            "arXiv:2209.04836",
            "lower",
            role="pair",
            section="barriers",
        ),
    )

    def units(self, checkpoints: Checkpoints, settings: InterpolationSettings) -> list[Comparison]:
        """Return consecutive pairs of every run, and the pairs of runs at every step after 0."""
        units = []
        if "consecutive" in settings.kinds:
            units += [
                Comparison(p, before, frozenset({"consecutive"}))
                for p, before in consecutive(checkpoints, settings.skip_initial)
            ]
        cells: dict[tuple[str, int], list[CheckpointRef]] = {}
        for checkpoint in checkpoints.refs:
            if checkpoint.step > 0:
                cells.setdefault((checkpoint.scale, checkpoint.step), []).append(checkpoint)
        for cell in cells.values():
            ordered = sorted(cell, key=lambda p: (not p.baseline, p.recipe, p.seed, p.run_id))
            for reference, checkpoint in combinations(ordered, 2):
                kind = "methods" if reference.recipe != checkpoint.recipe else "seeds"
                if kind in settings.kinds and (kind == "methods") == (
                    reference.seed == checkpoint.seed
                ):
                    units.append(Comparison(checkpoint, reference, frozenset({kind})))
        return units

    def expected(self, unit: Comparison, settings: InterpolationSettings) -> Expected:
        """Return the keys of barriers and curves.

        A pair has curves only if both runs have dense weights.
        """
        names: tuple[str, ...] = CONSECUTIVE
        curves = ["ccbh"]
        if not unit.roles & {"consecutive"}:
            names = PAIR + (ALIGNED if settings.align else ())
            curves = (
                ["imbh", *(ALIGNED if settings.align else ())]
                if all(p.has_dense for p in unit.checkpoints)
                else []
            )
        keys = frozenset((name, AGGREGATE_LAYER, ALL_MODULES) for name in names)
        return Expected(
            keys, frozenset((c, -1, i) for c in curves for i in range(settings.points)), frozenset()
        )

    def compute(
        self, unit: Comparison, context: Context, settings: InterpolationSettings
    ) -> Iterable[Result]:
        """Yield the barriers on the line between checkpoints, or on the three lines of a pair."""
        assert unit.reference is not None
        if "consecutive" in unit.roles:
            yield from self._consecutive(unit, context, settings)
        elif not all(p.has_dense for p in unit.checkpoints):
            odd = next(p for p in unit.checkpoints if not p.has_dense)
            for name in PAIR + (ALIGNED if settings.align else ()):
                yield Value(
                    name,
                    None,
                    note=f"{odd.method} has no dense equivalent: no line leads to another method's weights",
                )
        else:
            yield from self._pair(unit, context, settings)

    def _consecutive(
        self, unit: Comparison, context: Context, settings: InterpolationSettings
    ) -> Iterator[Result]:
        space = settings.space if all(p.has_dense for p in unit.checkpoints) else "trained"
        ends = [
            context.network(p, space) for p in (unit.reference, unit.checkpoint) if p is not None
        ]
        note = OWN_PARAMETERS if space != settings.space else ""
        line = _Line(unit, context, settings, space)
        weights = [parameters(network) for network in ends]
        losses = line.walk(ends[1], weights[0], weights[1])
        yield from line.rows("ccbh", "ccbh_excess", losses, note)

    def _pair(
        self, unit: Comparison, context: Context, settings: InterpolationSettings
    ) -> Iterator[Result]:
        ends = [
            context.network(p, "dense") for p in (unit.reference, unit.checkpoint) if p is not None
        ]
        note = (
            SAME_INIT
            if len({p.init_hash or p.run_id for p in unit.checkpoints}) == 1
            else OTHER_INIT
        )
        line = _Line(unit, context, settings, "dense")
        weights = [parameters(network) for network in ends]
        yield from line.rows(
            "imbh", "imbh_excess", line.walk(ends[1], weights[0], weights[1]), note
        )
        if settings.align:
            heads = int(ends[1].config.num_attention_heads)  # type: ignore[union-attr, arg-type]
            folded = [fold_gains(w) for w in weights]
            yield from line.rows(
                "imbh_folded", None, line.walk(ends[1], folded[0], folded[1]), note
            )
            aligned = align(folded[0], folded[1], heads)
            yield from line.rows("imbh_aligned", None, line.walk(ends[1], folded[0], aligned), note)


class _Line:
    """The losses on lines between two checkpoints; those of the ends are computed only once."""

    def __init__(
        self, unit: Comparison, context: Context, settings: InterpolationSettings, space: str
    ) -> None:
        self.unit, self.context, self.settings, self.space = unit, context, settings, space
        self.batches: list[EvaluationBatch] = context.batches(unit, settings.batch_rows)

    def walk(self, network: Any, start: dict[str, Tensor], end: dict[str, Tensor]) -> list[Losses]:
        """Return the losses at every α.

        They are computed in ``network``, whose weights are restored.
        """
        require_same_shapes(start, end, self.unit)
        first, last = (
            base_losses(p, self.context.network(p, self.space), self.context, self.batches)  # type: ignore[arg-type]
            for p in self.unit.checkpoints
        )
        start, end = (
            {name: t.clone() for name, t in weights.items()} for weights in (start, end)
        )  # one of them is overwritten below
        with borrowed_weights(network) as (weights, _):

            def at(alpha: float) -> Losses:
                for name, tensor in weights.items():
                    torch.lerp(start[name], end[name], alpha, out=tensor)
                return row_losses(network, self.batches)

            interior = self.context.map(at, self.settings.alphas[1:-1])
        return [first, *interior, last]

    def rows(
        self, name: str, excess: str | None, losses: list[Losses], note: str
    ) -> Iterator[Result]:
        """Yield barrier, excess (unless ``excess`` is None) and curve of the losses on a line."""
        alphas, average = self.settings.alphas, self.settings.loss_average
        means = [one.mean(average) for one in losses]
        ends = 0.5 * (losses[0].nats + losses[-1].nats)
        top = 1 + int(np.argmax(means[1:-1]))
        rows, tokens = len(losses[0].nats), losses[0].tokens
        yield Value(
            name,
            barrier(alphas, means),
            standard_error=standard_error(losses[top].nats - ends, tokens),
            n=rows,
            note=note,
        )
        if excess:
            over = [
                m - ((1 - a) * means[0] + a * means[-1]) for a, m in zip(alphas, means, strict=True)
            ]
            top = 1 + int(np.argmax(over[1:-1]))
            chord = (1 - alphas[top]) * losses[0].nats + alphas[top] * losses[-1].nats
            error = standard_error(losses[top].nats - chord, tokens)
            yield Value(
                excess, barrier_excess(alphas, means), standard_error=error, n=rows, note=note
            )
        yield Curve(name, alphas, means, n=rows)


LENS = Interpolation
