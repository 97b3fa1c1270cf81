"""Losses of a network on the evaluation set by row, and networks whose weights are lent out and
come back bit for bit.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from lowrank.geometry.estimate import Batch
from lowrank.loss import IGNORE, token_nats

Floats = npt.NDArray[np.float64]
Average = Literal["tokens", "batches"]


@dataclass(frozen=True)
class Losses:
    """Summed nats and scored tokens of every row of an evaluation set, and the number of its batch;
    each (rows,).
    """

    nats: Floats
    tokens: Floats
    batch: npt.NDArray[np.int64]

    def mean(self, average: Average = "tokens") -> float:
        """Nats per token: over all tokens, or (as published) the mean of the batches' means."""
        if average == "tokens":
            return float(self.nats.sum() / self.tokens.sum())
        sums, counts = np.bincount(self.batch, self.nats), np.bincount(self.batch, self.tokens)
        return float(np.mean(sums / counts))


@torch.inference_mode()
def row_losses(network: nn.Module, batches: Sequence[Batch]) -> Losses:
    """Losses of ``network`` on ``batches``, added in float64."""
    nats, tokens, numbers = [], [], []
    for number, batch in enumerate(batches):
        found = token_nats(network(input_ids=batch.input_ids, use_cache=False).logits, batch.labels)
        nats.append(found.sum(dim=1, dtype=torch.float64))
        tokens.append((batch.labels[:, 1:] != IGNORE).sum(dim=1))
        numbers += [number] * len(batch.labels)
    counts = torch.cat(tokens).double().cpu().numpy()
    return Losses(torch.cat(nats).cpu().numpy(), counts, np.asarray(numbers))


def standard_error(differences: Floats, tokens: Floats) -> float | None:
    """Standard error, over rows, of the ratio Σ differences / Σ tokens (linearised); None for a
    single row.
    """
    rows = len(differences)
    if rows < 2:
        return None
    residuals = differences - differences.sum() / tokens.sum() * tokens
    return float(np.sqrt(np.square(residuals).sum() * rows / (rows - 1)) / tokens.sum())


@contextmanager
def lent(
    network: nn.Module, only: Sequence[str] | None = None
) -> Iterator[tuple[dict[str, Tensor], dict[str, Tensor]]]:
    """(weights to write to, pristine copies) of the named floating-point parameters, restored bit
    for bit at the end.
    """
    named = {
        name: p.data
        for name, p in network.named_parameters()
        if p.is_floating_point() and (only is None or name in only)
    }
    pristine = {name: tensor.clone() for name, tensor in named.items()}
    try:
        with torch.no_grad():
            yield named, pristine
    finally:
        with torch.no_grad():
            for name, tensor in named.items():
                tensor.copy_(pristine[name])
