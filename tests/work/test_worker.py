"""The engine of missing work: every item once, whatever happens to the loop or to the others."""

from __future__ import annotations

import multiprocessing
import threading
import time
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from lowrank.errors import (
    BusyError,
    ClaimLostError,
    ConflictError,
    DiskError,
    LowrankError,
    StoreAwayError,
    StoreError,
)
from lowrank.store import Store, owner, records
from lowrank.store.claims import UNITS, Claims
from lowrank.work import Claimed, Item, Stage, Worker, do_missing


class Names(Stage[str, str]):
    """Each item is a name, done when the store has a study of that name."""

    name = "test"
    unit = "name"
    claims = "test"

    def __init__(
        self, store: Store, names: list[str], groups: Callable[[str], str] = lambda name: name
    ) -> None:
        self.store, self.names, self.groups = store, names, groups
        self.computed: list[str] = []
        self.released: list[str] = []
        self.left = 0

    def items(self) -> list[Item[str]]:
        failed = {u.unit_key: u.error for u in self.store.find(records.WorkUnit, status="failed")}
        return [
            Item(name, name, f"group {self.groups(name)}", f"name {name}", failed.get(name, ""))
            for name in self.names
            if self.still_missing(name)
        ]

    def still_missing(self, work: str) -> bool:
        return self.store.first(records.Study, name=work) is None

    def compute(self, claimed: Claimed[str]) -> str:
        self.computed.append(claimed.work)
        return claimed.work

    def save(self, work: str, result: str, store: Store) -> int:
        return store.add_all([records.Study(name=result, config={}, config_hash="x")])

    def release(self, work: str) -> None:
        self.released.append(work)

    def leave(self) -> None:
        self.left += 1


class Breaking(Names):
    """Raises ``error`` at the item ``at``."""

    def __init__(self, store: Store, names: list[str], at: str, error: BaseException) -> None:
        super().__init__(store, names)
        self.at, self.error = at, error

    def compute(self, claimed: Claimed[str]) -> str:
        if claimed.work == self.at:
            raise self.error
        return super().compute(claimed)


def done(store: Store) -> set[str]:
    return {study.name for study in store.find(records.Study)}


def worker_of(store: Store, stage: Stage[Any, Any], **options: Any) -> Worker[Any, Any]:
    return Worker(store, stage, progress=False, poll=0.05, **options)


def taken(store: Store) -> set[str]:
    return {unit.unit_key for unit in store.find(records.WorkUnit, status="claimed")}


# -- the ways out of the loop


def test_a_loop_that_ends_has_done_everything(store: Store) -> None:
    stage = Names(store, ["a", "b", "c"], groups=lambda name: "x" if name < "c" else "y")
    summary = do_missing(stage, worker_of(store, stage))
    assert (summary.units, summary.rows, summary.complete) == (3, 3, True)
    assert done(store) == {"a", "b", "c"}
    assert stage.released == ["a", "b", "c"]
    assert stage.left == 2
    assert store.count(records.WorkUnit) == 0


@pytest.mark.parametrize("ending", ["break", "exception", "interruption"])
def test_a_loop_that_is_left_gives_its_item_back(store: Store, ending: str) -> None:
    stage = Names(store, ["a", "b"], groups=lambda name: "both")
    worker = worker_of(store, stage)
    raised: type[BaseException] = {"exception": ZeroDivisionError}.get(ending, KeyboardInterrupt)

    def walk() -> None:
        with worker.claimed() as items:
            for item in items:
                assert taken(store) == {"group both"}
                if ending == "break":
                    break
                with worker.attempt(item):
                    worker.store_result(item, stage.compute(item))
                raise raised

    if ending == "break":
        walk()
    else:
        with pytest.raises(raised) as caught:
            walk()
        assert caught.tb is not None  # the traceback keeps the loop's frame, and not the claim
    assert store.count(records.WorkUnit) == 0
    assert done(store) == (set() if ending == "break" else {"a"})
    assert stage.left == 1
    other = Names(store, ["a", "b"])
    do_missing(other, worker_of(store, other))
    assert done(store) == {"a", "b"}


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(1)])
def test_an_interruption_within_an_item_is_no_failure(store: Store, error: BaseException) -> None:
    stage = Breaking(store, ["a", "b"], "b", error)
    with pytest.raises(type(error)):
        do_missing(stage, worker_of(store, stage))
    assert done(store) == {"a"}
    assert store.count(records.WorkUnit) == 0


