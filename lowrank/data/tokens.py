"""The tokens of one split on disk: numbered shards of whole documents, made once and mapped into memory.

Shards are made in order and only as far as somebody reads; beside the last one stands what is needed to go on after
it. A killed process loses at most the shard that it was making.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
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
    """One shard: its size and the SHA-256 of its tokens and of its document ends."""

    tokens: int
    documents: int
    sha256: str
    ends_sha256: str


@dataclass(frozen=True)
class Index:
    """What is on disk and where the source stands after it."""

    shards: tuple[Shard, ...] = ()
    complete: bool = False
    position: Position = START
    shuffled: int = 0          # documents that have left the shuffle buffer
    held: int = 0              # documents in the shuffle buffer
    characters: int = 0        # of all documents read, those in the buffer included
    encoded: int = 0           # tokens of the same documents

    def write(self, path: Path) -> None:
        """Write atomically."""
        cache.write_json(path, asdict(self))

    @classmethod
    def read(cls, path: Path) -> Index:
        """From disk; nothing there yet is an empty index."""
        body = cache.read_json(path) or {}
        body["shards"] = tuple(Shard(**shard) for shard in body.get("shards", ()))
        body["position"] = tuple(body.get("position", START))
        return cls(**body)


@dataclass(frozen=True)
class Feed:
    """How the documents of a split become tokens: ``read(position)``, ``encode(documents)`` and the shuffle, if any."""

    read: Callable[[Position], Iterator[tuple[str, Position]]]
    encode: Callable[[list[str]], list[Array]]
    dtype: npt.DTypeLike
    vocabulary_size: int
    buffer: int = 0            # documents; 0: no shuffle
    seed: int = 0
    label: str = "corpus"


class TokenStore:
    """Random access to the tokens of one split; thread-safe, and safe beside other processes."""

    def __init__(self, folder: Path, feed: Feed) -> None:
        self.folder, self.feed = folder, feed
        self._lock = threading.RLock()
        self._live: tuple[Iterator[tuple[list[Array], Index]], Index] | None = None
        self._tokens: dict[int, npt.NDArray] = {}
        self._ends: dict[int, Array] = {}
        self._adopt(Index.read(self._index_path))

    @property
    def _index_path(self) -> Path:
        return self.folder / "index.json"

    @property
    def complete(self) -> bool:
        """Whether the source has been read to its end."""
        return self.index.complete

    @property
    def tokens(self) -> int:
        """Tokens on disk."""
        return int(self._token_ends[-1])

    @property
    def documents(self) -> int:
        """Documents on disk."""
        return int(self._document_ends[-1])

    def ensure(self, tokens: int | None = None, documents: int | None = None) -> None:
        """Make shards until so many tokens or documents are on disk, or the source has ended; None asks for all."""
        everything = tokens is None and documents is None

        def enough() -> bool:
            short = everything or self.tokens < (tokens or 0) or self.documents < (documents or 0)
            return self.complete or not short

        if enough():
            return
        with self._lock:
            self._adopt(Index.read(self._index_path))
            if enough():
                return
            with cache.locked(self.folder):
                self._adopt(Index.read(self._index_path))
                self._make(enough)

    def gather(self, positions: Array) -> Array:
        """The tokens at global ``positions`` (any shape), which must be on disk."""
        shard = np.searchsorted(self._token_ends, positions, side="right") - 1
        return self._pick(shard, positions, self._token_ends, self._shard_tokens)

    def spans(self, documents: Array) -> tuple[Array, Array]:
        """(global position of the first token, number of tokens) of each of ``documents``, (n,) each."""
        shard = np.searchsorted(self._document_ends, documents, side="right") - 1
        ends = self._pick(shard, documents, self._document_ends, self._shard_ends)
        first = documents == self._document_ends[shard]
        starts = np.where(first, 0, self._pick(shard, documents - ~first, self._document_ends, self._shard_ends))
        return starts + self._token_ends[shard], ends - starts

    @staticmethod
    def _pick(shard: Array, positions: Array, bases: Array, read: Callable[[int], npt.NDArray]) -> Array:
        """``read(shard)[position - base of the shard]`` for every position, shard by shard."""
        if not shard.size:
            return np.zeros(shard.shape, dtype=np.int64)
        lowest, highest = int(shard.min()), int(shard.max())
        if lowest == highest:
            return read(lowest)[positions - bases[lowest]].astype(np.int64)
        picked = np.empty(shard.shape, dtype=np.int64)
        for number in np.unique(shard):
            here = shard == number
            picked[here] = read(int(number))[positions[here] - bases[number]]
        return picked

    def _shard_tokens(self, number: int) -> npt.NDArray:
        if number not in self._tokens:
            shard = self.index.shards[number]
            self._tokens[number] = self._map(f"{number:05d}.tokens.npy", shard.tokens, shard.sha256)
        return self._tokens[number]

    def _shard_ends(self, number: int) -> Array:
        if number not in self._ends:
            shard = self.index.shards[number]
            self._ends[number] = self._map(f"{number:05d}.ends.npy", shard.documents, shard.ends_sha256)
        return self._ends[number]

    def _map(self, name: str, size: int, sha256: str) -> npt.NDArray:
        path = self.folder / name
        try:
            array = np.asarray(np.load(path, mmap_mode="r", allow_pickle=False))
        except (OSError, ValueError) as error:
            raise DataError(f"the cached tokens {path} cannot be read ({error}); delete the folder and run again") from error
        if array.shape != (size,) or cache.array_hash(array) != sha256:
            raise DataError(f"the cached tokens {path} are damaged; delete the folder {self.folder} and run again")
        return array

    def _adopt(self, index: Index) -> None:
        self.index = index
        self._token_ends = np.cumsum([0, *(shard.tokens for shard in index.shards)], dtype=np.int64)
        self._document_ends = np.cumsum([0, *(shard.documents for shard in index.shards)], dtype=np.int64)

    def _make(self, enough: Callable[[], bool]) -> None:
        """Make shards until there are enough; the lock of the folder is held."""
        from tqdm import tqdm

        with tqdm(desc=f"tokenising {self.feed.label}", unit="tok", unit_scale=True, delay=1.0, disable=None, leave=False) as bar:
            while not enough():
                if self._live is None or self._live[1] != self.index:
                    self._live = self._shards(self.index), self.index
                documents, state = next(self._live[0])
                index = self._write(documents, state)
                self._live = self._live[0], index
                self._adopt(index)
                bar.update(index.shards[-1].tokens if documents else 0)

    def _write(self, documents: list[Array], state: Index) -> Index:
        """One shard and, after it, the index that makes it part of the store."""
        number = len(self.index.shards)
        shards = self.index.shards
        if documents:
            tokens = np.concatenate(documents).astype(self.feed.dtype)
            ends = np.cumsum([len(document) for document in documents], dtype=np.int64)
            sha256 = cache.write_array(self.folder / f"{number:05d}.tokens.npy", tokens)
            ends_sha256 = cache.write_array(self.folder / f"{number:05d}.ends.npy", ends)
            shards = (*shards, Shard(len(tokens), len(ends), sha256, ends_sha256))
        index = replace(state, shards=shards)
        index.write(self._index_path)
        return index

    def _shards(self, index: Index) -> Iterator[tuple[list[Array], Index]]:
        """(documents of the next shard, index after it without its shards) from ``index`` on."""
        feed, characters, encoded, position = self.feed, index.characters, index.encoded, index.position
        reservoir = order.Reservoir(feed.buffer, order.key("buffer", feed.seed), self._held(index), index.shuffled) if feed.buffer else None
        ready: list[Array] = []
        size = 0
        source = feed.read(position)
        while chunk := _chunk(source):
            position = chunk[-1][1]
            arrays = self._checked(feed.encode([document for document, _ in chunk]))
            characters += sum(len(document) for document, _ in chunk)
            encoded += sum(map(len, arrays))
            leaving = arrays if reservoir is None else [out for array in arrays for out in reservoir.push(array)]
            ready += leaving
            size += sum(map(len, leaving))
            if size >= SHARD_TOKENS:
                held = 0 if reservoir is None else self._hold(reservoir.held, len(self.index.shards))
                shuffled = 0 if reservoir is None else reservoir.count
                yield ready, Index(position=position, shuffled=shuffled, held=held, characters=characters, encoded=encoded)
                ready, size = [], 0
        ready += [] if reservoir is None else list(reservoir.drain())
        yield ready, Index(complete=True, position=position, characters=characters, encoded=encoded)

    def _checked(self, arrays: list[Array]) -> list[Array]:
        highest = max((int(array.max()) for array in arrays), default=0)
        if highest >= self.feed.vocabulary_size:
            raise DataError(
                f"the tokenizer gives token {highest}, but data.vocabulary_size is {self.feed.vocabulary_size}; raise it or leave it out"
            )
        return arrays

    def _hold(self, held: list[Array], number: int) -> int:
        """Save the shuffle buffer as it stands after shard ``number``; older ones are no longer needed."""
        cache.write_array(self.folder / f"{number:05d}.held.npy", np.concatenate([*held, np.zeros(0, np.int64)]).astype(self.feed.dtype))
        cache.write_array(self.folder / f"{number:05d}.held-ends.npy", np.cumsum([len(a) for a in held], dtype=np.int64))
        for old in range(max(0, number - 3), number - 1):
            for kind in ("held", "held-ends"):
                (self.folder / f"{old:05d}.{kind}.npy").unlink(missing_ok=True)
        return len(held)

    def _held(self, index: Index) -> list[Array]:
        if not index.held:
            return []
        number = len(index.shards) - 1
        tokens, ends = (np.load(self.folder / f"{number:05d}.{kind}.npy", allow_pickle=False) for kind in ("held", "held-ends"))
        return [array.astype(np.int64) for array in np.split(tokens, ends[:-1])]


def _chunk(source: Iterator[tuple[str, Position]]) -> list[tuple[str, Position]]:
    """The next documents: as many as are worth encoding together."""
    chunk, characters = [], 0
    for document, position in islice(source, CHUNK_DOCUMENTS):
        chunk.append((document, position))
        characters += len(document)
        if characters >= CHUNK_CHARACTERS:
            break
    return chunk
