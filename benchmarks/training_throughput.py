"""Tokens a second of lowrank's training loop over those of a bare PyTorch loop on the same model,
batch and precision.

    python benchmarks/training_throughput.py [--scale nano] [--updates 20] [--rounds 15]

Both loops are interleaved in one process, a round each; the figure is the median of the paired
ratios. The bare loop holds its batches in memory, takes the loss from the model, and neither logs
nor clips nor looks at the gradient; it uses the same fused AdamW. The training loop here is the
whole step of a run: rows from the token store, learning rate, gradient norm, clipping, the check
for finite numbers and the training curve. Evaluation and saving are excluded.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import time
from collections.abc import Callable

import torch

from lowrank import models
from lowrank.config import Data, ModelShape, RunConfig, Training
from lowrank.data import Dataset, open_data
from lowrank.presets import load
from lowrank.train.job import make_accelerator
from lowrank.train.loop import LogPoint, Loop


def bare(config: RunConfig, data: Dataset) -> Callable[[int], None]:
    """A loop that a tutorial would show."""
    model, _ = models.build(config, data.vocabulary_size, data.special)
    training = config.training
    optimizer = torch.optim.AdamW(
        model.parameters(),
        lr=training.learning_rate,
        betas=training.betas,
        eps=training.eps,
        weight_decay=0.0,
        fused=True,
    )
    batches = itertools.cycle(
        [data.rows(i * training.batch_size, training.batch_size).input_ids for i in range(64)]
    )

    def step(_: int) -> None:
        ids = next(batches)
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def ours(config: RunConfig, data: Dataset) -> Callable[[int], None]:
    """One update as a run makes it."""
    model, method = models.build(config, data.vocabulary_size, data.special)
    loop = Loop(config, model, method, data, make_accelerator(config.training, None))
    points: list[LogPoint] = []

    def step(update: int) -> None:
        points.extend(loop.update(update))
        loop.after_update(update)

    return step


def main() -> None:
    """Run and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--scale", nargs="*", default=["nano", "micro"])
    parser.add_argument("--updates", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    section = Data(max_length=128)
    data = open_data(section, 0)
    for scale in arguments.scale:
        config = RunConfig(
            method="full_rank",
            scale=scale,
            seed=0,
            init_seed=0,
            data_seed=0,
            shape=ModelShape.model_validate(load("scales")[scale]),
            settings={},
            data=section,
            training=Training(steps=10**6, batch_size=8, learning_rate=1e-3, max_grad_norm=1.0),
        )
        loops = {"bare": bare(config, data), "lowrank": ours(config, data)}
        seconds: dict[str, list[float]] = {name: [] for name in loops}
        update = 0
        for round_ in range(arguments.rounds + 1):
            for name, step in loops.items():
                start = time.perf_counter()
                for index in range(arguments.updates):
                    step(update + index + 1)
                if round_:  # the first is a warm-up
                    seconds[name].append(time.perf_counter() - start)
            update += arguments.updates
        ratios = sorted(b / o for b, o in zip(seconds["bare"], seconds["lowrank"], strict=True))
        tokens = arguments.updates * 8 * 128
        print(
            f"{scale}: lowrank / bare tokens a second {statistics.median(ratios):.3f} (quartiles {ratios[len(ratios) // 4]:.3f} .. "
            f"{ratios[-len(ratios) // 4]:.3f}, {arguments.rounds} pairs); "
            f"lowrank {tokens / statistics.median(seconds['lowrank']):,.0f} tokens/s"
        )


if __name__ == "__main__":
    main()
