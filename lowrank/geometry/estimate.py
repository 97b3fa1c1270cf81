"""Estimates with standard errors, batches of an evaluation set, and the sharing of work."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TypeVar

if TYPE_CHECKING:
    from torch import Tensor

A = TypeVar("A")
T = TypeVar("T")


@dataclass(frozen=True)
class Estimate:
    """An estimate from ``n`` samples with its standard error, None for a single sample."""

    value: float
    standard_error: float | None = None
    n: int | None = None


@dataclass(frozen=True)
class EvaluationBatch:
    """Rows of the evaluation set: two tensors of shape (rows, length).

    ``labels`` equal ``input_ids``, except for -100 on padding, which is at the end of a row.
    """

    input_ids: Tensor
    labels: Tensor


class Sharer(Protocol):
    """Shares independent evaluations among the processes that compute a unit of work together."""

    @property
    def processes(self) -> int:
        """The number of these processes."""

    def map(self, compute: Callable[[A], T], items: Sequence[A]) -> list[T]:
        """Return ``compute`` of every item, in order.

        Every process calls this at the same place and gets all results. The result of an item must
        not depend on which other items the process computes.
        """

    def spread(self, compute: Callable[[A], T], items: Sequence[A]) -> list[T]:
        """Do as :meth:`map`; this is its name in version 0.1."""


class Alone:
    """A single process, which computes every item itself."""

    processes = 1

    def map(self, compute: Callable[[A], T], items: Sequence[A]) -> list[T]:
        """Return ``compute`` of every item, in order."""
        return [compute(item) for item in items]

    spread = map  # the name of 0.1


ALONE = Alone()
# Names of version 0.1, which other packages import.
Batch, Spreader = EvaluationBatch, Sharer
