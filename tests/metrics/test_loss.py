"""Held-out loss against log-probabilities written out in float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from lowrank.metrics.loss import Loss, LossSettings


def test_loss_and_error_by_hand(arena: Callable[..., Any]) -> None:
    built = arena(("cola", 0))
    (unit,) = Loss().units(built.checkpoints, LossSettings())
    assert unit.checkpoint.step == 20
    (found,) = Loss().compute(unit, built.context, LossSettings())
    nats, counts = [], []
    model = built.context.loaded(unit.checkpoint).model.double()
    with torch.no_grad():
        for batch in built.context.rows:
            log_p = model(batch.input_ids).logits.log_softmax(-1)[:, :-1]
            taken = -log_p.gather(-1, batch.input_ids[:, 1:, None])[..., 0]
            scored = batch.labels[:, 1:] != -100
            nats += (taken * scored).sum(1).tolist()
            counts += scored.sum(1).tolist()
    assert found.value == pytest.approx(sum(nats) / sum(counts), rel=1e-6)
    assert found.n == sum(counts) == 5 * 11 - 4
    rng = np.random.default_rng(0)
    picks = rng.integers(0, 5, (20_000, 5))
    resampled = np.array(nats)[picks].sum(1) / np.array(counts)[picks].sum(1)
    # The bootstrap of five rows underestimates by √(4/5); the formula corrects for it.
    assert found.standard_error == pytest.approx(resampled.std() * np.sqrt(5 / 4), rel=0.05)


def test_every_checkpoint_on_request(arena: Callable[..., Any]) -> None:
    built = arena(("full_rank", 0))
    assert [
        u.checkpoint.step for u in Loss().units(built.checkpoints, LossSettings(final_only=False))
    ] == [0, 10, 20]
