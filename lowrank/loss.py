"""The loss that training, validation and every metric share: summed nats and counted tokens."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

IGNORED = -100  # label of a position that is not scored


def summed_nats(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Next-token negative log-likelihood of a batch as (sum in nats, number of scored tokens).

    ``logits`` (batch, length, vocabulary) of any precision, ``labels`` (batch, length) aligned with the input tokens as
    in Hugging Face models: position t is scored against label t + 1, and label -100 is not scored. Log-probabilities
    are taken in float32 (float64 for float64 logits) and added in float64. The mean over several batches is the ratio
    of the added sums; a mean of batch means would weigh short batches and padding wrongly.
    """
    scores = logits[:, :-1].reshape(-1, logits.shape[-1])
    targets = labels[:, 1:].reshape(-1).to(scores.device)
    if scores.dtype not in (torch.float32, torch.float64):
        scores = scores.float()
    nats = F.cross_entropy(scores, targets, ignore_index=IGNORED, reduction="none")
    return nats.sum(dtype=torch.float64), (targets != IGNORED).sum()