# -- errors


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (LowrankError("it does not fit"), "it does not fit"),
        (RuntimeError("CUDA out of memory"), "RuntimeError: CUDA out of memory"),
        (ConflictError("another value is there"), "another value is there"),
        (KeyError(), "KeyError"),
    ],
)
def test_a_failed_item_stops_no_other(store: Store, error: Exception, sentence: str) -> None:
    stage = Breaking(store, ["a", "b", "c"], "b", error)
    worker = worker_of(store, stage)
    summary = do_missing(stage, worker)
    assert (summary.units, summary.failed, summary.complete) == (2, [f"name b: {sentence}"], False)
    assert done(store) == {"a", "c"}
    (failed,) = store.find(records.WorkUnit)
    assert (failed.unit_key, failed.kind, failed.status) == ("b", "test", "failed")
    assert (failed.error, failed.attempts) == (sentence, 1)
    expected = isinstance(error, LowrankError)
    assert failed.traceback == "" if expected else "in compute\n" in failed.traceback

    again = do_missing(stage, worker_of(store, stage))
    assert (again.units, again.failed) == (0, [])
    (left,) = again.left_alone
    assert left == f"name b failed earlier: {sentence} (--retry-failed tries it again)"

    do_missing(stage, worker_of(store, stage, retry_failed=True))
    (failed,) = store.find(records.WorkUnit)
    assert failed.attempts == 2
    fixed = Names(store, ["a", "b", "c"])
    assert do_missing(fixed, worker_of(store, fixed, retry_failed=True)).units == 1
    assert store.count(records.WorkUnit) == 0


@pytest.mark.parametrize(
    "error", [StoreError("no such table"), DiskError("the disk is full"), StoreAwayError("away")]
)
def test_without_store_or_disk_the_work_ends(store: Store, error: Exception) -> None:
    stage = Breaking(store, ["a", "b"], "a", error)
    with pytest.raises(type(error)):
        do_missing(stage, worker_of(store, stage))
    assert store.count(records.WorkUnit) == 0  # the item has not failed: anybody may try


def test_a_result_that_is_an_error_is_a_note(store: Store) -> None:
    class Diverging(Breaking):
        def is_result(self, error: Exception) -> bool:
            return isinstance(error, LowrankError)

    stage = Diverging(store, ["a"], "a", LowrankError("the loss is nan"))
    summary = do_missing(stage, worker_of(store, stage))
    assert (summary.units, summary.failed) == (1, [])
    assert summary.notes == ["name a: the loss is nan"]


def test_blocked_items_are_left_with_their_reason(store: Store) -> None:
    class Blocked(Names):
        def items(self) -> list[Item[str]]:
            return [Item("a", "a", "a", "name a", blocked="there is no reference")]

    stage = Blocked(store, ["a"])
    summary = do_missing(stage, worker_of(store, stage))
    assert (summary.units, summary.blocked) == (0, ["name a: there is no reference"])
    assert not summary.complete


# -- writes under a claim


def lose_all_claims(store: Store) -> None:
    with store.connection(writes=True) as connection:
        connection.execute(sa.update(UNITS).values(owner="elsewhere@0/1/2/3", lease_until=1e12))


def test_nothing_is_written_once_the_claim_is_lost(store: Store) -> None:
    stage = Names(store, ["a"])
    worker = worker_of(store, stage)
    writes: list[Callable[[Store], object]] = [
        lambda s: s.add(records.Study(name="late", config={}, config_hash="")),
        lambda s: s.add_all([records.Study(name="late", config={}, config_hash="")]),
        lambda s: s.put(records.WorkUnit(unit_key="late", kind="test", status="failed")),
        lambda s: s.update(records.Study, 1, config={"late": 1}),
        lambda s: s.forget_unit("group a"),
        lambda s: s.forget_training_log(1, 0),
    ]
    store.add(records.Study(name="early", config={}, config_hash=""))
    with worker.claimed() as items:
        for item in items:
            item.store.add(records.Study(name="before", config={}, config_hash=""))
            lose_all_claims(store)
            for write in writes:
                with pytest.raises(ClaimLostError):
                    write(item.store)
            with pytest.raises(ClaimLostError), item.store.transaction() as whole:
                whole.add(records.Study(name="late", config={}, config_hash=""))
            with pytest.raises(ClaimLostError):
                item.check()
            break
    assert done(store) == {"early", "before"}
    assert taken(store) == {"group a"}  # it is another's now


