"""One process's part of a stage's missing work, which it shares with every process on the store."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import Generic, TypeVar

from lowrank import logs
from lowrank.errors import (
    BusyError,
    ClaimLostError,
    ConflictError,
    DiskError,
    LowrankError,
    StoreError,
)
from lowrank.progress import ProgressBar, progress
from lowrank.store import Store
from lowrank.store.claims import Claim, Claims
from lowrank.store.patience import patiently
from lowrank.work.stage import Claimed, Item, Stage, sentence_of
from lowrank.work.summary import Summary

T = TypeVar("T")
R = TypeVar("R")
log = logging.getLogger(__name__)
POLL = 2.0  # seconds between two looks at items that other processes hold
Groups = list[tuple[str, list[Item[T]]]]


@dataclass(frozen=True)
class Failure(Generic[T]):
    """An item that failed here; ``is_result`` where that is an outcome worth keeping."""

    item: Item[T]
    error: Exception
    sentence: str
    is_result: bool = False


def do_missing(stage: Stage[T, R], worker: Worker[T, R]) -> Summary:
    """Do everything that ``stage`` lacks, together with every other process that calls this.

    A failed item stops no other. Returns when nothing is missing that can be done: what other
    processes hold is waited for, and taken over if they die.
    """
    with worker.claimed() as items:
        for item in items:
            with worker.attempt(item):
                worker.store_result(item, stage.compute(item))
    return worker.summary


class Worker(Generic[T, R]):
    """Claims the missing items of ``stage`` and hands them out one after the other.

    Items that failed earlier are left alone unless ``retry_failed``; what fails here is not tried
    again by this worker. ``shown`` is False for a process whose progress another one shows.
    """

    def __init__(
        self,
        store: Store,
        stage: Stage[T, R],
        *,
        retry_failed: bool = False,
        shown: bool = True,
        poll: float = POLL,
    ) -> None:
        self.store, self.stage, self.shown, self.poll = store, stage, shown, poll
        self.claims = Claims(store, stage.claims, study_id=stage.study_id)
        self.units, self.rows = 0, 0  # done here, stored here
        self.failures: list[Failure[T]] = []
        self.left_alone: list[Item[T]] = []
        self.blocked: list[Item[T]] = []
        self.notes: list[str] = []
        # None: the items that have failed when the first plan is made.
        self._retried: set[str] | None = None if retry_failed else set()
        self._tried: set[str] = set()  # keys of items that this worker is through with
        self._settled: set[str] = set()  # groups that this worker never looks at again

    @property
    def summary(self) -> Summary:
        """What this worker did, and a sentence for everything that it did not."""
        results = [f for f in self.failures if f.is_result]
        failed = [f for f in self.failures if not f.is_result]
        return Summary(
            units=self.units,
            rows=self.rows,
            failed=[f"{f.item.label}: {f.sentence}" for f in failed],
            left_alone=[
                f"{item.label} failed earlier: {item.error} (--retry-failed tries it again)"
                for item in self.left_alone
            ],
            blocked=[f"{item.label}: {item.blocked}" for item in self.blocked],
            notes=[self.stage.note(f.item, f.sentence) for f in results] + self.notes,
        )

    # -- the items, one after the other

    @contextmanager
    def claimed(self) -> Iterator[Iterator[Claimed[T]]]:
        """Give an iterator over claimed items; leaving the block releases what is held.

        However the loop over them ends (exhausted, ``break``, an exception, an interruption), the
        item in flight goes back to the others with the end of the block.
        """
        with (
            progress(self.stage.name, self.stage.unit, shown=self.shown, bar=self.stage.bar) as bar,
            closing(self._items(bar)) as items,
        ):
            yield items

    @contextmanager
    def required(self, item: Item[T]) -> Iterator[Claimed[T]]:
        """Claim one item; raises :class:`BusyError` where another process holds it."""
        with self.claims.require(item.group, item.label) as claim:
            yield Claimed(item, self.store.guarded(claim.confirm), claim)

    def _items(self, bar: ProgressBar) -> Generator[Claimed[T], None, None]:
        while True:
            # Its own time: on a crowded machine, waiting for a processor is no reason to look at
            # the store less often.
            begun = time.thread_time()
            groups = self._missing(bar)
            if not groups:
                bar.waiting(0)
                self.claims.sweep()
                return
            looked = self.claims.looked()
            free = [(key, items) for key, items in groups if looked.get(key, "dead")]
            cost = time.thread_time() - begun
            ordered = _from_random(free) if looked else free
            worked = yield from self._round(ordered, looked, bar, 20 * cost)
            bar.waiting(0 if worked else len(groups))
            if not worked:
                time.sleep(max(self.poll, 10 * cost) * random.uniform(0.75, 1.25))

    def _round(
        self, groups: Groups[T], looked: dict[str, str], bar: ProgressBar, patience: float
    ) -> Generator[Claimed[T], None, bool]:
        """Work through ``groups``; return whether any could be claimed.

        The round ends early where others are quicker and ``groups``, planned more than
        ``patience`` seconds ago, is out of date.
        """
        begun, acquired = time.monotonic(), False
        while groups:
            (key, items), *groups = groups
            did = False
            with self.claims.hold(key, looked.get(key, "")) as claim:
                if claim is not None:
                    did = yield from self._group(items, claim, bar)
            if claim is not None and not claim.lost:
                acquired = True
                self._settled.add(key)
            if did:
                continue
            if time.monotonic() - begun > patience:
                return True
            groups = _from_random(groups)
        return acquired

    def _group(
        self, items: Sequence[Item[T]], claim: Claim, bar: ProgressBar
    ) -> Generator[Claimed[T], None, bool]:
        """Hand out the items of a claimed group; return whether any was left to do.

        It ends where the claim is lost: whoever has it now goes on.
        """
        did, store = False, self.store.guarded(claim.confirm)
        try:
            for number, item in enumerate(items, start=1):
                if self.stage.still_missing(item.work):
                    did = True
                    bar.show(item.label)
                    yield Claimed(item, store, claim, last=number == len(items))
                    if claim.lost:
                        return False
                self._tried.add(item.key)
                self.stage.release(item.work)
                bar.advance()
        finally:
            self.stage.leave()
        return did

    def _missing(self, bar: ProgressBar) -> Groups[T]:
        """Plan what there is to do now, by group; note what is blocked or failed earlier."""
        items = self.stage.items()
        if self._retried is None:
            self._retried = {item.key for item in items if item.error}
        self.blocked, self.left_alone, todo = [], [], []
        for item in items:
            if item.blocked:
                self.blocked.append(item)
            elif item.key in self._tried:
                continue
            elif item.error and item.key not in self._retried:
                self.left_alone.append(item)
            else:
                todo.append(item)
        self.stage.announce(todo)
        bar.expect(len(todo))
        groups: dict[str, list[Item[T]]] = {}
        for item in todo:
            if item.group not in self._settled:
                groups.setdefault(item.group, []).append(item)
        return list(groups.items())

    # -- one item

    @contextmanager
    def attempt(self, claimed: Claimed[T]) -> Iterator[None]:
        """Do one item in the block; an error in it is stored as the item's failure.

        What is no failure of the item passes through or leaves it to others: a store or a disk that
        cannot be written ends the work, a lost claim means that another process has the item.
        """
        try:
            with self.stage.logged(claimed.work), logs.context(unit=claimed.item.key):
                log.info("%s begins", claimed.item.label)
                yield
                log.info("%s is done", claimed.item.label)
        except (ClaimLostError, BusyError) as error:
            self._give_up(claimed, error)
        except DiskError:
            raise  # without its folder a study cannot go on
        except StoreError as error:
            if not isinstance(error, ConflictError):
                raise  # nor without its store
            self._fail(claimed, error)
        except Exception as error:
            self._fail(claimed, error)
        else:
            self.units += 1

    def store_result(self, claimed: Claimed[T], result: R) -> None:
        """Store the rows of an item in one transaction, with the end of its claim.

        A database that is away for a while is waited for: storing rows again is harmless.
        """

        def store() -> int:
            with self._saving(claimed) as store:
                if claimed.item.error:  # that of an earlier attempt
                    store.forget_unit(claimed.item.key)
                return self.stage.save(claimed.work, result, store)

        self.rows += patiently(store)

    @contextmanager
    def _saving(self, claimed: Claimed[T]) -> Iterator[Store]:
        """Open a transaction that ends the claim together with the last rows of its group."""
        with claimed.store.transaction() as store:
            yield store
            if claimed.last:
                claimed.claim.finish()

    def _fail(self, claimed: Claimed[T], error: Exception) -> None:
        item, sentence = claimed.item, self.stage.sentence(claimed.item, error)
        trace = ""
        with self.stage.logged(item.work), logs.context(unit=item.key):
            if isinstance(error, LowrankError):
                log.warning("%s: %s", item.label, sentence, extra=logs.SHOWN)
            else:
                trace = logs.traceback_text(error)
                log.error("%s: %s", item.label, sentence, exc_info=error, extra=logs.SHOWN)
        try:
            with self._saving(claimed) as store:
                self.stage.fail(item, error, trace, store)
        except ClaimLostError as lost:
            self._give_up(claimed, lost)
            return
        is_result = self.stage.is_result(error)
        self.units += is_result
        self.failures.append(Failure(item, error, sentence, is_result))

    def _give_up(self, claimed: Claimed[T], error: Exception) -> None:
        """Leave an item to the process that has it; it is looked at again later."""
        claimed.claim.give_up()
        note = f"{claimed.item.label}: {sentence_of(error)}"
        if note not in self.notes:
            self.notes.append(note)


def _from_random(groups: Groups[T]) -> Groups[T]:
    """Return the groups in the same cyclic order from a random one on.

    Among several processes, all would want the first.
    """
    start = random.randrange(len(groups)) if groups else 0
    return groups[start:] + groups[:start]
