"""Batched writes on SQLite: 1,000 metric rows, a million metric rows, and the share of training
that the store takes.

python benchmarks/store_writes.py [--rows 1000000] [--db URL]
"""

from __future__ import annotations

import argparse
import random
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from lowrank.store import Store, records

MODULES = ("q", "k", "v", "o", "gate", "up", "down")


def prepared(store: Store) -> tuple[int, int]:
    """A run with a checkpoint, and a protocol; the ids of the last two."""
    study = store.add(records.Study(name="writes", config={}, config_hash=""))
    run = store.add(
        records.Run(
            study_id=study.id or 0,
            config_hash="r",
            method="full_rank",
            scale="nano",
            seed=0,
            data_seed=0,
            init_seed=0,
        )
    )
    saved = records.Checkpoint(
        run_id=run.id or 0, step=0, kind="initial", tokens_seen=0, path="c", sha256="", bytes=0
    )
    protocol = store.add(records.Protocol(name="exact", lens="spectra", metric_revision=1))
    return store.add(saved).id or 0, protocol.id or 0


def values(checkpoint: int, protocol: int, count: int, label: str) -> Iterator[records.MetricValue]:
    """``count`` rows with keys of their own."""
    draw = random.Random(0)
    for index in range(count):
        yield records.MetricValue(
            checkpoint_id=checkpoint,
            protocol_id=protocol,
            metric=f"{label}{index // 7000}",
            layer=index // 7 % 1000,
            module=MODULES[index % 7],
            value=draw.random(),
        )


def small_batches(store: Store, ids: tuple[int, int]) -> float:
    """Median seconds to store 1,000 new rows in one transaction."""
    times = []
    for batch in range(15):
        rows = list(values(*ids, 1000, f"small{batch}-"))
        begun = time.perf_counter()
        store.add_all(rows)
        times.append(time.perf_counter() - begun)
    return statistics.median(times)


def curve_share(store: Store) -> tuple[float, float]:
    """Median seconds to store 64 points of a training curve, and their share of the second between
    two such transactions.
    """
    (run,) = store.find(records.Run)
    times = []
    for batch in range(40):
        points = [
            records.TrainingLog(
                run_id=run.id or 0, step=64 * batch + i, loss=1.0, learning_rate=0.1
            )
            for i in range(64)
        ]
        begun = time.perf_counter()
        store.add_all(points)
        times.append(time.perf_counter() - begun)
    median = statistics.median(times)
    return median, median / (1.0 + median)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--db", help="a scratch database; default: an SQLite file of its own")
    arguments = parser.parse_args()
    with (
        tempfile.TemporaryDirectory() as folder,
        Store.open(arguments.db or Path(folder) / "writes.db", create=True) as store,
    ):
        ids = prepared(store)
        print(f"1,000 rows: {1000 * small_batches(store, ids):.1f} ms")
        seconds, share = curve_share(store)
        print(
            f"64 points of a curve: {1000 * seconds:.1f} ms, at most {100 * share:.2f}% of training"
        )
        begun, busy = time.perf_counter(), time.process_time()
        store.add_all(values(*ids, arguments.rows, "large"))
        seconds, busy = time.perf_counter() - begun, time.process_time() - busy
        rate = arguments.rows / seconds
        print(
            f"{arguments.rows:,} rows: {seconds:.1f} s ({busy:.1f} s on the processor), {rate:,.0f} rows a second"
        )


if __name__ == "__main__":
    main()
