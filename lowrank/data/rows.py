"""Rows of ``max_length`` tokens over the documents of a split: their layout and their order."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import OrderedDict

import numpy as np
import numpy.typing as npt

from lowrank.data import order
from lowrank.data.shards import Array
from lowrank.data.tokens import TokenStore
from lowrank.errors import DataError

Mask = npt.NDArray[np.bool_]


class Layout(ABC):
    """Base class of layouts: how row ``number`` (0 <= number < ``available``) is read from the
    store.
    """

    def __init__(self, store: TokenStore, max_length: int, eos: int, pad: int) -> None:
        self.store, self.max_length, self.eos, self.pad = store, max_length, eos, pad

    @property
    @abstractmethod
    def available(self) -> int:
        """Number of rows on disk."""

    @abstractmethod
    def ensure(self, rows: int | None, *, ahead: bool = False) -> None:
        """Tokenise until ``rows`` rows are on disk or the text has ended; None tokenises all of it.

        With ``ahead``, the next shard is prepared in the background.
        """

    @abstractmethod
    def take(self, rows: Array) -> tuple[Array, Mask | None]:
        """Return the tokens (n, max_length) of ``rows`` (n,), and a mask that is False on padding.

        The mask is None if there is no padding.
        """

    @abstractmethod
    def scored(self, rows: Array) -> Array:
        """Return the number of targets after the shift in each of ``rows``, (n,)."""


class Packed(Layout):
    """Documents joined, each with its end token, and cut every ``max_length`` tokens.

    The incomplete last row is dropped.
    """

    @property
    def available(self) -> int:
        return self.store.tokens // self.max_length

    def ensure(self, rows: int | None, *, ahead: bool = False) -> None:
        self.store.ensure(tokens=None if rows is None else rows * self.max_length, ahead=ahead)

    def take(self, rows: Array) -> tuple[Array, None]:
        return self.store.gather(rows[:, None] * self.max_length + np.arange(self.max_length)), None

    def scored(self, rows: Array) -> Array:
        return np.full(rows.shape, self.max_length - 1, dtype=np.int64)


class Padded(Layout):
    """One document per row, as in the published runs.

    A longer document is cut after ``max_length - 1`` tokens and its end token, a shorter one is
    padded.
    """

    @property
    def available(self) -> int:
        return self.store.documents

    def ensure(self, rows: int | None, *, ahead: bool = False) -> None:
        self.store.ensure(documents=rows, ahead=ahead)

    def take(self, rows: Array) -> tuple[Array, Mask]:
        starts, lengths = self.store.spans(rows)
        column = np.arange(self.max_length)
        scored = column < lengths[:, None]
        tokens = self.store.gather(starts[:, None] + np.where(scored, column, 0))
        tokens[~scored] = self.pad
        tokens[lengths > self.max_length, -1] = self.eos
        return tokens, scored

    def scored(self, rows: Array) -> Array:
        return np.minimum(self.store.spans(rows)[1], self.max_length) - 1


LAYOUTS: dict[str, type[Layout]] = {"packed": Packed, "padded": Padded}


class Rows:
    """The rows of a split in the order of ``seed``, at positions 0, 1, 2, … without end.

    Every epoch contains each row once. Rows of a corpus on disk are permuted anew in every epoch. A
    streamed source shuffles its documents while reading; its rows keep that order in the first
    epoch and are permuted from the second on.
    """

    _KEPT = 2  # permutations: a batch may span two epochs

    def __init__(self, layout: Layout, seed: int, streamed: bool, label: str) -> None:
        self.layout, self.seed, self.streamed, self.label = layout, seed, streamed, label
        self._orders: OrderedDict[int, Array] = OrderedDict()

    def require(self, rows: int) -> None:
        """Raise :class:`DataError` unless there are at least ``rows`` different rows."""
        self.layout.ensure(rows if self.streamed else None)
        if self.layout.available < rows:
            have, length = self.layout.available, self.layout.max_length
            raise DataError(
                f"the {self.label} holds {have} row{'' if have == 1 else 's'} of {length} tokens, fewer than the {rows} needed; "
                "give more text, or lower training.batch_size or data.max_length"
            )

    def numbers(self, first: int, count: int, *, wrap: bool = True) -> Array:
        """Return the rows at positions ``first`` … ``first + count - 1``.

        Without ``wrap``, only those of the first epoch are returned.
        """
        if first < 0 or count < 0:
            raise ValueError(f"positions start at 0, got first={first}, count={count}")
        self.layout.ensure(first + count if self.streamed else None, ahead=wrap)
        size = self.layout.available
        count = count if wrap else max(0, min(count, size - first))
        positions = np.arange(first, first + count)
        if self.streamed and first + count <= size:
            return positions
        if positions.size and size == 0:
            self.require(1)
        numbers = np.empty_like(positions)
        for epoch in np.unique(positions // size) if size else ():
            here = positions // size == epoch
            numbers[here] = self._order(int(epoch), size)[positions[here] % size]
        return numbers

    def _order(self, epoch: int, size: int) -> Array:
        if epoch not in self._orders:
            natural = self.streamed and epoch == 0
            self._orders[epoch] = (
                np.arange(size)
                if natural
                else order.permutation(size, order.key("rows", self.seed, epoch))
            )
            while len(self._orders) > self._KEPT:
                self._orders.popitem(last=False)
        return self._orders[epoch]
