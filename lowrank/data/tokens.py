"""The tokens of one split on disk: numbered shards of whole documents, mapped into memory.

Shards are made once, in order, and only as far as they are read. Next to the last one stands what
is needed to continue after it. A killed process loses at most the shard that it was making.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt

from lowrank.data import cache
from lowrank.data.shards import Array, Feed, Index, NewShard, Shard, make_shards
from lowrank.errors import DataError

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _View:
    """An index with its running sums.

    It is replaced as one object, so that another thread never sees a partial update.
    """

    index: Index

    @cached_property
    def tokens(self) -> Array:
        """Global position of every shard's first token, and the total, (shards + 1,)."""
        return np.cumsum([0, *(shard.tokens for shard in self.index.shards)], dtype=np.int64)

    @cached_property
    def documents(self) -> Array:
        """Number of every shard's first document, and the total, (shards + 1,)."""
        return np.cumsum([0, *(shard.documents for shard in self.index.shards)], dtype=np.int64)


class TokenStore:
    """Random access to the tokens of one split, safe with concurrent threads and processes."""

    def __init__(self, folder: Path, feed: Feed) -> None:
        self.folder, self.feed = folder, feed
        self._lock = threading.Lock()
        self._ahead: threading.Thread | None = None
        self._maker: tuple[Iterator[NewShard | None], Index] | None = None
        self._mapped: dict[str, npt.NDArray] = {}
        self._view = _View(Index.read(self._index_path))

    @property
    def _index_path(self) -> Path:
        return self.folder / "index.json"

    @property
    def index(self) -> Index:
        """The index on disk, as far as this process knows."""
        return self._view.index

    @property
    def tokens(self) -> int:
        """Number of tokens on disk."""
        return int(self._view.tokens[-1])

    @property
    def documents(self) -> int:
        """Number of documents on disk."""
        return int(self._view.documents[-1])

    def ensure(
        self, tokens: int | None = None, documents: int | None = None, *, ahead: bool = False
    ) -> None:
        """Make shards until so many tokens or documents are on disk, or the source has ended.

        With neither given, all shards are made. With ``ahead``, the next shard is made in the
        background before it is needed.
        """
        everything = tokens is None and documents is None

        def enough() -> bool:
            view = self._view
            have = view.tokens[-1] >= (tokens or 0) and view.documents[-1] >= (documents or 0)
            return view.index.complete or (have and not everything)

        if not enough():
            self._extend(enough)
        if (
            ahead
            and not self.index.complete
            and (self._ahead is None or not self._ahead.is_alive())
        ):
            view = self._view
            if (tokens or 0) > view.tokens[-2:][0] or (documents or 0) > view.documents[-2:][
                0
            ]:  # in the last shard
                self._ahead = threading.Thread(
                    target=self._extend_ahead, args=(len(view.index.shards) + 1,)
                )
                self._ahead.start()

    def gather(self, positions: Array) -> Array:
        """Return the tokens at global ``positions`` (any shape), which must be on disk."""
        starts = self._view.tokens
        return self._pick(
            np.searchsorted(starts, positions, side="right") - 1,
            positions,
            starts,
            self._shard_tokens,
        )

    def spans(self, documents: Array) -> tuple[Array, Array]:
        """Return the global position of the first token and the number of tokens of each document.

        ``documents`` and both results are (n,).
        """
        view = self._view
        shard = np.searchsorted(view.documents, documents, side="right") - 1
        ends = self._pick(shard, documents, view.documents, self._shard_ends)
        first = documents == view.documents[shard]
        before = self._pick(
            shard, np.where(first, documents, documents - 1), view.documents, self._shard_ends
        )
        starts = np.where(first, 0, before)
        return starts + view.tokens[shard], ends - starts

    @staticmethod
    def _pick(
        shard: Array, positions: Array, bases: Array, read: Callable[[int], npt.NDArray]
    ) -> Array:
        """Return ``read(shard)[position - base of the shard]`` for every position, shard by
        shard.
        """
        picked = np.empty(shard.shape, dtype=np.int64)
        numbers = np.unique(shard)
        for number in numbers:
            here = slice(None) if len(numbers) == 1 else shard == number
            picked[here] = read(int(number))[positions[here] - bases[number]]
        return picked

    def _shard_tokens(self, number: int) -> npt.NDArray:
        shard = self.index.shards[number]
        return self._map(f"{number:05d}.tokens.npy", shard.tokens, shard.sha256)

    def _shard_ends(self, number: int) -> npt.NDArray:
        shard = self.index.shards[number]
        return self._map(f"{number:05d}.ends.npy", shard.documents, shard.ends_sha256)

    def _map(self, name: str, size: int, sha256: str) -> npt.NDArray:
        """Return one file mapped into memory; its hash is checked the first time."""
        if name not in self._mapped:
            try:
                array = np.asarray(np.load(self.folder / name, mmap_mode="r", allow_pickle=False))
            except (OSError, ValueError, EOFError) as error:
                raise DataError(
                    f"the cached tokens {name} cannot be read ({error}); delete {self.folder} and run again"
                ) from error
            if array.shape != (size,) or cache.array_hash(array) != sha256:
                raise DataError(
                    f"the cached tokens {name} are damaged; delete {self.folder} and run again"
                )
            self._mapped[name] = array
        return self._mapped[name]

    def _extend_ahead(self, shards: int) -> None:
        """Make shards in the background.

        An error here occurs again, and is then raised, when the shard is needed.
        """
        main = threading.main_thread()
        try:
            self._extend(
                lambda: (
                    self.index.complete or len(self.index.shards) >= shards or not main.is_alive()
                ),
                quiet=True,
            )
        except DataError:
            return

    def _extend(self, enough: Callable[[], bool], quiet: bool = False) -> None:
        """Make shards until there are enough; one thread of one process does so at a time."""
        from lowrank.progress import progress_bar

        with self._lock, cache.locked(self.folder):
            self._view = _View(Index.read(self._index_path))
            for forgotten in self.folder.glob(".*.tmp"):
                forgotten.unlink(missing_ok=True)
            label, begun = f"tokenising the {self.feed.label}", self.tokens
            with progress_bar(
                desc=label,
                unit="tok",
                unit_scale=True,
                delay=1.0,
                disable=quiet or None,
                leave=False,
            ) as bar:
                while not enough():
                    if self._maker is None or self._maker[1] != self.index:
                        self._maker = make_shards(self.feed, self.index, self._held()), self.index
                    if made := next(self._maker[0]):
                        before = self.tokens
                        self._view = _View(self._write(made))
                        self._maker = self._maker[0], self.index
                        bar.update(self.tokens - before)
            if self.tokens > begun:
                new, total = self.tokens - begun, self.tokens
                log.info("%s: %d tokens more, %d in %s", label, new, total, self.folder)

    def _write(self, made: NewShard) -> Index:
        """Write one shard and then the index that makes it part of the store; return the index."""
        number, shards = len(self.index.shards), self.index.shards
        if made.documents:
            tokens, ends = self._put(f"{number:05d}", made.documents)
            shards = (*shards, Shard(*tokens, *ends))
        held = "".join(self._put(f"{number:05d}.held", made.held)[1]) if made.held else ""
        index = replace(made.after, shards=shards, held_sha256=held)
        index.write(self._index_path)
        for old in self.folder.glob("*.held.*.npy"):
            if not (made.held and old.name.startswith(f"{number:05d}")):
                old.unlink()
        return index

    def _put(self, stem: str, documents: list[Array]) -> tuple[tuple[int, int], tuple[str, str]]:
        """Write documents; return (tokens, documents) and the two hashes."""
        tokens = np.concatenate(documents).astype(self.feed.dtype)
        ends = np.cumsum([len(document) for document in documents], dtype=np.int64)
        paths = [self.folder / f"{stem}.{kind}.npy" for kind in ("tokens", "ends")]
        return (len(tokens), len(ends)), (
            cache.write_array(paths[0], tokens),
            cache.write_array(paths[1], ends),
        )

    def _held(self) -> list[Array]:
        """Return the shuffle buffer as it was after the last shard."""
        if not self.index.held:
            return []
        stem = self.folder / f"{len(self.index.shards) - 1:05d}.held"
        try:
            tokens, ends = (
                np.load(f"{stem}.{kind}.npy", allow_pickle=False) for kind in ("tokens", "ends")
            )
        except (OSError, ValueError, EOFError) as error:
            raise DataError(
                f"the cached shuffle buffer cannot be read ({error}); delete {self.folder} and run again"
            ) from error
        if cache.array_hash(tokens) + cache.array_hash(ends) != self.index.held_sha256:
            raise DataError(
                f"the cached shuffle buffer is damaged; delete {self.folder} and run again"
            )
        return [array.astype(np.int64) for array in np.split(tokens, ends[:-1])]
