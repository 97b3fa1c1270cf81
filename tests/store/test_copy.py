"""Copying, merging and comparing stores, between both databases."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from lowrank.errors import ConflictError, StoreError
from lowrank.store import Store, differences, records
from lowrank.store.copy import copy_store
from lowrank.store.rows import record_types

Populate = Callable[..., None]


@pytest.fixture
def source(tmp_path: Path, populate: Populate) -> str:
    """A populated SQLite store; ids of its rows do not start at one."""
    url = f"sqlite:///{tmp_path / 'source.db'}"
    with Store.open(url, create=True) as store:
        populate(store, study="other", methods=("fira",))
        populate(store)
    return url


def test_every_table_is_in_the_sample(source: str) -> None:
    with Store.open(source, read_only=True) as store:
        assert [cls.__name__ for cls in record_types() if not store.count(cls)] == []


def test_there_and_back_is_the_same(source: str, empty_url: str, tmp_path: Path) -> None:
    back = f"sqlite:///{tmp_path / 'back.db'}"
    counts = copy_store(source, empty_url)
    copy_store(empty_url, back)
    with Store.open(source) as one, Store.open(empty_url) as there, Store.open(back) as two:
        assert differences(one, there, ignore_volatile=False) == []
        assert differences(one, two, ignore_volatile=False) == []
        for cls in record_types():
            assert one.count(cls) == two.count(cls)
    assert {row["table"]: row["rows"] for row in counts}["metric_value"] == 3 * 7
    assert all(row["added"] in (0, row["rows"]) for row in counts)


def test_merging_remaps_what_rows_refer_to(source: str, store_url: str, populate: Populate) -> None:
    with Store.open(store_url) as target:
        populate(target, study="mine", methods=("relora", "cola"))
    copy_store(source, store_url)
    assert all(row["added"] == 0 for row in copy_store(source, store_url))
    with Store.open(store_url) as target:
        _, rows = target.select(
            "SELECT study, method FROM metric_view WHERE metric = 'effective_rank_w' ORDER BY study, method"
        )
        assert rows == [
            ("demo", "full_rank"),
            ("demo", "galore"),
            ("mine", "cola"),
            ("mine", "relora"),
            ("other", "fira"),
        ]
        _, foreign = target.select(
            "SELECT count(*) FROM metric_view WHERE reference_run_id <> run_id"
        )
        assert foreign == [(0,)]


def test_a_conflict_leaves_the_target_as_it_was(
    source: str, store_url: str, populate: Populate
) -> None:
    with Store.open(store_url) as target:
        populate(target, methods=("full_rank",))
        checkpoint = target.find(records.Checkpoint)[-1]
        protocol = target.find(records.Protocol)[0]
        target.add(
            records.SingularValue(
                checkpoint_id=checkpoint.id or 0,
                protocol_id=protocol.id or 0,
                matrix="w",
                layer=0,
                module="q",
                position=0,
                value=9.0,
            )
        )
    with Store.open(source) as store:
        mine = next(
            c for c in store.find(records.Checkpoint) if (c.path, c.step) == ("full_rank/2", 2)
        )
        store.add(
            records.SingularValue(
                checkpoint_id=mine.id or 0,
                protocol_id=store.find(records.Protocol)[0].id or 0,
                matrix="w",
                layer=0,
                module="q",
                position=0,
                value=1.0,
            )
        )
    with pytest.raises(ConflictError, match=r"'singular_value' already has value = 9\.0 .* 1\.0"):
        copy_store(source, store_url, prefer="target")
    with Store.open(store_url) as target:
        assert [run.method for run in target.find(records.Run)] == ["full_rank"]


@pytest.mark.parametrize("prefer", ["source", "target"])
def test_a_state_that_differs_asks_for_a_preference(
    source: str, store_url: str, populate: Populate, prefer: str
) -> None:
    with Store.open(store_url) as target:
        populate(target)
        run = target.find(records.Run)[0]
        target.update(records.Run, run.id, status="failed", error="killed")
    with pytest.raises(
        ConflictError,
        match=r"'run' .* error = '' in the source and 'killed' in the target.*--prefer",
    ):
        copy_store(source, store_url)
    copy_store(source, store_url, prefer=prefer)  # type: ignore[arg-type]
    with Store.open(store_url) as target:
        assert (
            target.get(records.Run, run.id).status == {"source": "done", "target": "failed"}[prefer]
        )


def test_a_store_is_not_copied_onto_itself(source: str) -> None:
    with pytest.raises(StoreError, match="name two databases"):
        copy_store(source, source)


def test_differences_are_found(sqlite_store: Store, tmp_path: Path, populate: Populate) -> None:
    populate(sqlite_store)
    with Store.open(tmp_path / "other.db", create=True) as other:
        populate(other, methods=("full_rank", "galore"))
        assert differences(sqlite_store, other) == []
        run = other.find(records.Run)[1]
        other.update(records.Run, run.id, train_seconds=99.0)
        assert differences(sqlite_store, other) == []
        assert [
            line.rpartition(": ")[2]
            for line in differences(sqlite_store, other, ignore_volatile=False)
        ] == ["train_seconds is 1.5 and 99.0"]
        other.update(records.Run, run.id, status="failed")
        other.add(replace(other.find(records.TrainingLog)[0], id=None, step=7))
        sqlite_store.add(replace(sqlite_store.find(records.PublishedValue)[0], id=None, item="new"))
        found = differences(sqlite_store, other)
    assert len(found) == 3
    assert any(
        line.startswith("published_value") and line.endswith("only in the first store")
        for line in found
    )
    assert any(
        line.startswith("training_log") and line.endswith("only in the second store")
        for line in found
    )
    assert any(
        line.startswith("run") and line.endswith("status is 'done' and 'failed'") for line in found
    )


def test_a_snapshot_stays_at_its_moment(store: Store, store_url: str) -> None:
    with Store.open(store_url) as writer, store.snapshot():
        before = store.count(records.Study)
        writer.add(records.Study(name="late", config={}, config_hash=""))
        assert (before, store.count(records.Study)) == (0, 0)
        with pytest.raises(StoreError, match="snapshot is for reading"):
            store.add(records.Study(name="mine", config={}, config_hash=""))
    assert store.count(records.Study) == 1


def test_a_snapshot_inside_a_transaction_leaves_it_intact(store: Store) -> None:
    with store.transaction():
        store.add(records.Study(name="one", config={}, config_hash=""))
        with store.snapshot():
            assert store.count(records.Study) == 1
        store.add(records.Study(name="two", config={}, config_hash=""))
    assert store.count(records.Study) == 2


def test_tracebacks_are_copied_and_not_compared(
    source: str, store_url: str, populate: Populate
) -> None:
    """Where a failure stands in the code is the machine's affair; which one it is, is not."""
    with Store.open(source) as one:
        run = one.find(records.Run)[0]
        one.update(records.Run, run.id, status="failed", error="why", traceback="here")
        one.put(records.WorkUnit(unit_key="a", kind="measure", status="failed", traceback="here"))
    copy_store(source, store_url)
    with Store.open(source) as one, Store.open(store_url) as two:
        assert differences(one, two, ignore_volatile=False) == []
        (copied,) = two.find(records.Run, traceback="here")
        two.update(records.Run, copied.id, traceback="there")
        assert differences(one, two) == []
        (sentence,) = differences(one, two, ignore_volatile=False)
        assert sentence.endswith("traceback is 'here' and 'there'")
    assert all(row["added"] == 0 for row in copy_store(source, store_url))
    copy_store(source, store_url, prefer="source")
    with Store.open(store_url) as two:
        assert [run.traceback for run in two.find(records.Run, status="failed")] == ["here"]
