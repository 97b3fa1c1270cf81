"""Many kills: studies that are killed at random moments again and again, in every stage, must end
as undisturbed ones.

    python benchmarks/faults.py [--kills 200]

A round is a study through every stage (training, two lenses, downstream tasks, predictor, report),
killed twenty times and finished. Rounds take turns: SQLite with one process, PostgreSQL with two
processes that share the work and are killed in turn.
"""

from __future__ import annotations

import argparse
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from _modules import test_module

SECTIONS = """
metrics: [spectra, {lens: interpolation, settings: {points: 3, examples: 8, kinds: [consecutive]}}]
downstream: {suites: [embedded], tasks: [cloze, term], limit: 4}
"""
STAGES = [
    "begin",
    *["train"] * 9,
    *["measure"] * 5,
    *["evaluate"] * 3,
    "predict",
    "report",
]  # of the kills of a round
SHARE = 0.3  # of a stage's time, undisturbed, that a process has at most before it is killed there


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0, help="Of the first round.")
    arguments = parser.parse_args()
    faults = test_module("faults/test_kills")
    server: Any = test_module("conftest").PostgresServer()
    met: Counter[str] = Counter()
    begun, seed = time.monotonic(), arguments.seed
    try:
        with tempfile.TemporaryDirectory() as name, faults.nursery() as nursery:
            folder = Path(name)
            faults.write_corpus(folder, seed)
            whole = faults.written(folder, "whole", sections=SECTIONS)
            seconds = faults.finish(nursery, whole)
            print(
                f"undisturbed: {', '.join(f'{stage} {took:.1f} s' for stage, took in seconds.items())}",
                flush=True,
            )
            longest = {stage: SHARE * took for stage, took in seconds.items()}
            while met.total() < arguments.kills:
                workers = 1 + seed % 2
                url = server.create_database() if workers == 2 else ""
                killed = faults.written(folder, f"killed-{seed}", url, SECTIONS)
                met += faults.kill_at_random(
                    nursery, killed, random.Random(seed), STAGES, longest, workers
                )
                try:
                    faults.require_same(whole, killed)
                except AssertionError:
                    kept = Path(tempfile.mkdtemp(prefix="faults-"))
                    shutil.copytree(folder, kept, dirs_exist_ok=True)
                    print(f"seed {seed}: both studies are kept in {kept}", file=sys.stderr)
                    raise
                seed += 1
                parts = [f"{stage} {count}" for stage, count in met.most_common()]
                told = f"{seed} rounds, {met.total()} kills ({', '.join(parts)}) in {time.monotonic() - begun:.0f} s"
                print(f"{told}: rows, tables and weights as undisturbed", flush=True)
                shutil.rmtree(killed.root)
    finally:
        server.remove()


if __name__ == "__main__":
    main()
