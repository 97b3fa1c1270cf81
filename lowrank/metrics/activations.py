"""Distances between the hidden states of two networks on the same text: L2, cosine, linear CKA.

The reference is the baseline of the same scale, step and seed. States are streamed: a layer takes
O(H²) memory for any number of positions, and sums are in float64. Layer -1 is the output of the
embedding and layer l that of block l, the last one after the final norm; the aggregate is the mean
over all layers.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from lowrank.geometry.estimate import EvaluationBatch
from lowrank.geometry.probe import standard_error
from lowrank.loss import IGNORE
from lowrank.metrics.base import (
    AGGREGATE_LAYER,
    ALL_MODULES,
    EMBEDDING_LAYER,
    CheckpointRef,
    Checkpoints,
    Comparison,
    Context,
    Expected,
    Lens,
    MetricError,
    MetricInfo,
    Result,
    TextSettings,
    Value,
)

NAMES = ("l2", "cosine", "cka", "cka_debiased")
ITSELF = {"l2": 0.0, "cosine": 1.0, "cka": 1.0, "cka_debiased": 1.0}
SMALLEST_DEBIASED = 4  # positions: the unbiased estimator divides by n (n - 3)


def compare(x: Tensor, y: Tensor) -> dict[str, float]:
    """Return the distances between activations ``x`` (N, H) and ``y`` (N, H') in float64.

    Rows are the same N positions. ``l2``: mean of ‖x_i - y_i‖₂; ``cosine``: mean of cos(x_i, y_i),
    0 for a zero row (both nan if H ≠ H'); ``cka``: linear CKA ‖X̃ᵀỸ‖_F²/(‖X̃ᵀX̃‖_F ‖ỸᵀỸ‖_F) of
    the column-centred matrices (Kornblith et al. 2019, equation 3), 0 for a constant matrix;
    ``cka_debiased``: the same ratio of unbiased HSIC estimators (arXiv:2405.01012; Song et al.
    2012, equation 5), nan for fewer than four positions. Raises ValueError for other shapes, and
    without positions.
    """
    streamed = Accumulator()
    streamed.update(x, y)
    return streamed.result()


@dataclass
class _Moments:
    """Sums over positions of u = x - c and v = y - c', for constants c and c' near the means."""

    cross: Tensor  # Σ u vᵀ
    left: Tensor  # Σ u
    right: Tensor  # Σ v
    left_by: Tensor  # Σ u ‖v‖²
    right_by: Tensor  # Σ v ‖u‖²
    left_square: float = 0.0  # Σ ‖u‖²
    right_square: float = 0.0  # Σ ‖v‖²
    squares: float = 0.0  # Σ ‖u‖² ‖v‖²

    @classmethod
    def zeros(cls, left: int, right: int, device: torch.device) -> _Moments:
        make: dict[str, Any] = {"dtype": torch.float64, "device": device}
        return cls(
            torch.zeros(left, right, **make),
            torch.zeros(left, **make),
            torch.zeros(right, **make),
            torch.zeros(left, **make),
            torch.zeros(right, **make),
        )

    def add(self, u: Tensor, v: Tensor) -> None:
        """Add positions, (n, H) and (n, H') in float64."""
        uu, vv = u.square().sum(1), v.square().sum(1)
        self.cross.addmm_(u.T, v)
        self.left += u.sum(0)
        self.right += v.sum(0)
        self.left_by += u.T @ vv
        self.right_by += v.T @ uu
        self.left_square += float(uu.sum())
        self.right_square += float(vv.sum())
        self.squares += float(uu @ vv)

    def centred_square(self, n: int) -> float:
        """Return ‖ŨᵀṼ‖_F² of the centred matrices, given the number of positions ``n``."""
        return float((self.cross - torch.outer(self.left, self.right) / n).square().sum())

    def unbiased(self, n: int) -> float:
        """Return n (n - 3) times the unbiased HSIC of the linear kernels without diagonals."""
        product = float(self.cross.square().sum()) - self.squares
        totals = (float(self.left @ self.left) - self.left_square) * (
            float(self.right @ self.right) - self.right_square
        )
        rows = (
            float(self.left @ self.cross @ self.right)
            - float(self.left @ self.left_by)
            - float(self.right @ self.right_by)
        )
        return product + totals / ((n - 1) * (n - 2)) - 2.0 / (n - 2) * (rows + self.squares)


class Accumulator:
    """Computes :func:`compare` over positions that arrive in parts.

    The result does not depend on how positions are divided into parts.
    """

    def __init__(self) -> None:
        self.n = 0
        self._l2 = self._cosine = 0.0
        self._shift: tuple[Tensor, Tensor] | None = None
        self._sums: tuple[_Moments, _Moments, _Moments] | None = None

    def update(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Add positions ``x`` (n, H) and ``y`` (n, H').

        Returns their L2 distances and cosines, (n,) each. Raises ValueError if the two have
        different numbers of rows.
        """
        if x.dim() != 2 or y.dim() != 2 or len(x) != len(y):
            raise ValueError(
                f"activations must be (N, H) with the same N, got {tuple(x.shape)} and {tuple(y.shape)}"
            )
        x, y = x.detach().double(), y.detach().double()
        if (
            self._shift is None or self._sums is None
        ):  # sums around a point near the mean do not cancel
            self._shift = (
                (x.mean(0), y.mean(0))
                if len(x)
                else (x.new_zeros(x.shape[1]), y.new_zeros(y.shape[1]))
            )
            sizes = ((x, y), (x, x), (y, y))
            xy, xx, yy = (_Moments.zeros(a.shape[1], b.shape[1], x.device) for a, b in sizes)
            self._sums = (xy, xx, yy)
        u, v = x - self._shift[0], y - self._shift[1]
        for moments, (left, right) in zip(self._sums, ((u, v), (u, u), (v, v)), strict=True):
            moments.add(left, right)
        distances, cosines = rowwise(x, y)
        self.n += len(x)
        self._l2 += float(distances.sum())
        self._cosine += float(cosines.sum())
        return distances, cosines

    def result(self) -> dict[str, float]:
        """Return the four distances over all positions; raises ValueError if there are none."""
        if self.n == 0 or self._sums is None:
            raise ValueError("activations of no position cannot be compared")
        xy, xx, yy = self._sums
        centred = [m.centred_square(self.n) for m in (xy, xx, yy)]
        debiased = (
            [m.unbiased(self.n) for m in (xy, xx, yy)]
            if self.n >= SMALLEST_DEBIASED
            else [math.nan] * 3
        )
        return {
            "l2": self._l2 / self.n,
            "cosine": self._cosine / self.n,
            "cka": _ratio(centred),
            "cka_debiased": math.nan if self.n < SMALLEST_DEBIASED else _ratio(debiased),
        }


def rowwise(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Return the L2 distance and the cosine of each pair of rows, (n,) each.

    Both are nan if the widths differ; the cosine of a zero row is 0.
    """
    if x.shape != y.shape:
        missing = x.new_full((len(x),), math.nan)
        return missing, missing
    size = x.norm(dim=1) * y.norm(dim=1)
    cosines = torch.where(size > 0, (x * y).sum(1) / torch.where(size > 0, size, 1.0), 0.0)
    return (x - y).norm(dim=1), cosines


def _ratio(squares: Sequence[float]) -> float:
    """Return cross/√(left·right); 0 if a matrix does not vary."""
    cross, left, right = squares
    return cross / math.sqrt(left * right) if left > 0 and right > 0 else 0.0


class ActivationSettings(TextSettings):
    """Settings of the comparison of hidden states."""

    padding: Literal["masked", "counted"] = "masked"
    skip_initial: bool = False


class Activations(Lens):
    """Hidden states against the baseline of the same scale, step and seed."""

    title = "Activations against the full-rank run"
    Settings = ActivationSettings
    position = 2
    presets = {
        "exact": {"main": {}},
        "published": {"main": {"padding": "counted", "skip_initial": True}},
    }
    metrics = (
        MetricInfo(
            "activation_l2",
            "mean over positions of ‖h - h'‖₂, by layer; aggregate: mean over layers",
            "activation",
            "[0, ∞)",
            "arXiv:2605.13652",
            column="activation_l2_mean",
            against_baseline=True,
            section="activations",
        ),
        MetricInfo(
            "activation_cosine",
            "mean over positions of cos(h, h'), by layer",
            "1",
            "[-1, 1]",
            "arXiv:2605.13652",
            column="activation_cosine_mean",
            against_baseline=True,
            section="activations",
        ),
        MetricInfo(
            "activation_cka",
            "linear CKA of the column-centred activations, the biased estimator",
            "1",
            "[0, 1]",
            "Kornblith et al. 2019",
            column="activation_cka_mean",
            against_baseline=True,
            section="activations",
        ),
        MetricInfo(
            "activation_cka_debiased",
            "linear CKA from unbiased HSIC estimators",
            "1",
            "(-∞, 1]",
            "arXiv:2405.01012",
            column="activation_cka_debiased_mean",
            against_baseline=True,
            section="activations",
        ),
    )

    def units(self, checkpoints: Checkpoints, settings: ActivationSettings) -> list[Comparison]:
        """Return every checkpoint against the baseline; one without a baseline is blocked."""
        baselines: dict[tuple[str, int, int], list[CheckpointRef]] = {}
        for checkpoint in checkpoints.refs:
            if checkpoint.baseline:
                baselines.setdefault(
                    (checkpoint.scale, checkpoint.step, checkpoint.seed), []
                ).append(checkpoint)
        units = []
        for checkpoint in checkpoints.refs:
            if checkpoint.step == 0 and settings.skip_initial:
                continue
            found = baselines.get((checkpoint.scale, checkpoint.step, checkpoint.seed), [])
            reference = min(found, key=partial(_distance, checkpoint), default=None)
            missing = f"there is no full_rank checkpoint of scale {checkpoint.scale}, seed {checkpoint.seed}, step {checkpoint.step}"
            units.append(Comparison(checkpoint, reference, blocked="" if reference else missing))
        return units

    def expected(self, unit: Comparison, settings: ActivationSettings) -> Expected:
        """Return the keys of the four distances of every layer and of their means."""
        layers = (AGGREGATE_LAYER, EMBEDDING_LAYER, *range(unit.checkpoint.layers))
        return Expected(
            frozenset(
                (f"activation_{name}", layer, ALL_MODULES) for name in NAMES for layer in layers
            )
        )

    def compute(
        self, unit: Comparison, context: Context, settings: ActivationSettings
    ) -> Iterable[Result]:
        """Yield the distances between the two networks on the evaluation set."""
        checkpoint, reference = unit.checkpoint, unit.reference
        assert reference is not None
        layers = [EMBEDDING_LAYER, *range(checkpoint.layers)]
        if reference.checkpoint_id == checkpoint.checkpoint_id:
            for layer in (AGGREGATE_LAYER, *layers):
                yield from (
                    Value(f"activation_{name}", ITSELF[name], layer, note="the reference itself")
                    for name in NAMES
                )
            return
        networks = [context.network(p, "trained") for p in (checkpoint, reference)]
        columns = [_Column() for _ in layers]
        tokens: list[Tensor] = []
        for batch in context.batches(unit, settings.batch_rows):
            kept = positions(batch, settings.padding)
            tokens.append(kept.sum(1).cpu())
            states = [hidden_states(network, batch) for network in networks if network is not None]
            shapes = [[tuple(state.shape) for state in found] for found in states]
            if len(states[0]) != len(layers) or shapes[0] != shapes[1]:
                raise MetricError(
                    f"{unit.label}: the two networks have different shapes; compare models of one shape"
                )
            for column, x, y in zip(columns, *states, strict=True):
                column.add(x, y, kept)
        counts = torch.cat(tokens).double().numpy()
        yield from _rows(layers, columns, counts)


def _distance(checkpoint: CheckpointRef, baseline: CheckpointRef) -> tuple[bool, bool, str, int]:
    """Return the sort key by which a baseline is chosen for ``checkpoint``.

    The run itself comes first, then a run of the same variant, then one without a variant.
    """
    return (
        baseline.run_id != checkpoint.run_id,
        baseline.variant != checkpoint.variant,
        baseline.variant,
        baseline.run_id,
    )


class _Column:
    """The comparison of one layer, with sums per evaluation row for the standard errors."""

    def __init__(self) -> None:
        self.accumulator = Accumulator()
        self.by_row: list[list[float]] = [[], []]

    def add(self, x: Tensor, y: Tensor, kept: Tensor) -> None:
        """Add the states (rows, length, H) of a batch at the positions ``kept`` (rows, length)."""
        found = self.accumulator.update(x[kept], y[kept])
        row = torch.arange(len(kept), device=kept.device)[:, None].expand_as(kept)[kept]
        for sums, values in zip(self.by_row, found, strict=True):
            sums += (
                torch.zeros(len(kept), dtype=torch.float64, device=kept.device)
                .index_add_(0, row, values)
                .tolist()
            )


def _rows(layers: list[int], columns: list[_Column], tokens: np.ndarray) -> Iterator[Value]:
    """Yield the values of each layer and their means.

    The standard error of a mean over layers is that of the layers' mean in each row.
    """
    results = [column.accumulator.result() for column in columns]
    n = columns[0].accumulator.n
    few = f"the {n} positions are fewer than {SMALLEST_DEBIASED}"
    for index, name in enumerate(NAMES):
        cells = [(layer, result[name]) for layer, result in zip(layers, results, strict=True)]
        cells.append(
            (AGGREGATE_LAYER, math.fsum(result[name] for result in results) / len(results))
        )
        errors: list[float | None] = [None] * len(cells)
        if name in ("l2", "cosine"):
            sums = np.array([column.by_row[index] for column in columns])  # (layers, rows)
            errors = [standard_error(row, tokens) for row in (*sums, sums.mean(0))]
        for (layer, value), error in zip(cells, errors, strict=True):
            absent = math.isnan(value)
            yield Value(
                f"activation_{name}",
                None if absent else value,
                layer,
                n=n,
                standard_error=error,
                note=few if absent else "",
            )


def positions(batch: EvaluationBatch, padding: str) -> Tensor:
    """Return a mask (rows, length) of the positions that are compared.

    ``padding`` "counted" (as published) includes padding, "masked" does not.
    """
    return (
        torch.ones_like(batch.labels, dtype=torch.bool)
        if padding == "counted"
        else batch.labels != IGNORE
    )


@torch.inference_mode()
def hidden_states(network: nn.Module, batch: EvaluationBatch) -> tuple[Tensor, ...]:
    """Return the L + 1 hidden states (rows, length, H) of a network on a batch.

    The first is the output of the embedding; the last one is taken after the final norm.
    """
    found: tuple[Tensor, ...] = network.model(  # type: ignore[operator, union-attr]
        input_ids=batch.input_ids,
        use_cache=False,
        output_hidden_states=True,
    ).hidden_states
    return found


LENS = Activations
