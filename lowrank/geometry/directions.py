"""Directions in weight space: random ones, singular components and those of a trajectory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
import torch
from scipy.linalg import eigh
from torch import Tensor

from lowrank.seeds import generator

Direction = dict[str, Tensor]
Normalization = Literal["raw", "filter", "relative"]


def random_direction(
    weights: Mapping[str, Tensor], seed: int, index: int, normalization: Normalization
) -> Direction:
    """Return random direction number ``index`` of ``seed``: one float32 tensor per parameter.

    Entries are standard normal, from a generator keyed by (seed, index, parameter name): parameters
    of the same name and shape get the same entries in every network and every process.
    ``normalization`` "filter" (arXiv:1712.09913) scales each row of a matrix to the norm of the
    weight's row and omits one-dimensional tensors; "relative" scales each tensor to the norm of its
    weight; "raw" scales nothing.
    """
    direction = {}
    for name, W in weights.items():
        if normalization == "filter" and W.dim() < 2:
            continue
        numbers = generator(f"{seed}/{index}/{name}")
        entries = torch.randn(W.shape, generator=numbers, dtype=torch.float32).to(W.device)
        direction[name] = normalised(entries, W, normalization)
    return direction


def normalised(entries: Tensor, W: Tensor, normalization: Normalization) -> Tensor:
    """Return random entries, scaled to the norms of the weight W as ``normalization`` says."""
    if normalization == "raw":
        return entries
    wide, weights = (
        t.float().reshape(len(t) if normalization == "filter" else 1, -1) for t in (entries, W)
    )
    factors: Tensor = weights.norm(dim=1, keepdim=True) / wide.norm(dim=1, keepdim=True).clamp_min(
        1e-30
    )
    return (wide * factors).view_as(entries)


class Components:
    """The leading singular components σ_k u_k v_kᵀ of every matrix of a network, k = 1, 2, …

    ``largest`` is the largest k that :meth:`direction` and :meth:`sigma` are asked for.
    """

    def __init__(self, weights: Mapping[str, Tensor], largest: int) -> None:
        self._found: dict[str, tuple[Tensor, Tensor, bool]] = {}
        self._weights = weights
        for name, W in weights.items():
            if W.dim() == 2:
                self._found[name] = leading(W, min(largest, *W.shape))

    def sides(self) -> int:
        """Return the smaller side of the smallest matrix."""
        return min(min(self._weights[name].shape) for name in self._found)

    def direction(self, k: int) -> Direction:
        """Return σ_k u_k v_kᵀ of every matrix.

        A matrix with fewer components contributes its last one.
        """
        made = {}
        for name, (_, vectors, of_columns) in self._found.items():
            W = self._weights[name].double().cpu()
            v = vectors[:, min(k, vectors.shape[1]) - 1]
            # With v a right singular vector, W v vᵀ = σ u vᵀ; with u a left one, u uᵀ W. No sign is
            # left to choose.
            block = torch.outer(W @ v, v) if of_columns else torch.outer(v, v @ W)
            made[name] = block.to(dtype=torch.float32, device=self._weights[name].device)
        return made

    def sigma(self, k: int) -> list[float]:
        """Return σ_k of every matrix, the last σ of one that has fewer."""
        return [float(values[min(k, len(values)) - 1]) for values, _, _ in self._found.values()]


def leading(W: Tensor, count: int) -> tuple[Tensor, Tensor, bool]:
    """Return the leading singular values and vectors of W (m, n), from its Gram matrix in float64.

    The result is (values (count,) in descending order, vectors of the smaller side (min(m, n),
    count), whether these are right singular vectors).
    """
    wide = W.detach().double().cpu()
    of_columns = wide.shape[1] <= wide.shape[0]
    gram = (wide.T @ wide if of_columns else wide @ wide.T).numpy()
    size = len(gram)
    values, vectors = eigh(gram, subset_by_index=(size - count, size - 1), check_finite=False)
    largest_first = np.sqrt(np.clip(values, 0.0, None))[::-1].copy()
    return torch.from_numpy(largest_first), torch.from_numpy(vectors[:, ::-1].copy()), of_columns


def trajectory_directions(
    path: Sequence[Mapping[str, Tensor]], count: int
) -> tuple[list[Direction], list[float]]:
    """Return the principal directions of a training trajectory and their shares of the movement.

    ``path`` has the weights of a run's n + 1 checkpoints; the directions start at the last one. The
    n rows of D are θ_t - θ_last. With D = UΣVᵀ, direction k is σ_k v_k/√n, so that offset 1 is the
    root mean square movement along v_k; its share is σ_k²/Σσ². D is never formed: UΣ follows from
    the eigenvectors of D Dᵀ. The method is that of arXiv:1712.09913.
    """
    *before, last = path
    steps = len(before)
    gram = np.zeros((steps, steps))
    for name, end in last.items():
        rows = torch.stack([(w[name] - end).flatten().double().cpu() for w in before])
        gram += (rows @ rows.T).numpy()
    values, vectors = np.linalg.eigh(gram)
    order = np.argsort(values)[::-1][:count]
    total = max(float(np.trace(gram)), 1e-300)
    directions = []
    for k in order:
        # σ v = Dᵀ u
        weights = torch.from_numpy(vectors[:, k] / np.sqrt(steps))
        directions.append(
            {
                name: sum(float(c) * (w[name] - end) for c, w in zip(weights, before, strict=True))
                for name, end in last.items()
            }
        )
    return directions, [float(max(values[k], 0.0)) / total for k in order]  # type: ignore[return-value]
