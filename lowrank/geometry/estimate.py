"""Estimates with their standard errors, batches of an evaluation set, and how independent
evaluations are shared among processes.
"""

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
    """A value with the standard error of its mean; None where a single sample has none."""

    value: float
    standard_error: float | None = None
    n: int | None = None


@dataclass(frozen=True)
class Batch:
    """Rows of the evaluation set, (rows, length) each. ``labels`` are the inputs, -100 on padding,
    which stands at the end.
    """

    input_ids: Tensor
    labels: Tensor


class Spreader(Protocol):
    """Shares independent evaluations among the processes that compute a unit together."""

    @property
    def processes(self) -> int:
        """How many they are."""

    def spread(self, compute: Callable[[A], T], items: Sequence[A]) -> list[T]:
        """``compute`` of every item, in their order; every process calls this at the same place and
        gets all results.

        The result of an item must not depend on which others the process computes.
        """


class Alone:
    """One process."""

    processes = 1

    def spread(self, compute: Callable[[A], T], items: Sequence[A]) -> list[T]:
        """One after another."""
        return [compute(item) for item in items]


ALONE = Alone()
