"""Sharpness and variance over directions from losses along a symmetric grid of offsets."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from lowrank.geometry.estimate import Estimate
from lowrank.geometry.offsets import mean_estimate
from lowrank.geometry.probe import Floats


def sharpness(offsets: Sequence[float], losses: Any) -> Estimate:
    """Estimate the mean over directions d and offsets a > 0 of ½[L(θ+ad)+L(θ-ad)] - L(θ).

    ``losses`` (directions, offsets) are in nats per token; ``offsets`` ascend symmetrically around
    0, which is one of them. The standard error is that over directions, None for a single one.
    Raises ValueError for other grids and shapes.
    """
    position, table = _checked(offsets, losses)
    centre = len(position) // 2
    sides = 0.5 * (table[:, centre + 1 :] + table[:, :centre][:, ::-1])
    return mean_estimate((sides - table[:, [centre]]).mean(axis=1))


def direction_variance(offsets: Sequence[float], losses: Any) -> Estimate:
    """Estimate the population variance over directions of L(θ+ad), averaged over all offsets.

    Arguments and errors are as in :func:`sharpness`. The standard error is that of the mean over
    directions of the squared deviations, averaged over offsets.
    """
    _, table = _checked(offsets, losses)
    return mean_estimate(np.square(table - table.mean(axis=0)).mean(axis=1))


def _checked(offsets: Sequence[float], losses: Any) -> tuple[Floats, Floats]:
    position, table = (
        np.asarray(offsets, dtype=np.float64),
        np.atleast_2d(np.asarray(losses, dtype=np.float64)),
    )
    if table.shape[1] != len(position) or not len(table):
        raise ValueError(f"losses must be (directions, {len(position)} offsets), got {table.shape}")
    if len(position) < 3 or len(position) % 2 == 0 or (np.diff(position) <= 0).any():
        raise ValueError("offsets must ascend and be an odd number, three or more")
    if not np.allclose(position, -position[::-1], rtol=0, atol=1e-9 * abs(position[-1])):
        raise ValueError("offsets must be symmetric around 0")
    return position, table
