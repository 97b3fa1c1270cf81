"""Workers sharing 1,000 units of 50 ms on PostgreSQL by claims: every unit once, and how throughput
grows with workers.

python benchmarks/claims.py        # on a server of its own, as the tests bring it up
python benchmarks/claims.py --db postgresql://user@host/scratch
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
import tempfile
import time
from collections import Counter
from typing import IO, Any

from _modules import test_module

from lowrank.store import Store, records
from lowrank.work import Claimed, Item, Stage, Worker, do_missing

UNIT_SECONDS = 0.05
WORKERS = (4, 8, 16, 32)


def work_through(url: str, prefix: str, units: int, log: str, start: Any) -> None:
    """One worker; it has shared a few units of its own before ``start``, so that connections and
    statements are made.
    """
    with Store.open(url) as store, open(os.devnull, "a", encoding="utf-8") as nowhere:
        share_units(store, f"own-{os.getpid()}-{prefix}", 3, nowhere, 0.0)
        start.wait()
        with open(log, "a", encoding="utf-8") as handle:
            share_units(store, prefix, units, handle, UNIT_SECONDS)
    assert "torch" not in sys.modules


class Rows(Stage[str, str]):
    """Each unit is a row of the store, and each execution a line of ``log``."""

    name = unit = "unit"
    claims = "benchmark"

    def __init__(self, store: Store, prefix: str, units: int, log: IO[str], seconds: float) -> None:
        self.store, self.prefix, self.log, self.seconds = store, prefix, log, seconds
        self.everything = {f"{prefix}{i}" for i in range(units)}

    def items(self) -> list[Item[str]]:
        """Return the units without a row."""
        _, rows = self.store.select(
            "SELECT name FROM study WHERE name LIKE :prefix", {"prefix": f"{self.prefix}%"}
        )
        left = sorted(self.everything - {row[0] for row in rows})
        return [Item(unit, unit, unit, unit) for unit in left]

    def still_missing(self, work: str) -> bool:
        """Say whether the unit has no row."""
        return not self.store.count(records.Study, name=work)

    def compute(self, claimed: Claimed[str]) -> str:
        """Sleep as long as a unit takes."""
        time.sleep(self.seconds)
        self.log.write(f"{claimed.work}\n")
        self.log.flush()
        return claimed.work

    def save(self, work: str, result: str, store: Store) -> int:
        """Store the unit's row."""
        store.add(records.Study(name=result, config={}, config_hash=""))
        return 1


def share_units(store: Store, prefix: str, units: int, log: IO[str], seconds: float) -> None:
    """Do a part of ``units`` units, together with every other worker."""
    stage = Rows(store, prefix, units, log, seconds)
    do_missing(stage, Worker(store, stage, progress=False, poll=0.1))


def measure(url: str, workers: int, units: int) -> dict[str, Any]:
    """Units a second of ``workers`` processes from the moment when all are ready."""
    context = multiprocessing.get_context("fork")
    prefix = f"w{workers}-{time.time_ns()}-"
    start = context.Barrier(workers + 1)
    with tempfile.NamedTemporaryFile(mode="r", encoding="utf-8") as log:
        processes = [
            context.Process(target=work_through, args=(url, prefix, units, log.name, start))
            for _ in range(workers)
        ]
        for process in processes:
            process.start()
        start.wait()
        begun = time.perf_counter()
        for process in processes:
            process.join()
        seconds = time.perf_counter() - begun
        times = Counter(log.read().split())
    assert all(process.exitcode == 0 for process in processes)
    assert len(times) == units, f"{units - len(times)} units were not done"
    assert set(times.values()) == {1}, "a unit was done twice"
    with Store.open(url) as store:
        assert store.count(records.WorkUnit, kind=prefix) == 0
    ideal = units * UNIT_SECONDS / workers
    return {
        "workers": workers,
        "seconds": seconds,
        "units_a_second": units / seconds,
        "of_ideal": ideal / seconds,
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--db", help="a scratch database; default: a server of its own")
    parser.add_argument("--units", type=int, default=1000)
    arguments = parser.parse_args()
    server: Any = None if arguments.db else test_module("conftest").PostgresServer()
    url = arguments.db or server.create_database()
    try:
        Store.open(url, create=True).close()
        for workers in WORKERS:
            row = measure(url, workers, arguments.units)
            print("  ".join(f"{key} {value:.3g}" for key, value in row.items()), flush=True)
    finally:
        if server is not None:
            server.remove()


if __name__ == "__main__":
    main()
