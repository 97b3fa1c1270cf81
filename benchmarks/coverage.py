"""Coverage and width of every interval, size and power of every test, in simulated studies.

    python benchmarks/coverage.py                         # all, about 6 minutes on two cores
    python benchmarks/coverage.py --only differences      # one part
    python benchmarks/coverage.py --studies 200           # a rough look

docs/inference.md defines the simulated studies and the oracles, and has the figures.
"""

from __future__ import annotations

import argparse
import itertools
import multiprocessing
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor
from functools import partial
from typing import Any

import numpy as np
from _simulated import (
    ITEMS,
    TASKS,
    Floats,
    SeedEffects,
    Z,
    budget_study,
    difference_study,
    pearson_study,
    permutation_study,
    sharpness_study,
)

SCHEMES = ("lomo", "loso", "loro", "loseo")
PARTS = ("permutation", "differences", "sharpness", "budget", "pearson")
CHUNK = 50  # studies to a piece of work


def permutation(pool: Executor, studies: int) -> None:
    """Print the size and the power of the permutation test of geometry beyond loss."""
    print(
        "\nGeometry beyond loss: share of studies with p <= 0.05 (target under no effect: 3 to 7%)"
    )
    print(f"{'methods':8}{'truth':44}" + "".join(f"{s:>8}" for s in SCHEMES))
    nulls: list[tuple[str, dict[str, Any]]] = [
        ("no effect; method effects", {}),
        ("no effect; method and size effects", {"size_sd": 0.02}),
    ]
    reference = [("no effect; one method is the reference", {"size_sd": 0.02, "reference": True})]
    powers = [
        (f"effect {slope} (method effects 0.02)", {"size_sd": 0.02, "slope": slope})
        for slope in (0.02, 0.04)
    ]
    for methods in (3, 6, 9, 20):
        for truth, settings in [*nulls, *(reference if methods == 6 else []), *powers]:
            # error of a power is not what the targets are about: half as many studies
            n = max(1, studies // 2) if "slope" in settings else studies
            n = min(n, 100) if methods == 3 else n
            p = spread(pool, partial(permutation_study, methods=methods, truth=settings), n)
            shares = [
                "no test" if np.isnan(column).all() else f"{np.mean(column <= 0.05):.3f}"
                for column in p.T
            ]
            print(f"{methods:<8}{truth:44}" + "".join(f"{s:>8}" for s in shares), flush=True)
            if methods == 3:
                break


def differences(pool: Executor, studies: int) -> None:
    """Print the coverage and width of intervals of differences, and of Holm's test over methods."""
    print(
        f"\nDifferences over {TASKS} tasks of {ITEMS} items: coverage of 95% intervals (target 93 to"
        " 97%), width over the oracle's (target 1.3 at 3 seeds, 1.15 from 5)"
    )
    titles = ("pooled", "two methods", "tasks apart")
    print(f"{'methods':8}{'seeds':6}{'seed effects':36}" + "".join(f"{t:>15}" for t in titles))
    kinds = {
        "none": SeedEffects(),
        "common, 0.01": SeedEffects(common=0.01),
        "common, 0.02": SeedEffects(common=0.02),
        "by task, 0.02": SeedEffects(by_task=0.02),
    }
    for methods, seeds in [*itertools.product((6, 20), (2, 3, 5, 10)), (2, 3), (2, 5)]:
        for name, truth in kinds.items():
            work = partial(difference_study, methods=methods, seeds=seeds, truth=truth)
            print_differences(methods, seeds, name, spread(pool, work, studies)[:, 6:])
    single = partial(difference_study, methods=6, seeds=3, truth=kinds["common, 0.01"], single=True)
    found = spread(pool, single, max(1, studies // 2))
    print_differences(6, 3, "common, 0.01, single answers", found[:, 6:])
    for ratio, methods, seeds in itertools.product((2.0, 3.0), (6,), (3, 5)):
        truth = SeedEffects(common=0.02, ratio=ratio)
        work = partial(difference_study, methods=methods, seeds=seeds, truth=truth)
        found = spread(pool, work, studies)
        print_differences(methods, seeds, f"one method {ratio:g} times 0.02: its", found)
        print_differences(methods, seeds, "    all", found[:, 6:])
    holm_table(pool, studies)


def print_differences(methods: int, seeds: int, name: str, found: Floats) -> None:
    """Print a line of coverages and widths."""
    v = found.mean(axis=0)
    cells = "".join(f"{v[i]:9.3f} {v[3 + i]:5.2f}" for i in range(3))
    print(f"{methods:<8}{seeds:<6}{name:36}{cells}", flush=True)


def holm_table(pool: Executor, studies: int) -> None:
    """Print how often Holm's correction finds the one difference there is, and any other."""
    print("\nAll methods against one, 3 seeds, common effects of 0.01, Holm at 5%")
    print(f"{'methods':8}{'true difference':>18}{'found':>9}{'any other found':>18}")
    for methods, shift in itertools.product((6, 9, 20), (0.0, 0.03, 0.05)):
        truth = SeedEffects(common=0.01)
        work = partial(difference_study, methods=methods, seeds=3, truth=truth, shift=shift)
        v = spread(pool, work, studies).mean(axis=0)
        print(f"{methods:<8}{shift:18.2f}{v[12]:9.3f}{v[13]:18.3f}", flush=True)


def sharpness(pool: Executor, studies: int) -> None:
    """Print the coverage of errors of sharpness."""
    print("\nSharpness: coverage of 95% intervals | mean width over the oracle's")
    print(
        f"{'directions':12}{'rows':6}{'rows differ by':16}{'directions and text':>20}{'directions alone':>20}"
    )
    for row_sd, d, r in itertools.product((0.2, 0.6), (6, 10, 30, 100), (8, 32, 200)):
        v = spread(pool, partial(sharpness_study, directions=d, rows=r, row_sd=row_sd), studies)
        cells = pairs(v[:, [0, 2]], v[:, [1, 3]], v[:, 4])
        print(f"{d:<12}{r:<6}{row_sd:<16}{cells}", flush=True)


def budget(pool: Executor, studies: int) -> None:
    """Print the coverage of the mean that an adaptive budget stops."""
    print("\nAdaptive budget, relative error 2%: the interval of the stopped mean")
    print(
        f"{'values':36}{'fewest':>7}{'coverage':>10}{'width':>7}{'bias':>9}{'rms':>8}{'directions':>12}"
    )
    for deviation, spike, fewest in itertools.product(
        (0.05, 0.1, 0.2, 0.5), (False, True), (10, 30)
    ):
        if spike and deviation > 0.05:
            continue
        work = partial(budget_study, deviation=deviation, spike=spike, fewest=fewest)
        v = spread(pool, work, studies)
        rms = float(np.sqrt((v[:, 2] ** 2).mean()))
        name = "one eigenvalue a fifth of the trace" if spike else f"deviation {deviation}"
        print(
            f"{name:36}{fewest:7}{v[:, 0].mean():10.3f}{v[:, 1].mean() / (Z * rms):7.2f}"
            f"{v[:, 2].mean():9.4f}{rms:8.4f}{np.median(v[:, 3]):12.0f}",
            flush=True,
        )


def pearson(pool: Executor, studies: int) -> None:
    """Print the coverage of the bootstrap of Pearson's correlation."""
    print(
        "\nPearson's correlation: coverage of 95% bootstraps and the jackknife | mean width over the oracle's"
    )
    print(
        f"{'methods':8}{'runs each':10}{'method effects':16}{'over runs':>20}{'over methods':>20}{'jackknife, methods':>20}"
    )
    for methods, runs, share in [
        (3, 1, 0.0),
        (8, 1, 0.0),
        (6, 3, 0.0),
        (6, 9, 0.0),
        (6, 3, 0.5),
        (9, 3, 0.5),
        (20, 3, 0.5),
    ]:
        work = partial(pearson_study, methods=methods, runs=runs, method_share=share)
        v = spread(pool, work, studies)
        cells = pairs(v[:, [0, 2, 4]], v[:, [1, 3, 5]], v[:, 6])
        print(f"{methods:<8}{runs:<10}{share:<16}{cells}", flush=True)


# Printing and sharing work


def pairs(covered: Floats, widths: Floats, errors: Floats) -> str:
    """Return coverage and width over the oracle's, which knows the deviation of the estimate."""
    oracle = Z * float(errors.std())
    columns = zip(covered.T, widths.T, strict=True)
    return "".join(f"{np.mean(c):13.3f}{np.mean(w) / oracle:7.2f}" for c, w in columns)


def chunk(study: Callable[[int], Sequence[float]], seeds: range) -> Floats:
    """Return one row for each study."""
    return np.array([study(seed) for seed in seeds], dtype=float)


def spread(pool: Executor, study: Callable[[int], Sequence[float]], studies: int) -> Floats:
    """Return one row for each of ``studies`` studies, whose seeds count from 0."""
    parts = [range(i, min(i + CHUNK, studies)) for i in range(0, studies, CHUNK)]
    return np.concatenate(list(pool.map(partial(chunk, study), parts)))


def main() -> None:
    """Simulate and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--studies", type=int, default=2000)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--only", choices=PARTS, action="append")
    options = parser.parse_args()
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ[name] = "1"  # of the processes that simulate
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(options.processes, mp_context=context) as pool:
        for part in options.only or PARTS:
            began = time.perf_counter()
            globals()[part](pool, options.studies)
            print(f"{part}: {time.perf_counter() - began:.0f} s")


if __name__ == "__main__":
    main()
