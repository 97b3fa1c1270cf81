"""Memory of the activation lens against keeping the activations, each in a process of its own.

    python benchmarks/activation_lens.py [--scale nano] [--rows 400] [--length 128]

The plain version keeps both networks' hidden states of all positions, as the published procedure
does, and then computes the distances layer by layer in float64. The figure is the growth of the
peak resident memory while it works.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
from multiprocessing.connection import Connection

import torch

from lowrank import models
from lowrank.config import Data, ModelShape, RunConfig, Training
from lowrank.geometry.estimate import EvaluationBatch
from lowrank.metrics.activations import Accumulator, compare, hidden_states
from lowrank.presets import load

VOCABULARY = 4096


def networks(scale: str, length: int) -> list[torch.nn.Module]:
    """Two networks of different seeds."""
    shape = ModelShape.model_validate(load("scales")[scale])
    made: list[torch.nn.Module] = []
    for seed in (0, 1):
        config = RunConfig(
            method="full_rank",
            scale=scale,
            seed=seed,
            init_seed=seed,
            data_seed=0,
            shape=shape,
            settings={},
            data=Data(max_length=length),
            training=Training(learning_rate=1e-3),
        )
        made.append(
            models.build(
                config, VOCABULARY, {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
            )[0].eval()
        )
    return made


def work(kind: str, scale: str, rows: int, length: int, answer: Connection) -> None:
    """Compute the distances and send (bytes of growth, results)."""
    torch.set_num_threads(1)
    pair = networks(scale, length)
    ids = torch.randint(0, VOCABULARY, (rows, length), generator=torch.Generator().manual_seed(0))
    batches = [EvaluationBatch(part, part) for part in ids.split(4)]
    hidden_states(pair[0], batches[0])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    if kind == "lens":
        columns = [Accumulator() for _ in hidden_states(pair[0], batches[0])]
        for batch in batches:
            for column, x, y in zip(
                columns, *(hidden_states(network, batch) for network in pair), strict=True
            ):
                column.update(x.flatten(0, 1), y.flatten(0, 1))
        results = [column.result() for column in columns]
    else:
        kept = []
        for network in pair:
            parts = [
                [state.flatten(0, 1) for state in hidden_states(network, batch)]
                for batch in batches
            ]
            kept.append([torch.cat(states) for states in zip(*parts, strict=True)])
        results = [compare(x, y) for x, y in zip(*kept, strict=True)]
    answer.send((1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before), results))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--scale", default="nano")
    parser.add_argument("--rows", type=int, default=400)
    parser.add_argument("--length", type=int, default=128)
    options = parser.parse_args()
    context, found = multiprocessing.get_context("spawn"), {}
    for kind in ("lens", "plain"):
        receiver, sender = context.Pipe(duplex=False)
        process = context.Process(
            target=work, args=(kind, options.scale, options.rows, options.length, sender)
        )
        process.start()
        found[kind] = receiver.recv()
        process.join()
    (lens, ours), (plain, theirs) = found["lens"], found["plain"]
    worst = max(
        abs(a[name] - b[name]) / max(abs(b[name]), 1e-12)
        for a, b in zip(ours, theirs, strict=True)
        for name in a
    )
    print(
        f"{options.scale}, {options.rows * options.length} positions: lens {lens / 2**20:.1f} MiB, plain {plain / 2**20:.1f} MiB"
    )
    print(f"share {lens / plain:.3f}; worst relative difference of the results {worst:.1e}")


if __name__ == "__main__":
    main()
