"""Build shards of tokens from documents: the index on disk, and the generator that continues it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import numpy.typing as npt

from lowrank.data import cache, order
from lowrank.data.sources.base import START, Position
from lowrank.errors import DataError

Array = npt.NDArray[np.int64]
SHARD_TOKENS = 1 << 22
CHUNK_DOCUMENTS = 1000
CHUNK_CHARACTERS = 4_000_000


@dataclass(frozen=True)
class Shard:
    """The size of one shard, and the SHA-256 of its tokens and of its document ends."""

    tokens: int
    documents: int
    sha256: str
    ends_sha256: str


@dataclass(frozen=True)
class Index:
    """What a token store holds on disk, and the source's position after it."""

    shards: tuple[Shard, ...] = ()
    complete: bool = False
    position: Position = START
    shuffled: int = 0  # documents that have left the full shuffle buffer
    held: int = 0  # documents in the shuffle buffer
    characters: int = 0  # of all documents read, including those in the buffer
    encoded: int = 0  # tokens of the same documents
    held_sha256: str = ""  # hashes of the buffer's tokens and document ends, concatenated

    def write(self, path: Path) -> None:
        """Write the index atomically to ``path``."""
        cache.write_json(path, asdict(self))

    @classmethod
    def read(cls, path: Path) -> Index:
        """Return the index stored at ``path``; an empty one if there is none."""
        body = cache.read_json(path) or {}
        body["shards"] = tuple(Shard(**shard) for shard in body.get("shards", ()))
        body["position"] = tuple(body.get("position", START))
        return cls(**body)


@dataclass(frozen=True)
class Feed:
    """Where the tokens of a split come from.

    ``read(position)`` yields documents, ``encode(documents)`` returns their tokens, and ``buffer``
    documents are shuffled under ``seed``.
    """

    read: Callable[[Position], Iterator[tuple[str, Position]]]
    encode: Callable[[list[str]], list[Array]]
    vocabulary_size: int
    buffer: int = 0  # documents; 0: no shuffle
    seed: int = 0
    label: str = "corpus"

    @property
    def dtype(self) -> npt.DTypeLike:
        """Data type of tokens on disk."""
        return np.uint16 if self.vocabulary_size <= 1 << 16 else np.uint32


@dataclass(frozen=True)
class NewShard:
    """The documents of one new shard, with the index and the shuffle buffer after it.

    The index does not list the shards yet.
    """

    documents: list[Array]
    after: Index
    held: list[Array]


def make_shards(feed: Feed, index: Index, held: list[Array]) -> Iterator[NewShard | None]:
    """Yield the shards that follow ``index``; ``held`` is the shuffle buffer at that point.

    Yields None after every chunk of documents that did not fill a shard.
    """
    reservoir = order.Reservoir(feed.buffer, order.key("buffer", feed.seed), held, index.shuffled)
    position, characters, encoded = index.position, index.characters, index.encoded
    ready: list[Array] = []
    source = feed.read(position)
    while chunk := _chunk(source):
        arrays = _checked(feed, feed.encode([document for document, _ in chunk]))
        position = chunk[-1][1]
        characters += sum(len(document) for document, _ in chunk)
        encoded += sum(map(len, arrays))
        ready += [leaving for array in arrays for leaving in reservoir.push(array)]
        if sum(map(len, ready)) < SHARD_TOKENS:
            yield None
            continue
        after = Index(
            (), False, position, reservoir.count, len(reservoir.held), characters, encoded
        )
        yield NewShard(ready, after, list(reservoir.held))
        ready = []
    ready += reservoir.drain()
    yield NewShard(ready, Index((), True, position, characters=characters, encoded=encoded), [])


def _checked(feed: Feed, arrays: list[Array]) -> list[Array]:
    highest = max((int(array.max()) for array in arrays), default=0)
    if highest >= feed.vocabulary_size:
        raise DataError(
            f"the tokenizer gives token {highest}, but data.vocabulary_size is {feed.vocabulary_size}; raise it or leave it out"
        )
    return arrays


def _chunk(source: Iterator[tuple[str, Position]]) -> list[tuple[str, Position]]:
    """Return the next documents: as many as are worth encoding together."""
    chunk, characters = [], 0
    for document, position in islice(source, CHUNK_DOCUMENTS):
        chunk.append((document, position))
        characters += len(document)
        if characters >= CHUNK_CHARACTERS:
            break
    return chunk
