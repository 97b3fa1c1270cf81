"""Tokens a second and peak memory of every method beside full rank, on an accelerator (or, for a
look, on a CPU).

    python benchmarks/method_throughput.py --scale 60m 350m --rows 64

Each method makes updates under bf16 autocast on random tokens through the training loop of a run.
The methods are interleaved in rounds; a round's ratio is taken against full rank's time in the same
round. Methods with a subspace recompute it every 200 updates: that update is timed by itself, and a
method's time an update is (199 · plain + refresh) / 200. Peak memory is the allocator's, of one
method alone, next to ``lowrank estimate``.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
from accelerate import Accelerator

from lowrank import methods, models
from lowrank.config import Data, ModelShape, RunConfig, Training
from lowrank.config.resolve import merge, recipe_layers
from lowrank.data import Dataset, TokenBatch
from lowrank.presets import load
from lowrank.train.loop import Loop

VOCABULARY, LENGTH, GAP = 32_000, 256, 200


@dataclass
class RandomRows:
    """Rows of random tokens with the interface that the loop uses."""

    length: int

    def rows(self, first: int, count: int) -> TokenBatch:
        """``count`` rows, the same for the same ``first``."""
        ids = torch.randint(
            0, VOCABULARY, (count, self.length), generator=torch.Generator().manual_seed(first)
        )
        return TokenBatch(ids, ids)

    def scored_tokens(self, first: int, count: int) -> int:
        """Targets of ``count`` rows."""
        return count * (self.length - 1)


def recipe(method: str, scale: str, rows: int, precision: str) -> RunConfig:
    """The method's exact recipe at ``scale``, without its schedule's end."""
    layers = list(recipe_layers("exact", method, scale))
    shape = ModelShape.model_validate(load("scales")[scale])
    cls = methods.get(method)
    settings = merge(layer.get("settings") or {} for layer in layers)
    if "rank" in cls.Settings.model_fields:
        settings["rank"] = shape.rank
    training = merge(layer.get("training") or {} for layer in layers)
    training |= {"batch_size": rows, "precision": precision, "steps": 10**6, "warmup_steps": 1000}
    return RunConfig(
        method=method,
        scale=scale,
        seed=0,
        init_seed=0,
        data_seed=0,
        shape=shape,
        data=Data(max_length=LENGTH),
        settings=cls.Settings.model_validate(settings).model_dump(mode="json"),
        training=Training.model_validate(training),
    )


class Contestant:
    """One method, built and warmed up."""

    def __init__(self, config: RunConfig, accelerator: Accelerator) -> None:
        model, method = models.build(
            config, VOCABULARY, {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
        )
        self.loop = Loop(config, model, method, cast(Dataset, RandomRows(LENGTH)), accelerator)
        self.update, self.device = 0, accelerator.device
        self.gap = int(config.settings.get("update_proj_gap", 0))

    def seconds(self, updates: int) -> float:
        """Wall time of ``updates`` updates, to the last kernel."""
        self._sync()
        start = time.perf_counter()
        for _ in range(updates):
            self.update += 1
            list(self.loop.update(self.update))
            self.loop.after_update(self.update)
        list(self.loop.drain())
        self._sync()
        return time.perf_counter() - start

    def _sync(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()


def peak(config: RunConfig, make: Callable[[], Accelerator]) -> int | None:
    """Peak bytes of the allocator over three updates of a method alone."""
    if not torch.cuda.is_available():
        return None
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    contestant = Contestant(config, make())
    contestant.seconds(3)
    return torch.cuda.max_memory_allocated()


def estimated(config: RunConfig) -> int | None:
    """Peak bytes that ``lowrank estimate`` says."""
    from lowrank.estimate import estimate

    return estimate(config, VOCABULARY).peak_bytes


def contest(
    scale: str, names: list[str], rows: int, precision: str, rounds: int, updates: int
) -> list[dict[str, Any]]:
    """One row a method."""

    def make() -> Accelerator:
        return Accelerator(
            cpu=not torch.cuda.is_available(),
            mixed_precision="bf16" if precision == "bfloat16_autocast" else "no",
        )

    configs = {name: recipe(name, scale, rows, precision) for name in names}
    peaks = {name: peak(config, make) for name, config in configs.items()}
    gc.collect()
    field = {name: Contestant(config, make()) for name, config in configs.items()}
    refresh = {
        name: c.seconds(1) for name, c in field.items()
    }  # the first update also compiles and allocates
    for c in field.values():
        c.seconds(5)
    for name, c in field.items():
        if c.gap:
            c.seconds((c.gap - c.update % c.gap) % c.gap)
            refresh[name] = c.seconds(1)
    plain: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(rounds):
        for name, c in field.items():
            plain[name].append(c.seconds(updates) / updates)
    result = []
    for name in names:
        each = [(199 * p + refresh[name]) / GAP if field[name].gap else p for p in plain[name]]
        ratios = sorted(base / own for base, own in zip(plain["full_rank"], each, strict=True))
        found = peaks[name]
        result.append(
            {
                "scale": scale,
                "method": name,
                "tokens_per_second": rows * LENGTH / statistics.median(each),
                "over_full_rank": statistics.median(ratios),
                "low": ratios[0],
                "high": ratios[-1],
                "refresh_seconds": refresh[name] if field[name].gap else None,
                "peak_bytes": found,
                "estimated_over_peak": (estimated(configs[name]) or 0) / found if found else None,
            }
        )
    return result


def main() -> None:
    """Run and print a line a method."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--scale", nargs="*", default=["60m", "350m"])
    parser.add_argument("--method", nargs="*", default=methods.names())
    parser.add_argument("--rows", type=int, default=64, help="rows of 256 tokens an update")
    parser.add_argument("--precision", default="bfloat16_autocast")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--updates", type=int, default=10, help="updates of a method in a round")
    arguments = parser.parse_args()
    names = ["full_rank", *(name for name in arguments.method if name != "full_rank")]
    for scale in arguments.scale:
        for row in contest(
            scale, names, arguments.rows, arguments.precision, arguments.rounds, arguments.updates
        ):
            print(
                json.dumps(
                    {
                        key: round(value, 4) if isinstance(value, float) else value
                        for key, value in row.items()
                    }
                ),
                flush=True,
            )


if __name__ == "__main__":
    main()
