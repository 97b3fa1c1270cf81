"""Many kills: the test of tests/faults/test_kills.py with one seed after the other, downstream tasks included.

    python benchmarks/faults.py [--kills 200]

Each round kills a study at random moments, finishes it, and compares rows and weights with those of an undisturbed one.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
SECTIONS = "downstream: {suites: [embedded], limit: 4, every: null}\n"


def one_round(seed: int, kills: int) -> int:
    """The kills of one round; raises where its test fails."""
    asked = {"LOWRANK_TEST_KILLS": str(kills), "LOWRANK_TEST_SEED": str(seed), "LOWRANK_TEST_SECTIONS": SECTIONS}
    environment = {**os.environ, **asked}
    command = [sys.executable, "-m", "pytest", "-q", "-s", "--timeout", "0", "tests/faults/test_kills.py"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"seed {seed}:\n{done.stdout[-6000:]}")
    return done.stdout.split().count("killed")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--kills-a-round", type=int, default=12)
    arguments = parser.parse_args()
    killed, seed, begun = 0, 0, time.monotonic()
    while killed < arguments.kills:
        killed += one_round(seed, min(arguments.kills_a_round, arguments.kills - killed))
        seed += 1
        print(f"{killed} kills in {seed} rounds, {time.monotonic() - begun:.0f} s: rows and weights as undisturbed", flush=True)


if __name__ == "__main__":
    main()
