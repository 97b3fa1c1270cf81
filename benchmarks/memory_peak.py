"""Estimated against measured memory of every method, each in a process of its own.

    python benchmarks/memory_peak.py [--scale mini] [--batch-size 8] [--max-length 128]
                                     [--vocabulary-size 4096] [--set KEY=VALUE]

Every method makes a few updates of a real run: data, training, validation, checkpoints and resume
points. The measured figures are those that the run stores: resident peak above that after imports
on a CPU, the allocator's peak on a GPU. Weights, gradients and optimizer state must agree to the
byte; of the peak the ratio is printed.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

EXACT = (
    "parameters_total",
    "parameters_trainable",
    "weight_bytes",
    "gradient_bytes",
    "optimizer_state_bytes",
)
MEBI = 2**20


def corpus(path: Path, vocabulary_size: int) -> None:
    """Invented words, enough for a tokenizer of the wanted size."""
    rng = random.Random(0)
    syllables = [
        a + b for a in "bcdfghklmnprstvz" for b in ("a", "e", "i", "o", "u", "ai", "en", "or")
    ]
    words = [
        "".join(rng.choices(syllables, k=rng.randint(1, 4))) for _ in range(4 * vocabulary_size)
    ]
    weights = [1.0 / (rank + 10) for rank in range(len(words))]
    documents = (" ".join(rng.choices(words, weights=weights, k=200)) + "." for _ in range(2500))
    path.write_text("\n\n".join(documents), encoding="utf-8")


def study_file(folder: Path, arguments: argparse.Namespace) -> Path:
    """A study of all methods at one scale."""
    from lowrank import methods

    text = folder / "corpus.txt"
    corpus(text, arguments.vocabulary_size)
    study = {
        "name": "memory",
        "output": str(folder / "out"),
        "methods": methods.names(),
        "scales": [arguments.scale],
        "data": {
            "source": "text",
            "path": str(text),
            "max_length": arguments.max_length,
            "vocabulary_size": arguments.vocabulary_size,
            "validation_tokens": 10_000,
            "validation_fraction": 0.1,
        },
        "training": {
            "steps": arguments.updates,
            "batch_size": arguments.batch_size,
            "checkpoint_every": arguments.updates,
        },
    }
    path = folder / "memory.yaml"
    path.write_text(json.dumps(study), encoding="utf-8")  # JSON is YAML
    return path


def one(file: Path, method: str, overrides: list[str]) -> dict[str, Any]:
    """Train one method in this process; its figures, estimated and measured."""
    from lowrank.estimate import estimate
    from lowrank.store import Store
    from lowrank.study import Plan, register
    from lowrank.train.job import train
    from lowrank.train.session import Job

    plan = Plan.of(file, overrides)
    with Store.open(plan.database, create=True) as store:
        config, run = next(pair for pair in register(store, plan)[1] if pair[0].method == method)
        run = train(Job(config, run, plan.root, store))
    measured = {
        "parameters_total": run.parameters_total,
        "parameters_trainable": run.parameters_trainable,
        "weight_bytes": run.parameter_bytes,
        "gradient_bytes": run.gradient_bytes,
        "optimizer_state_bytes": run.optimizer_state_bytes,
        "peak_bytes": run.peak_memory_bytes,
    }
    return {"estimated": estimate(config).row(), "measured": measured}


def report(method: str, found: dict[str, Any]) -> str:
    """One row of the table."""
    estimated, measured = found["estimated"], found["measured"]
    for name in EXACT:
        if estimated[name] != measured[name]:
            raise SystemExit(
                f"{method}: {name} was estimated as {estimated[name]} and measured as {measured[name]}"
            )
    peak = measured["peak_bytes"]
    cells = [
        f"{estimated[f'{name}_bytes'] / MEBI:.1f}"
        for name in ("weight", "gradient", "optimizer_state", "activation")
    ]
    expected = estimated["peak_bytes"]
    cells += [
        f"{expected / MEBI:.0f}",
        *([f"{peak / MEBI:.0f}", f"{expected / peak:.3f}"] if peak else ["unknown", ""]),
    ]
    return f"| {method} | {' | '.join(cells)} |"


def main() -> None:
    """Run every method and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--scale", default="mini")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--max-length", type=int, default=128)
    parser.add_argument("--vocabulary-size", type=int, default=4096)
    parser.add_argument("--updates", type=int, default=4)
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--method", nargs="*", help="only these")
    parser.add_argument("--one", nargs=2, metavar=("FILE", "METHOD"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(one(Path(arguments.one[0]), arguments.one[1], arguments.overrides)))
        return
    from lowrank import methods

    with tempfile.TemporaryDirectory() as folder:
        file = study_file(Path(folder), arguments)
        print(
            "| method | weights | gradients | optimizer state | activations | peak estimated | peak measured | ratio |"
        )
        print("|---|---|---|---|---|---|---|---|")
        for method in arguments.method or methods.names():
            command = [
                sys.executable,
                __file__,
                "--one",
                str(file),
                method,
                *(f"--set={text}" for text in arguments.overrides),
            ]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            print(report(method, json.loads(done.stdout.splitlines()[-1])), flush=True)


if __name__ == "__main__":
    main()
