"""How long the report of a study with 270 checkpoints takes, from synthetic rows of every kind.

18 runs (six methods, three scales) of 15 checkpoints each, all lenses, 8 layers, 64 singular values
a matrix.

    python benchmarks/report_time.py
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

from _modules import test_module

from lowrank.predict import predict
from lowrank.report import write
from lowrank.store import Store

STEPS = tuple(range(0, 1401, 100))


def main() -> None:
    """Fill a store, fit the predictors, write the report; one JSON line each."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    made = test_module("report/factory")
    spec = made.Synthetic(
        scales={"nano": 64, "micro": 128, "mini": 256},
        seeds=(0,),
        steps=STEPS,
        layers=8,
        singular_values=64,
        failed=None,
    )
    with (
        tempfile.TemporaryDirectory() as folder,
        Store.open(str(Path(folder) / "lowrank.db"), create=True) as store,
    ):
        checkpoints = len(made.fill(store, spec).checkpoints)
        for name, work in (
            ("predict", lambda: predict(store, spec.name, progress=False)),
            ("report", lambda: write(store, spec.name, Path(folder) / "report", progress=False)),
        ):
            wall, cpu = time.perf_counter(), time.process_time()
            work()
            seconds = {
                "seconds": round(time.perf_counter() - wall, 1),
                "processor_seconds": round(time.process_time() - cpu, 1),
            }
            print(json.dumps({"what": name, "checkpoints": checkpoints, **seconds}))
        page = Path(folder) / "report" / "index.html"
        print(
            json.dumps(
                {
                    "page_bytes": page.stat().st_size,
                    "figures": len(list((page.parent / "figures").glob("*.png"))),
                }
            )
        )


if __name__ == "__main__":
    main()
