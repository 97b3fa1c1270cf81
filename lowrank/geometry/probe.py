"""Losses of a network per row of the evaluation set, and temporary changes of its weights."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from lowrank.geometry.estimate import EvaluationBatch
from lowrank.loss import IGNORE, token_nats

Floats = npt.NDArray[np.float64]
Average = Literal["tokens", "batches"]


@dataclass(frozen=True)
class Losses:
    """The losses of the rows of an evaluation set, as three arrays of shape (rows,).

    ``nats`` has the summed loss of each row, ``tokens`` the number of its scored tokens, and
    ``batch`` the index of its batch.
    """

    nats: Floats
    tokens: Floats
    batch: npt.NDArray[np.int64]

    def mean(self, average: Average = "tokens") -> float:
        """Return the mean loss in nats per token.

        ``average`` "tokens" takes the mean over all tokens, "batches" (as published) the mean of
        the batches' means.
        """
        if average == "tokens":
            return float(self.nats.sum() / self.tokens.sum())
        sums, counts = np.bincount(self.batch, self.nats), np.bincount(self.batch, self.tokens)
        return float(np.mean(sums / counts))


@torch.inference_mode()
def row_losses(network: nn.Module, batches: Sequence[EvaluationBatch]) -> Losses:
    """Return the losses of ``network`` on ``batches``, summed per row in float64."""
    nats, tokens, numbers = [], [], []
    for number, batch in enumerate(batches):
        found = token_nats(network(input_ids=batch.input_ids, use_cache=False).logits, batch.labels)
        nats.append(found.sum(dim=1, dtype=torch.float64))
        tokens.append((batch.labels[:, 1:] != IGNORE).sum(dim=1))
        numbers += [number] * len(batch.labels)
    counts = torch.cat(tokens).double().cpu().numpy()
    return Losses(torch.cat(nats).cpu().numpy(), counts, np.asarray(numbers))


def standard_error(differences: Floats, tokens: Floats) -> float | None:
    """Return the linearised standard error of the ratio Σ differences / Σ tokens over rows.

    Both arrays have shape (rows,). Returns None for a single row.
    """
    rows = len(differences)
    if rows < 2:
        return None
    residuals = differences - differences.sum() / tokens.sum() * tokens
    return float(np.sqrt(np.square(residuals).sum() * rows / (rows - 1)) / tokens.sum())


@contextmanager
def borrowed_weights(
    network: nn.Module, only: Sequence[str] | None = None
) -> Iterator[tuple[dict[str, Tensor], dict[str, Tensor]]]:
    """Yield (weights to write to, pristine copies) of a network's floating-point parameters.

    Both are dicts by parameter name; ``only`` restricts them to the given names. At the end the
    weights are restored bit for bit.
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


lent = borrowed_weights  # the name of 0.1, which other packages import
