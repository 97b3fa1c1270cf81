"""Many processes on one database: nothing is lost, nobody is told that the database is locked."""

from __future__ import annotations

import multiprocessing
import os
import resource
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from lowrank.errors import StoreError
from lowrank.store import Store, records

WRITERS, BATCHES, ROWS = 8, 10, 20


def write(url: str, writer: int, failures: Any) -> None:
    """A process that reads and writes in each transaction: a deferred transaction of SQLite would
    fail here.
    """
    try:
        with Store.open(url) as store:
            checkpoint, protocol = (
                store.find(records.Checkpoint)[0].id or 0,
                store.find(records.Protocol)[0].id or 0,
            )
            for batch in range(BATCHES):
                keys = {"checkpoint_id": checkpoint, "protocol_id": protocol, "layer": batch}
                with store.transaction():
                    store.first(records.Run)
                    store.add_all(
                        records.MetricValue(**keys, metric=f"w{writer}", module=str(i), value=1.0)
                        for i in range(ROWS)
                    )
                    store.add(records.MetricValue(**keys, metric="shared", value=2.0))
    except Exception as error:
        failures.put(f"{type(error).__name__}: {error}")


def test_eight_writers_and_a_reader(
    store: Store, store_url: str, populate: Callable[..., None]
) -> None:
    populate(store)
    before = store.count(records.MetricValue)
    context = multiprocessing.get_context("fork")
    failures = context.SimpleQueue()
    writers = [context.Process(target=write, args=(store_url, i, failures)) for i in range(WRITERS)]
    for writer in writers:
        writer.start()
    slowest = 0.0
    while any(writer.is_alive() for writer in writers):
        begun = time.perf_counter()
        store.count(records.MetricValue)
        slowest = max(slowest, time.perf_counter() - begun)
        time.sleep(0.01)
    assert failures.empty(), failures.get()
    assert [writer.exitcode for writer in writers] == [0] * WRITERS
    assert store.count(records.MetricValue) == before + WRITERS * BATCHES * ROWS + BATCHES
    assert slowest < 5.0


def test_threads_share_a_store(store: Store, populate: Callable[..., None]) -> None:
    populate(store)
    run = store.find(records.Run)[0]
    failures: list[Exception] = []

    def write(offset: int) -> None:
        try:
            steps = range(100 + offset, 150 + offset)
            store.add_all(
                records.TrainingLog(run_id=run.id or 0, step=step, loss=1.0, learning_rate=0.1)
                for step in steps
            )
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=write, args=(50 * i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert store.count(records.TrainingLog, run_id=run.id) == 2 + 200


def test_a_forked_process_opens_its_own_connections(
    store: Store, populate: Callable[..., None]
) -> None:
    populate(store)
    child = os.fork()
    if child == 0:  # pragma: no cover
        try:
            store.add(records.Study(name="child", config={}, config_hash=""))
            with store._engine.connect() as connection:
                os._exit(0 if connection.info["pid"] == os.getpid() else 2)
        except BaseException:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert store.first(records.Study, name="child") is not None
    assert store.count(records.Run) == 2


def test_a_thousand_metric_rows_are_one_short_transaction(
    sqlite_store: Store, populate: Callable[..., None]
) -> None:
    """The promise is 50 ms on an idle machine; here, on a shared one, ten times that."""
    populate(sqlite_store)
    checkpoint, protocol = (
        sqlite_store.find(records.Checkpoint)[0],
        sqlite_store.find(records.Protocol)[0],
    )
    rows = [
        records.MetricValue(
            checkpoint_id=checkpoint.id or 0,
            protocol_id=protocol.id or 0,
            metric="m",
            layer=i,
            value=float(i),
        )
        for i in range(1000)
    ]
    begun = time.perf_counter()
    assert sqlite_store.add_all(rows) == 1000
    assert time.perf_counter() - begun < 0.5
    assert sqlite_store.add_all(rows) == 0


def test_a_full_disk_is_one_sentence_and_nothing_is_lost(
    sqlite_store: Store, populate: Callable[..., None]
) -> None:
    populate(sqlite_store)
    run = sqlite_store.find(records.Run)[0]
    before = sqlite_store.count(records.TrainingLog)
    points = [
        records.TrainingLog(run_id=run.id or 0, step=10 + i, loss=1.0, learning_rate=0.1)
        for i in range(30_000)
    ]
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(
        resource.RLIMIT_FSIZE, (400_000, hard)
    )  # bytes that a file may have: a write beyond fails as on a full disk
    try:
        with pytest.raises(StoreError, match="refused by the database") as caught:
            sqlite_store.add_all(points)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "\n" not in str(caught.value)
    assert sqlite_store.count(records.TrainingLog) == before
    assert sqlite_store.add_all(points) == len(points)