@pytest.mark.parametrize("fails", [False, True])
def test_results_and_failures_of_a_lost_item_are_its_successors(store: Store, fails: bool) -> None:
    class Slow(Names):
        def compute(self, claimed: Claimed[str]) -> str:
            lose_all_claims(store)
            if fails:
                raise RuntimeError("too late to matter")
            return super().compute(claimed)

    stage = Slow(store, ["a"])
    worker = worker_of(store, stage)
    with worker.claimed() as items:
        for item in items:
            with worker.attempt(item):
                worker.store_result(item, stage.compute(item))
            break
    assert done(store) == set()
    assert [unit.status for unit in store.find(records.WorkUnit)] == ["claimed"]
    assert worker.failures == []
    (note,) = worker.notes
    assert note.startswith("name a: the claim on 'group a' was lost")


def test_required_is_refused_where_another_process_has_the_item(store: Store) -> None:
    stage = Names(store, ["a"])
    (item,) = stage.items()
    with (
        Claims(store, "test").hold(item.group),
        pytest.raises(BusyError, match="name a: process"),
        worker_of(store, stage).required(item),
    ):
        pass


# -- several workers


def elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make claims from here on those of another machine, whose processes cannot be looked up."""
    monkeypatch.setattr(owner, "machine", lambda: "elsewhere@0")


class Logged(Names):
    """Writes a line of a file for every execution."""

    def __init__(self, store: Store, names: list[str], log: Path) -> None:
        super().__init__(store, names)
        self.log = log

    def compute(self, claimed: Claimed[str]) -> str:
        with self.log.open("a") as handle:
            handle.write(f"{claimed.work}\n")
        return claimed.work


def work_through(url: str, names: list[str], log: Path) -> None:
    with Store.open(url) as store:
        stage = Logged(store, names, log)
        do_missing(stage, worker_of(store, stage))


def restless(url: str, names: list[str], log: Path) -> None:
    """Run :func:`work_through`, again whenever the database goes away."""
    while True:
        try:
            work_through(url, names, log)
        except StoreAwayError:
            time.sleep(0.05)
        else:
            return


@pytest.mark.parametrize("kind", ["threads", "processes"])
def test_every_item_exactly_once(store: Store, store_url: str, tmp_path: Path, kind: str) -> None:
    log, names = tmp_path / "log", [f"u{i}" for i in range(40)]
    log.touch()
    make: Any = (
        threading.Thread if kind == "threads" else multiprocessing.get_context("fork").Process
    )
    workers = [make(target=work_through, args=(store_url, names, log)) for _ in range(6)]
    for one in workers:
        one.start()
    for one in workers:
        one.join()
    assert sorted(log.read_text().split()) == sorted(names)
    assert done(store) >= set(names)
    assert store.count(records.WorkUnit) == 0


@pytest.mark.postgres
def test_a_server_stopped_and_started_under_load_costs_nothing(
    postgres_server: Any, postgres_store_url: str, tmp_path: Path
) -> None:
    log, names = tmp_path / "log", [f"u{i}" for i in range(200)]
    log.touch()
    context, arguments = multiprocessing.get_context("fork"), (postgres_store_url, names, log)
    workers = [context.Process(target=restless, args=arguments) for _ in range(6)]
    for one in workers:
        one.start()
    for fraction in (0.2, 0.5):
        while len(log.read_text().split()) < fraction * len(names):
            time.sleep(0.01)
        postgres_server.stop()
        postgres_server.start()
    for one in workers:
        one.join()
    assert [one.exitcode for one in workers] == [0] * len(workers)
    executed = log.read_text().split()
    assert set(executed) == set(names)
    # What was computed and not stored when the server stopped was computed again.
    assert len(names) <= len(executed) <= len(names) + 2 * len(workers)
    with Store.open(postgres_store_url) as store:
        assert done(store) >= set(names)
        assert store.count(records.WorkUnit) == 0


def test_the_items_of_a_worker_that_dies_are_done_by_the_others(
    store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        elsewhere(patch)
        assert Claims(store, "test", lease=0.5).claim("group a") is not None
    stage = Names(store, ["a", "b"])
    assert do_missing(stage, Worker(store, stage, poll=0.1)).units == 2
    assert stage.computed == ["b", "a"]
    assert "test: 1 unit is with other processes; waiting" in capsys.readouterr().err


def test_the_claim_of_who_died_after_the_work_goes(store: Store) -> None:
    with pytest.MonkeyPatch.context() as patch:
        elsewhere(patch)
        assert Claims(store, "test", lease=0.0).claim("done") is not None
        assert Claims(store, "other", lease=0.0).claim("of another kind") is not None
        assert Claims(store, "test", lease=60.0).claim("alive") is not None
    stage = Names(store, [])
    assert do_missing(stage, worker_of(store, stage)).units == 0
    assert taken(store) == {"of another kind", "alive"}


def test_what_was_found_done_is_not_looked_at_for_ever(sqlite_store: Store) -> None:
    class Forgetful(Names):
        """Plans an item for ever, though nothing is left to do of it."""

        def items(self) -> list[Item[str]]:
            return [Item("a", "a", "a", "a")]

        def still_missing(self, work: str) -> bool:
            return False

    stage = Forgetful(sqlite_store, ["a"])
    assert do_missing(stage, worker_of(sqlite_store, stage)).units == 0


# -- what changes between planning and claiming, and answers that are lost


class Planned(Names):
    """Runs ``meanwhile`` after each plan, as another process would."""

    def __init__(self, store: Store, names: list[str], meanwhile: Callable[[int], None]) -> None:
        super().__init__(store, names)
        self.meanwhile, self.plans = meanwhile, 0

    def announce(self, items: Any) -> None:
        self.plans += 1
        self.meanwhile(self.plans)


def test_an_item_that_failed_since_it_was_planned_is_left_alone(sqlite_store: Store) -> None:
    def fail_elsewhere(plans: int) -> None:
        if plans == 1:
            other = Breaking(sqlite_store, ["a"], "a", RuntimeError("no room"))
            do_missing(other, worker_of(sqlite_store, other))

    stage = Planned(sqlite_store, ["a", "b"], fail_elsewhere)
    summary = do_missing(stage, worker_of(sqlite_store, stage))
    assert stage.computed == ["b"]
    (left,) = summary.left_alone
    assert left.startswith("name a failed earlier: RuntimeError: no room")
    (failed,) = sqlite_store.find(records.WorkUnit)
    assert failed.attempts == 1


def test_an_item_that_was_blocked_is_done_once_it_can_be(sqlite_store: Store) -> None:
    """It becomes possible while another item of its group is done."""

    class Unblocked(Names):
        def items(self) -> list[Item[str]]:
            reason = "" if "a" in done(sqlite_store) else "a is not there"
            return [
                Item(name, name, "one group", name, blocked=reason if name == "b" else "")
                for name in self.names
                if self.still_missing(name)
            ]

    stage = Unblocked(sqlite_store, ["a", "b"])
    summary = do_missing(stage, worker_of(sqlite_store, stage))
    assert stage.computed == ["a", "b"]
    assert summary.complete


@pytest.mark.parametrize("fails", [False, True])
def test_a_commit_whose_answer_is_lost_is_this_processs_work(
    store: Store, monkeypatch: pytest.MonkeyPatch, fails: bool
) -> None:
    stage = Breaking(store, ["a"], "a" if fails else "none", RuntimeError("no room"))
    worker = worker_of(store, stage)
    whole, lost = worker._saving, [True]

    @contextmanager
    def answer_lost(claimed: Any) -> Any:
        with whole(claimed) as opened:
            yield opened
        if lost.pop() if lost else False:
            raise StoreAwayError("the connection broke")

    monkeypatch.setattr(worker, "_saving", answer_lost)
    summary = do_missing(stage, worker)
    assert not lost
    assert (summary.units, len(summary.failed), summary.notes) == (1 - fails, int(fails), [])
    assert done(store) == (set() if fails else {"a"})
    assert [unit.status for unit in store.find(records.WorkUnit)] == ["failed"] * fails
