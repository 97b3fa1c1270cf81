"""Learning-rate factors as pure functions of the update, so that resuming needs no scheduler
state.
"""

from __future__ import annotations

import math


def cosine(step: float, total: int, warmup: int, min_ratio: float) -> float:
    """Return the learning-rate factor of linear warm-up followed by cosine decay.

    The factor rises from 0 to 1 over ``warmup`` updates, falls along a half cosine to ``min_ratio``
    at update ``total``, and stays there. Update k = 1, 2, … uses ``cosine(k)``; the published runs
    used k - 1, so that their first update did nothing.
    """
    if step < warmup:
        return step / warmup
    if step >= total:
        return min_ratio
    progress = (step - warmup) / (total - warmup)
    return min_ratio + (1.0 - min_ratio) * 0.5 * (1.0 + math.cos(math.pi * progress))


def cosine_restarts(
    step: float, total: int, warmup: int, restart_every: int, restart_warmup: int, min_ratio: float
) -> float:
    """Return the factor of ReLoRA's schedule: a cosine with a warm-up after every restart.

    Restarts happen at the multiples of ``restart_every`` after the first warm-up. Each is followed
    by a linear ramp of ``restart_warmup`` updates, from 0 up to the cosine (ICLR 2024, section 3).
    """
    if step < warmup:
        return step / warmup
    position = step % restart_every
    if step >= restart_every and position < restart_warmup:
        return (
            position
            / restart_warmup
            * cosine(step - position + restart_warmup, total, warmup, min_ratio)
        )
    return cosine(step, total, warmup, min_ratio)


def cosine_restarts_published(
    step: float,
    total: int,
    warmup: int,
    restart_every: int,
    restart_warmup: int,
    min_ratio: float,
) -> float:
    """Return the restart factor of arXiv:2605.13652's launcher.

    Each ramp rises to the cosine of a later update and the factor then jumps up to the current one:
    the ramp of restart k ends at the cosine of progress k·restart_every/(total-warmup), which is
    ahead by the first warm-up.
    """
    if step < warmup:
        return step / warmup
    restart, position = divmod(step, restart_every)
    if position < restart_warmup:
        return (
            position
            / restart_warmup
            * cosine(restart * restart_every + warmup, total, warmup, min_ratio)
        )
    return cosine(step, total, warmup, min_ratio)
