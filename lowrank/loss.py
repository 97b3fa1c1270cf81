"""The language-modelling loss: negative log-likelihood of the next token, in nats.

Losses are sums over scored tokens; callers divide by the number of tokens.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

IGNORE = -100


def next_tokens(labels: Tensor) -> Tensor:
    """Return the target (n, L) of each position: labels shifted left by one, the last one
    unscored.
    """
    return F.pad(labels[:, 1:], (0, 1), value=IGNORE)


def summed_nats(logits: Tensor, labels: Tensor) -> Tensor:
    """Return Σ -ln p(next token) over scored positions, a float32 scalar (float64 for float64
    logits).

    ``logits`` (n, L, V); ``labels`` (n, L) are input ids, with -100 where a token is not scored.
    The labels are shifted here.
    """
    wide = logits if logits.dtype == torch.float64 else logits.float()
    return F.cross_entropy(
        wide.flatten(0, 1), next_tokens(labels).flatten(), ignore_index=IGNORE, reduction="sum"
    )


def scored_tokens(labels: Tensor) -> int:
    """Return the number of targets that :func:`summed_nats` sums over."""
    return int((labels[:, 1:] != IGNORE).sum())


def token_nats(logits: Tensor, labels: Tensor) -> Tensor:
    """Return -ln p(next token) of every position (n, L), 0 where it is not scored.

    This serves sums in float64 and sums by row.
    """
    wide = logits if logits.dtype == torch.float64 else logits.float()
    targets = next_tokens(labels)
    return F.cross_entropy(
        wide.flatten(0, 1), targets.flatten(), ignore_index=IGNORE, reduction="none"
    ).view_as(targets)
