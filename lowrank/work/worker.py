"""One process's share of a stage's missing work; the processes on one store share it by claims."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import Generic, TypedDict, TypeVar

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
from lowrank.store.retry import with_retry
from lowrank.work.stage import Claimed, Item, Stage, sentence_of
from lowrank.work.summary import WorkSummary

T = TypeVar("T")
R = TypeVar("R")
log = logging.getLogger(__name__)
POLL = 2.0  # seconds between two looks at items that other processes hold
Groups = list[tuple[str, list[Item[T]]]]


@dataclass(frozen=True)
class Failure(Generic[T]):
    """An item that failed in this process.

    ``is_result`` marks an error that is a result of the work, such as a diverged run.
    """

    item: Item[T]
    error: Exception
    sentence: str
    is_result: bool = False


class WorkerOptions(TypedDict, total=False):
    """Options of a :class:`Worker`, which functions that make one pass on to it."""

    retry_failed: bool
    progress: bool
    poll: float


def do_missing(stage: Stage[T, R], worker: Worker[T, R]) -> WorkSummary:
    """Do everything that ``stage`` lacks, together with every other process that calls this.

    A failed item does not stop the others. Returns when nothing is missing that can be done: items
    that other processes hold are waited for, and taken over if those processes die.
    """
    with worker.claimed() as items:
        for item in items:
            with worker.attempt(item):
                worker.store_result(item, stage.compute(item))
    return worker.summary


class Worker(Generic[T, R]):
    """Claims the missing items of ``stage`` and hands them out one after the other.

    Items that failed earlier are left alone unless ``retry_failed``; what fails here is not tried
    again by this worker. ``progress`` False shows no bar, as in a process whose progress another
    one shows. ``poll`` is the time in seconds between two looks at items that others hold.
    """

    def __init__(
        self,
        store: Store,
        stage: Stage[T, R],
        *,
        retry_failed: bool = False,
        progress: bool = True,
        poll: float = POLL,
    ) -> None:
        self.store, self.stage, self.shown, self.poll = store, stage, progress, poll
        self.claims = Claims(store, stage.claims, study_id=stage.study_id)
        self.units, self.rows = 0, 0  # done here, stored here
        self.failures: list[Failure[T]] = []
        self.left_alone: list[Item[T]] = []
        self.blocked: list[Item[T]] = []
        self.notes: list[str] = []
        # Keys of failed items to try again; None: those that have failed at the first plan.
        self._retried: set[str] | None = None if retry_failed else set()
        self._tried: set[str] = set()  # keys of items that this worker never does again

    @property
    def summary(self) -> WorkSummary:
        """What this worker did, and a sentence for everything that it left undone."""
        results = [f for f in self.failures if f.is_result]
        failed = [f for f in self.failures if not f.is_result]
        return WorkSummary(
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
        """Claim one item in the block; raise :class:`BusyError` if another process holds it."""
        with self.claims.require(item.group, item.label) as claim:
            yield Claimed(item, self.store.guarded(claim.confirm), claim)

    def _items(self, bar: ProgressBar) -> Generator[Claimed[T], None, None]:
        """Plan and work in rounds until nothing is missing that can be done."""
        while True:
            # CPU time of this thread: on a crowded machine, waiting for a core is no reason to look
            # at the store less often.
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
        self, groups: Groups[T], looked: dict[str, str], bar: ProgressBar, valid: float
    ) -> Generator[Claimed[T], None, bool]:
        """Work through ``groups``; return whether any could be claimed.

        ``looked`` maps the groups that others hold to owners known to be dead. The plan counts as
        out of date after ``valid`` seconds: a group that others were quicker to do then ends the
        round.
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
            if did:
                continue
            if time.monotonic() - begun > valid:
                return True
            groups = _from_random(groups)
        return acquired

    def _group(
        self, items: Sequence[Item[T]], claim: Claim, bar: ProgressBar
    ) -> Generator[Claimed[T], None, bool]:
        """Hand out the items of a claimed group; return whether any was left to do.

        It stops where the claim is lost: the process that holds it now does the rest.
        """
        did, store = False, self.store.guarded(claim.confirm)
        try:
            for number, item in enumerate(items, start=1):
                if not item.error and self.stage.stored_error(item):
                    continue  # it has failed since it was planned: the next plan leaves it alone
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
        """Return the items to do now by group; record those that are blocked or failed earlier."""
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
            groups.setdefault(item.group, []).append(item)
        return list(groups.items())

    # -- one item

    @contextmanager
    def attempt(self, claimed: Claimed[T]) -> Iterator[None]:
        """Do one item in the block; store an error that is raised there as the item's failure.

        Errors that are not the item's are treated otherwise: a store or a disk that cannot be
        written ends the work, and a lost claim leaves the item to the process that holds it now.
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

        It is tried again while the database is away: storing rows twice is harmless.
        """

        def save(store: Store) -> int:
            if claimed.item.error:  # that of an earlier attempt
                store.forget_unit(claimed.item.key)
            return self.stage.save(claimed.work, result, store)

        self.rows += self._save(claimed, save)

    def _save(self, claimed: Claimed[T], save: Callable[[Store], int]) -> int:
        """Call ``save`` in a transaction, again while the database is away; return its rows.

        A COMMIT whose answer is lost with the connection has ended the claim together with the
        rows. The next attempt then finds the claim gone and the rows there: they are this
        process's, and how many were new is not known any more.
        """
        attempts = 0

        def once() -> int:
            nonlocal attempts
            attempts += 1
            with self._saving(claimed) as store:
                return save(store)

        try:
            return with_retry(once)
        except ClaimLostError:
            if attempts == 1 or self._open(claimed):
                raise
            return 0

    def _open(self, claimed: Claimed[T]) -> bool:
        """Return whether an item has neither its rows nor a stored failure."""
        stage = self.stage
        return stage.still_missing(claimed.work) and not stage.stored_error(claimed.item)

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
            self._save(claimed, lambda store: self._store_failure(item, error, trace, store))
        except ClaimLostError as lost:
            self._give_up(claimed, lost)
            return
        is_result = self.stage.is_result(error)
        self.units += is_result
        self.failures.append(Failure(item, error, sentence, is_result))

    def _store_failure(self, item: Item[T], error: Exception, trace: str, store: Store) -> int:
        self.stage.fail(item, error, trace, store)
        return 0

    def _give_up(self, claimed: Claimed[T], error: Exception) -> None:
        """Leave an item to the process that holds it; a later round looks at it again."""
        claimed.claim.give_up()
        note = f"{claimed.item.label}: {sentence_of(error)}"
        if note not in self.notes:
            self.notes.append(note)


def _from_random(groups: Groups[T]) -> Groups[T]:
    """Return the groups in the same cyclic order, beginning at a random one.

    Several processes would otherwise all try to claim the first.
    """
    start = random.randrange(len(groups)) if groups else 0
    return groups[start:] + groups[:start]
