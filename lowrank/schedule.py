"""Learning-rate factors as pure functions of the update, so that a resumed run needs no scheduler
state.
"""

from __future__ import annotations

import math


def cosine(step: float, total: int, warmup: int, min_ratio: float) -> float:
    """Linear warm-up from 0, then a half cosine from 1 to ``min_ratio`` at ``total``, constant
    after.

    Update k = 1, 2, … uses ``cosine(k)``; the published runs used k - 1, so that their first update
    did nothing.
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
    """ReLoRA's schedule: the cosine, with a linear ramp from 0 that ends on it after every restart
    (ICLR 2024, section 3).

    During the first warm-up nothing restarts. A ramp starts at every multiple of ``restart_every``.
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
    """The restarts of arXiv:2605.13652's launcher: each ramp rises to the cosine of a later time,
    then jumps up onto it.

    The ramp of restart k ends at the cosine of progress k·restart_every/(total-warmup), ahead by
    the first warm-up.
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
