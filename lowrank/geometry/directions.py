"""Directions in the space of a network's weights: seeded Gaussian ones, singular components, and
those of a trajectory.
"""

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
    """Direction ``index`` of ``seed``: standard normal entries from a generator keyed by (seed,
    index, parameter name).

    Parameters of the same name and shape get the same entries, whatever else a network has and
    whichever process draws them. ``filter`` (arXiv:1712.09913): each row of a matrix takes the norm
    of the weight's row, one-dimensional tensors are left out; ``relative``: each tensor takes the
    norm of its weight.
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
    """Random entries rescaled to the size of the weight."""
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
    """The leading singular components σ_k u_k v_kᵀ of every matrix of a network, k = 1, 2, …"""

    def __init__(self, weights: Mapping[str, Tensor], largest: int) -> None:
        self._found: dict[str, tuple[Tensor, Tensor, bool]] = {}
        self._weights = weights
        for name, W in weights.items():
            if W.dim() == 2:
                self._found[name] = leading(W, min(largest, *W.shape))

    def sides(self) -> int:
        """The smaller side of the smallest matrix."""
        return min(min(self._weights[name].shape) for name in self._found)

    def direction(self, k: int) -> Direction:
        """σ_k u_k v_kᵀ of every matrix; of a smaller matrix its last component."""
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
        """σ_k of every matrix."""
        return [float(values[min(k, len(values)) - 1]) for values, _, _ in self._found.values()]


def leading(W: Tensor, count: int) -> tuple[Tensor, Tensor, bool]:
    """The ``count`` largest singular values of W (m, n), the singular vectors of its smaller side
    as columns, and whether these are right ones; from the Gram matrix in float64.
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
    """Principal directions of a training trajectory, and the share of the squared movement along
    each.

    ``path``: the weights of a run's checkpoints, the last one being where they are used. With D (n,
    parameters) the rows θ_t - θ_last and D = UΣVᵀ, direction k is σ_k v_k/√n: offset 1 is the root
    mean square movement along v_k. D is never stacked: UΣ come from the eigenvectors of D Dᵀ.
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
