"""What the harness costs beside the forward passes: a plain call against lowrank's, interleaved in
one run.

    python benchmarks/downstream_overhead.py [--items 200] [--rounds 5]

A small random model answers three tasks of the suite ``embedded`` again and again, each time with
other weights, as checkpoints of a study do. Overhead is everything but ``model.forward``:
rendering, tokenising, batching, likelihoods and metrics, in processor time of one thread, so that a
busy machine matters little. Imports and, for lowrank, the load of the tasks are apart; its
checkpoint 1 includes tokenising, the later ones do not.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from lowrank.config.schema import Data
from lowrank.data import open_data
from lowrank.evaluate import harness, suites
from lowrank.evaluate.definitions import define
from lowrank.evaluate.embedded import build
from lowrank.evaluate.scores import scores

TASKS = ("continuation", "agreement", "term")
BATCH = 32
CONTEXT = 128


class Timed:
    """Counts the time inside a model's forward passes."""

    def __init__(self, model: LlamaForCausalLM) -> None:
        self.seconds, self.begun = 0.0, 0.0
        model.register_forward_pre_hook(self.before)
        model.register_forward_hook(self.after)

    def before(self, *_: Any) -> None:
        self.begun = time.process_time()

    def after(self, *_: Any) -> None:
        self.seconds += time.process_time() - self.begun


def overhead(model: LlamaForCausalLM, clock: Timed, work: Callable[[], int]) -> float:
    """Milliseconds a request outside the forward passes, after the weights have been changed."""
    with torch.no_grad():
        model.lm_head.weight.add_(0.01)
    clock.seconds = 0.0
    begun = time.process_time()
    count = work()
    return 1e3 * (time.process_time() - begun - clock.seconds) / count


def small_model(vocabulary: int) -> LlamaForCausalLM:
    """Return a random model of two layers."""
    model: LlamaForCausalLM = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=vocabulary,
            hidden_size=64,
            intermediate_size=176,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=CONTEXT,
        )
    )
    model.eval()
    return model


def print_results(found: dict[str, list[float]], requests: int, vocabulary: int) -> None:
    """Print milliseconds per request of both ways, and their ratio."""
    print(
        f"{requests} requests, vocabulary {vocabulary}, 1 thread; ms per request beside the forward passes"
    )
    for name, values in found.items():
        later = values[1:]
        print(
            f"{name:>14}: checkpoint 1 {values[0]:.3f}; from 2 on median {statistics.median(later):.3f}, best {min(later):.3f}"
        )
    ratios = [a / b for a, b in zip(found["plain harness"][1:], found["lowrank"][1:], strict=True)]
    print(f"plain / lowrank, from checkpoint 2 on: median {statistics.median(ratios):.1f}")


def main() -> None:
    """Print overhead by checkpoint for both ways."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--items", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    import lm_eval
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    tokenizer, suite, embedded = (
        open_data(Data(max_length=CONTEXT), 0).tokenizer,
        suites.get("embedded"),
        build(),
    )
    model = small_model(len(tokenizer))
    clock = Timed(model)
    paths = {name: define(name, suite.tasks[name], None, embedded).files[0] for name in TASKS}
    tasks = [
        harness.load(define(name, suite.tasks[name], None, embedded), options.items)
        for name in TASKS
    ]
    lm = harness.language_model(model, tokenizer, BATCH, CONTEXT)
    requests = sum(len(member.instances) for task in tasks for member in task.members.values())

    def ours() -> int:
        for task in tasks:
            scores(task, suite.tasks[task.name].all_metrics, harness.run(lm, task, 1000))
        return requests

    def plain() -> int:
        with harness.quiet():
            lm_eval.simple_evaluate(
                model=HFLM(
                    pretrained=model,
                    tokenizer=tokenizer,
                    backend="causal",
                    batch_size=BATCH,
                    max_length=CONTEXT,
                ),
                tasks=[str(path) for path in paths.values()],
                task_manager=TaskManager(include_defaults=False),
                num_fewshot=0,
                limit=options.items,
                bootstrap_iters=1000,
                log_samples=True,
            )
        return requests

    found: dict[str, list[float]] = {"plain harness": [], "lowrank": []}
    for _ in range(options.rounds):
        found["plain harness"].append(overhead(model, clock, plain))
        found["lowrank"].append(overhead(model, clock, ours))
    print_results(found, requests, len(tokenizer))


if __name__ == "__main__":
    main()
