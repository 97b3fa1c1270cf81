"""Losses at offsets along directions: grids, Gauss rules on them, and their evaluation."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import lru_cache
from types import TracebackType
from typing import Self

import numpy as np
import torch
from torch import Tensor, nn

from lowrank.geometry.estimate import Estimate, EvaluationBatch
from lowrank.geometry.probe import Average, Floats, borrowed_weights, row_losses


@dataclass(frozen=True)
class Rule:
    """The offsets at which a loss is evaluated, in ascending order, and their weights.

    ``pairs`` has (left, right, weight) of positions in ``offsets`` on both sides of position
    ``centre``. ``grid`` is the number of offsets of the grid that the rule represents.
    """

    offsets: tuple[float, ...]
    centre: int
    pairs: tuple[tuple[int, int, float], ...]
    grid: int

    def sharpness(self, table: Floats) -> Estimate:
        """Estimate the sharpness from a table of losses (directions, offsets).

        It is the weighted mean over pairs of ½[L(right)+L(left)] - L(centre), in nats per token.
        """
        rows = sum(
            w * (0.5 * (table[:, i] + table[:, j]) - table[:, self.centre])
            for i, j, w in self.pairs
        )
        return mean_estimate(np.asarray(rows))

    def variance(self, table: Floats) -> Estimate:
        """Estimate the variance over directions from a table of losses (directions, offsets).

        It is the population variance, averaged over all offsets of the grid that the rule
        represents.
        """
        squares = np.square(table - table.mean(axis=0))
        if len(self.offsets) == self.grid:
            return mean_estimate(squares.mean(axis=1))
        rows = sum(w * 0.5 * (squares[:, i] + squares[:, j]) for i, j, w in self.pairs)
        return mean_estimate(
            (self.grid - 1) / self.grid * np.asarray(rows) + squares[:, self.centre] / self.grid
        )


def mean_estimate(samples: Floats) -> Estimate:
    """Return the mean of ``samples`` (directions,) and its standard error."""
    n = len(samples)
    return Estimate(
        float(samples.mean()), float(samples.std(ddof=1) / math.sqrt(n)) if n > 1 else None, n
    )


def rule_for(offsets: Sequence[float], nodes: int) -> Rule:
    """Return the rule of the full grid (``nodes`` 0), or a Gauss rule for its mean (:func:`gauss`).

    Raises ValueError for a grid on one side of 0, and for a Gauss rule on an asymmetric grid.
    """
    return _rule_for(tuple(offsets), nodes)


@lru_cache(maxsize=64)
def _rule_for(offsets: tuple[float, ...], nodes: int) -> Rule:
    if nodes == 0:
        return _whole(offsets)
    half = len(offsets) // 2
    if (
        len(offsets) % 2 == 0
        or offsets[half] != 0
        or any(a != -b for a, b in zip(offsets, offsets[::-1], strict=True))
    ):
        raise ValueError(
            "a Gauss rule needs a grid that is symmetric around 0; set nodes: 0 to evaluate every offset of another grid"
        )
    positive = offsets[half + 1 :]
    if nodes >= len(positive):
        return _whole(offsets)
    points, weights = gauss(positive, nodes)
    placed = tuple([-a for a in points[::-1]] + [0.0] + points)
    pairs = tuple((nodes - 1 - i, nodes + 1 + i, w) for i, w in enumerate(weights))
    return Rule(placed, nodes, pairs, len(offsets))


def _whole(offsets: tuple[float, ...]) -> Rule:
    """Return the rule of all offsets.

    The centre is the offset nearest to 0, the larger of two that are equally near, as published. In
    a grid without 0 the pairs therefore lie unevenly around 0, and an outermost offset has no
    partner.
    """
    centre = min(range(len(offsets)), key=lambda i: (round(abs(offsets[i]), 12), -offsets[i]))
    reach = min(centre, len(offsets) - 1 - centre)
    if reach == 0:
        raise ValueError(
            f"a grid needs offsets on both sides of 0, this one goes from {offsets[0]:g} to {offsets[-1]:g}"
        )
    pairs = tuple((centre - i, centre + i, 1.0 / reach) for i in range(1, reach + 1))
    return Rule(offsets, centre, pairs, len(offsets))


def gauss(positive: Sequence[float], nodes: int) -> tuple[list[float], list[float]]:
    """Return offsets b_i and weights w_i of a Gauss rule of q = ``nodes`` nodes.

    Σ w_i f(b_i) is the mean of f over the K offsets ``positive`` for every f = c₁a² + … +
    c_{2q}a^{4q}. With u = a² and f = u·g(u) this mean is a discrete integral of g with weights
    u_j/K, whose Gauss rule follows from the Jacobi matrix of the Lanczos process (Golub and Welsch
    1969).
    """
    u = np.square(np.asarray(positive, dtype=np.float64))
    mass = u / len(u)
    scale = float(u.max())
    diagonal, off = _lanczos(u / scale, np.sqrt(mass / mass.sum()), nodes)
    values, vectors = np.linalg.eigh(np.diag(diagonal) + np.diag(off, 1) + np.diag(off, -1))
    roots = values * scale
    weights = mass.sum() * np.square(vectors[0]) / roots
    return np.sqrt(roots).tolist(), weights.tolist()


def _lanczos(values: Floats, start: Floats, steps: int) -> tuple[Floats, Floats]:
    """Return diagonal and off-diagonal of the Jacobi matrix of diag(values) for ``start``.

    Vectors are fully reorthogonalised.
    """
    basis = [start / np.linalg.norm(start)]
    diagonal, off = [], []
    for step in range(steps):
        image = values * basis[-1]
        diagonal.append(float(basis[-1] @ image))
        for vector in basis:
            image = image - (vector @ image) * vector
        if step + 1 < steps:
            off.append(float(np.linalg.norm(image)))
            basis.append(image / off[-1])
    return np.array(diagonal), np.array(off)


class Walk:
    """Evaluates the losses of a network along directions; a context manager that restores weights.

    The weights are restored bit for bit on exit. Each offset a sets the weights to θ + a·d.
    ``in_place`` repeats the published procedure instead: a·d is added and subtracted, so that
    rounding errors accumulate from offset to offset. With ``dtype`` bfloat16 the walk uses a copy
    of the network. ``centre`` is the loss at offset 0 in nats per token if it is known.
    """

    def __init__(
        self,
        network: nn.Module,
        batches: Sequence[EvaluationBatch],
        average: Average = "tokens",
        centre: float | None = None,
        *,
        dtype: torch.dtype = torch.float32,
        in_place: bool = False,
    ) -> None:
        self.network = copy.deepcopy(network).to(dtype) if dtype == torch.bfloat16 else network
        self.batches, self.average, self.centre, self.in_place = batches, average, centre, in_place
        self.pristine: dict[str, Tensor] = {}
        self._weights: dict[str, Tensor] = {}
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        self._weights, self.pristine = self._stack.enter_context(borrowed_weights(self.network))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.close()

    def losses(self, direction: dict[str, Tensor], offsets: Sequence[float]) -> list[float]:
        """Return L(θ + a·d) in nats per token for every offset a."""
        with torch.no_grad():
            if self.in_place:
                return [self._in_place(direction, a) for a in offsets]
            found = [self._afresh(direction, a) for a in offsets]
            for name in direction:  # the next direction may omit parameters that this one changed
                self._weights[name].copy_(self.pristine[name])
            return found

    def _afresh(self, direction: dict[str, Tensor], offset: float) -> float:
        if offset == 0 and self.centre is not None:
            return self.centre
        for name, d in direction.items():
            torch.add(
                self.pristine[name],
                d.to(self.pristine[name].dtype),
                alpha=offset,
                out=self._weights[name],
            )
        return row_losses(self.network, self.batches).mean(self.average)

    def _in_place(self, direction: dict[str, Tensor], offset: float) -> float:
        for name, d in direction.items():
            self._weights[name].add_(d.to(self._weights[name].dtype), alpha=offset)
        loss = row_losses(self.network, self.batches).mean(self.average)
        for name, d in direction.items():
            self._weights[name].sub_(d.to(self._weights[name].dtype), alpha=offset)
        return loss
