"""The contract of a source of text.

A source is one file in this folder with a class ``SOURCE``. It describes its text (``origin``) and
yields it as documents, piece by piece; in most sources a piece is a file. Splits, tokens, shuffles,
rows and caches are handled elsewhere.

The suite in ``tests/data`` checks these guarantees for every registered source:

* the same origin yields the same documents in the same order, in every process;
* reading can start at any position and continues as if it had started at the beginning;
* text that is missing or cannot be read raises :class:`lowrank.errors.DataError` with the fix.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

from lowrank.config.schema import Data
from lowrank.data import order
from lowrank.data.cache import Json

Position = tuple[int, int]
"""(pieces finished, documents given of the one that is being read)."""

START: Position = (0, 0)


class Source(ABC):
    """Base class of all sources.

    Class attributes: ``tokenizer`` is the name of the source's tokenizer (None: one is trained on
    the training split) and ``vocabulary_size`` the size of its embedding; ``streamed`` states
    whether the text is read only as far as it is needed.
    """

    tokenizer: ClassVar[str | None] = None
    vocabulary_size: ClassVar[int | None] = None
    streamed: ClassVar[bool] = False

    def __init__(self, config: Data, cache: Path) -> None:
        self.config, self.cache = config, cache

    @property
    def label(self) -> str:
        """Name of the corpus in messages."""
        name = type(self).__module__.rpartition(".")[2]
        return f"{name} corpus '{self.config.path}'" if self.config.path else f"{name} corpus"

    @property
    def own_validation(self) -> bool:
        """Whether the text comes with a validation part, so that ``part="validation"`` can be
        read.
        """
        return False

    @abstractmethod
    def origin(self) -> Json:
        """Return what the text is and how it was made; this enters the data set's fingerprint.

        The origin of a streamed source must determine the text; for other sources the hash of the
        text is added.
        """

    def stamp(self) -> Json:
        """Return a cheap value that changes whenever the text may have changed.

        It is used for sources that are not streamed.
        """
        return self.origin()

    @abstractmethod
    def pieces(self, part: str) -> int:
        """Return the number of pieces of ``part`` (``train`` or ``validation``)."""

    @abstractmethod
    def documents(self, part: str, piece: int, skip: int) -> Iterator[str]:
        """Yield the documents of one piece in order, without the first ``skip``."""

    def read(
        self, part: str, seed: int | None, start: Position = START
    ) -> Iterator[tuple[str, Position]]:
        """Yield (document, position after it), starting at position ``start``.

        ``seed`` shuffles the pieces; None keeps their order.
        """
        count = self.pieces(part)
        sequence = (
            range(count)
            if seed is None
            else order.permutation(count, order.key("pieces", seed)).tolist()
        )
        skip = start[1]
        for done in range(start[0], count):
            for number, document in enumerate(
                self.documents(part, sequence[done], skip), start=skip + 1
            ):
                yield clean(document), (done, number)
            skip = 0


def clean(document: str) -> str:
    """Return the document without characters that UTF-8 cannot encode.

    Those are unpaired surrogates from broken JSON escapes.
    """
    try:
        document.encode()
    except UnicodeEncodeError:
        return document.encode("utf-8", "replace").decode()
    return document
