"""Assign documents to the splits train, validation and selection by a hash of their content.

Equal documents always share a split. ``selection`` is a second held-out split for choosing learning
rates and other settings; reported numbers come from ``validation``.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterable
from dataclasses import asdict, dataclass

import numpy as np

from lowrank.data.cache import Json

SPLITS = ("train", "validation", "selection")


def content_word(document: str) -> int:
    """Return the first 64 bits of the document's SHA-256."""
    return int.from_bytes(hashlib.sha256(document.encode()).digest()[:8], "big")


@dataclass(frozen=True)
class Bounds:
    """Thresholds on content words.

    Words below ``validation`` are validation, those below ``selection`` selection, the others
    train.
    """

    validation: int
    selection: int

    def split(self, document: str) -> str:
        """Return the split of a document."""
        word = content_word(document)
        return (
            "validation"
            if word < self.validation
            else "selection"
            if word < self.selection
            else "train"
        )


@dataclass(frozen=True)
class Survey:
    """The result of one pass over a corpus; ``sha256`` covers every document in order."""

    documents: int
    characters: int
    sha256: str
    bounds: Bounds

    def json(self) -> Json:
        """Return the survey as plain values."""
        return asdict(self)

    @classmethod
    def of(cls, body: Json) -> Survey:
        """Return the survey that :meth:`json` described."""
        return cls(body["documents"], body["characters"], body["sha256"], Bounds(**body["bounds"]))


def stream_bounds(fraction: float, own_validation: bool) -> Bounds:
    """Return the bounds for text of unknown size.

    Text that comes with a validation part needs only a selection split.
    """
    step = round(fraction * 2**64)
    return Bounds(0, step) if own_validation else Bounds(step, 2 * step)


def survey(documents: Iterable[str], fraction: float) -> Survey:
    """Count and hash a corpus, and choose its bounds.

    Both held-out splits get ``fraction`` of the distinct documents, and at least one.
    """
    digest, words, characters = hashlib.sha256(), array("Q"), 0
    for document in documents:
        body = hashlib.sha256(document.encode()).digest()
        digest.update(body)
        words.append(int.from_bytes(body[:8], "big"))
        characters += len(document)
    distinct = np.unique(np.frombuffer(words, dtype=np.uint64))
    held = min(max(1, round(fraction * len(distinct))), len(distinct) // 3)
    ends = [int(distinct[n]) if n < len(distinct) else 0 for n in (held, 2 * held)]
    return Survey(len(words), characters, digest.hexdigest(), Bounds(*ends))
