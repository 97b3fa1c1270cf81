"""What the engine needs to know of one kind of work."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import ClassVar, Generic, TypeVar

from lowrank.errors import LowrankError
from lowrank.store import Store, records
from lowrank.store.claims import Claim

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True)
class Item(Generic[T]):
    """One piece of work whose rows are not all stored.

    ``key`` names the item and means the same in every copy of the store; a failure is stored under
    it. ``group`` is the key under which a process claims the item together with others that share
    what is expensive, such as loading a checkpoint. ``error`` is that of an earlier attempt.
    ``blocked`` is the reason why the item cannot be done yet.
    """

    work: T
    key: str
    group: str
    label: str
    error: str = ""
    blocked: str = ""


@dataclass(frozen=True)
class Claimed(Generic[T]):
    """An item that this process holds.

    Every transaction of ``store`` first confirms the claim, so that nothing reaches the database
    once another process has taken the item over. ``last`` marks the last item of its group.
    """

    item: Item[T]
    store: Store
    claim: Claim
    last: bool = True

    @property
    def work(self) -> T:
        """The description of the work, as the stage made it."""
        return self.item.work

    def check(self) -> None:
        """Raise :class:`ClaimLostError` if another process is known to have taken the item over."""
        self.claim.check()


class Stage(ABC, Generic[T, R]):
    """One kind of missing work: ``T`` describes a piece of it, ``R`` is the result of computing it.

    ``name`` is shown on the progress bar and is the kind under which failures are stored, ``unit``
    is the unit of the bar and ``claims`` the kind of the claims. ``bar`` is False for a stage whose
    items each show a separate bar.
    """

    name: ClassVar[str]
    unit: ClassVar[str]
    claims: ClassVar[str]
    bar: ClassVar[bool] = True
    store: Store

    @abstractmethod
    def items(self) -> list[Item[T]]:
        """Return the items that lack rows, in the order to do them; write nothing.

        Failed and blocked items are among them, with their reason.
        """

    @abstractmethod
    def still_missing(self, work: T) -> bool:
        """Return whether the rows of ``work`` are still not all stored, after it was claimed."""

    @abstractmethod
    def compute(self, claimed: Claimed[T]) -> R:
        """Compute one item; everything written meanwhile goes through ``claimed.store``."""

    @abstractmethod
    def save(self, work: T, result: R, store: Store) -> int:
        """Store the rows of ``result``, inside a transaction; return how many are new."""

    def announce(self, items: Sequence[Item[T]]) -> None:
        """Prepare for ``items``, which come next in this order unless other processes do them."""

    def release(self, work: T) -> None:
        """Free what only ``work`` needed: it is stored, has failed, or another process did it."""

    def leave(self) -> None:
        """Free what the items of a group shared: this process is done with the group."""

    def is_result(self, error: Exception) -> bool:
        """Return whether ``error`` is a result, such as a diverged run, and not a failure."""
        return False

    def logged(self, work: T) -> AbstractContextManager[None]:
        """Return a context in which lines of the log name what ``work`` belongs to."""
        return nullcontext()

    def note(self, item: Item[T], sentence: str) -> str:
        """Return what to report of an error that is a result."""
        return f"{item.label}: {sentence}"

    def fail(self, item: Item[T], error: Exception, trace: str, store: Store) -> None:
        """Store that ``item`` has failed, inside a transaction.

        ``trace`` is the traceback of an unexpected error, '' for any other.
        """
        known = store.first(records.WorkUnit, unit_key=item.key)
        store.put(
            records.WorkUnit(
                unit_key=item.key,
                kind=self.name,
                status="failed",
                attempts=(known.attempts if known else 0) + 1,
                error=self.sentence(item, error),
                traceback=trace,
                study_id=self.study_id,
            )
        )

    def stored_error(self, item: Item[T]) -> str:
        """Return the error with which the item has failed, as the store has it now; '' for none."""
        failed = self.store.first(records.WorkUnit, unit_key=item.key, status="failed")
        return failed.error if failed else ""

    def sentence(self, item: Item[T], error: Exception) -> str:
        """Return the error as the sentence that is stored and shown."""
        return sentence_of(error)

    @property
    def study_id(self) -> int | None:
        """The id of the study whose work this is; claims and failures are stored under it."""
        return None


def failures(store: Store, kind: str) -> dict[str, str]:
    """Return the errors of the failed items of a kind, by their keys."""
    failed = store.find(records.WorkUnit, kind=kind, status="failed")
    return {unit.unit_key: unit.error for unit in failed}


def sentence_of(error: Exception) -> str:
    """Return the sentence of a :class:`LowrankError`; of other errors the class and the text."""
    if isinstance(error, LowrankError):
        return str(error)
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
