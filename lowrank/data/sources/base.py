"""The contract of a source of text.

A source is one file in this folder with a class ``SOURCE``. It names its text (``origin``) and
reads it as documents, piece by piece (a piece is a file, in most sources). Splits, tokens,
shuffles, rows and caches are none of its business.

Guarantees that the suite in ``tests/data`` holds the registered sources to:

* the same origin gives the same documents in the same order, in every process;
* reading can start at any position and goes on as if it had started at the beginning;
* text that cannot be read, or is not there, raises :class:`lowrank.errors.DataError` with the mend.
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
    """Base of all sources.

    Class attributes: ``tokenizer``, the name of the source's own tokenizer (None: one is trained on
    the training split); ``vocabulary_size`` of that tokenizer's embedding; ``streamed``, whether
    the text is read only as far as somebody needs it. ``own_validation`` says that the text comes
    with a validation part of its own.
    """

    tokenizer: ClassVar[str | None] = None
    vocabulary_size: ClassVar[int | None] = None
    streamed: ClassVar[bool] = False

    def __init__(self, config: Data, cache: Path) -> None:
        self.config, self.cache = config, cache

    @property
    def label(self) -> str:
        """How messages call the corpus."""
        name = type(self).__module__.rpartition(".")[2]
        return f"{name} corpus '{self.config.path}'" if self.config.path else f"{name} corpus"

    @property
    def own_validation(self) -> bool:
        """Whether ``part="validation"`` can be read."""
        return False

    @abstractmethod
    def origin(self) -> Json:
        """What the text is and how it was made: part of the data set's fingerprint.

        Of a streamed source it must determine the text; otherwise the text's own hash does.
        """

    def stamp(self) -> Json:
        """Changes when the text of a source that is not streamed may have changed; cheap."""
        return self.origin()

    @abstractmethod
    def pieces(self, part: str) -> int:
        """Number of pieces of ``part`` (train or validation)."""

    @abstractmethod
    def documents(self, part: str, piece: int, skip: int) -> Iterator[str]:
        """The documents of one piece in order, without the first ``skip``."""

    def read(
        self, part: str, seed: int | None, start: Position = START
    ) -> Iterator[tuple[str, Position]]:
        """(document, position after it) from ``start`` on; ``seed`` shuffles the pieces, None keeps
        their order.
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
    """The document without what UTF-8 cannot hold (unpaired surrogates from broken
    JSON escapes).
    """
    try:
        document.encode()
    except UnicodeEncodeError:
        return document.encode("utf-8", "replace").decode()
    return document
