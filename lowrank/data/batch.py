"""The input of a model: rows of tokens with labels, and fixed sets of such rows."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import torch

    from lowrank.store import records

UNSCORED = -100
"""The label that PyTorch's cross entropy ignores."""

Tokens = npt.NDArray[np.int64]


@dataclass(frozen=True)
class TokenBatch:
    """Rows of tokens with their labels.

    ``input_ids`` and ``labels`` are both (rows, max_length) int64. A label equals its own input, or
    is -100 on padding. Labels are not shifted: Hugging Face models and :mod:`lowrank.loss` predict
    ``labels[:, 1:]``.
    """

    input_ids: torch.Tensor
    labels: torch.Tensor

    @classmethod
    def of(cls, tokens: Tokens, scored: npt.NDArray[np.bool_] | None) -> TokenBatch:
        """Return the batch of ``tokens`` (rows, max_length).

        ``scored`` has the same shape and is False on padding; None means that there is no padding.
        """
        import torch

        input_ids = torch.from_numpy(tokens)
        if scored is None:
            return cls(input_ids, input_ids.clone())
        return cls(input_ids, torch.from_numpy(np.where(scored, tokens, UNSCORED)))

    @property
    def scored(self) -> int:
        """Number of targets after the shift: the tokens that the loss is averaged over."""
        return int((self.labels[:, 1:] != UNSCORED).sum())

    def __len__(self) -> int:
        return int(self.input_ids.shape[0])


@dataclass(frozen=True)
class EvaluationSet:
    """A fixed set of rows of one held-out split; ``record`` is its row in the store.

    ``tokens`` and ``labels`` are (rows, max_length) and stay in memory as 32-bit integers; labels
    are -100 on padding, and None if there is no padding.
    """

    record: records.EvaluationSet
    tokens: npt.NDArray[np.int32]
    labels: npt.NDArray[np.int32] | None

    def __len__(self) -> int:
        return len(self.tokens)

    def batches(self, size: int) -> Iterator[TokenBatch]:
        """Yield batches of ``size`` rows in a fixed order; the last one may be shorter."""
        if size < 1:
            raise ValueError(f"a batch needs at least one row, got {size}")
        for first in range(0, len(self.tokens), size):
            tokens = self.tokens[first : first + size].astype(np.int64)
            yield TokenBatch.of(
                tokens,
                None if self.labels is None else self.labels[first : first + size] != UNSCORED,
            )


def rows_hash(tokens: npt.NDArray[np.int32], labels: npt.NDArray[np.int32] | None) -> str:
    """Return the SHA-256 over the shape and the little-endian 32-bit words of tokens and labels."""
    digest = hashlib.sha256(repr(tokens.shape).encode())
    for array in (tokens, tokens if labels is None else labels):
        digest.update(np.ascontiguousarray(array, dtype="<i4").data)
    return digest.hexdigest()
