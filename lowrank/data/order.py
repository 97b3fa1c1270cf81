"""Permutations that every process can compute alone, on every machine and with every version.

NumPy does not guarantee that its generators keep their streams between versions, but a study that
is resumed after an upgrade must see the same rows. The orders here are integer arithmetic: the
finaliser of SplitMix64 (Steele, Lea and Flood, 2014).
"""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Iterator
from typing import Generic, TypeVar

import numpy as np
import numpy.typing as npt

T = TypeVar("T")
_MASK = (1 << 64) - 1


def key(*parts: Hashable) -> int:
    """Return a 64-bit key of ``parts`` (strings and integers)."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:8], "little")


def permutation(size: int, seed: int) -> npt.NDArray[np.int64]:
    """Return the permutation of ``range(size)`` that is keyed by the 64-bit ``seed``.

    The mixer is a bijection of 64-bit words, so no two sort keys are equal and every sorting
    algorithm yields the same order.
    """
    with np.errstate(over="ignore"):
        words = np.arange(1, size + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(
            seed & _MASK
        )
        words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        words ^= words >> np.uint64(31)
    return np.argsort(words).astype(np.int64)


def draw(seed: int, counter: int) -> int:
    """Return word ``counter`` of the stream ``seed``, uniform in [0, 2^64)."""
    word = ((counter + 1) * 0x9E3779B97F4A7C15 + seed) & _MASK
    word = ((word ^ (word >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    word = ((word ^ (word >> 27)) * 0x94D049BB133111EB) & _MASK
    return word ^ (word >> 31)


class Reservoir(Generic[T]):
    """Shuffle a stream through a buffer of ``size`` items.

    Once the buffer is full, every incoming item replaces a random one, which leaves. A buffer of
    size 0 keeps the order. The state is ``held``, the items in the buffer, and ``count``, the
    number of items that left the full buffer.
    """

    def __init__(self, size: int, seed: int, held: list[T] | None = None, count: int = 0) -> None:
        self.size, self.seed, self.held, self.count = size, seed, held or [], count

    def push(self, item: T) -> Iterator[T]:
        """Add ``item``; yield the item that leaves, if one does."""
        if self.size == 0:
            yield item
            return
        if len(self.held) < self.size:
            self.held.append(item)
            return
        slot = draw(self.seed, self.count) % self.size
        self.count += 1
        leaving, self.held[slot] = self.held[slot], item
        yield leaving

    def drain(self) -> Iterator[T]:
        """Yield the remaining items in random order, once the stream has ended."""
        rest, self.held = self.held, []
        yield from (rest[i] for i in permutation(len(rest), draw(self.seed, self.count)))
