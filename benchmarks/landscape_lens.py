"""Time and bias of the random landscape against a plain, careful version of the published
procedure.

    python benchmarks/landscape_lens.py [--scale nano] [--updates 150] [--directions 40] [--rows 16]

The plain version evaluates the loss at 25 offsets along each direction, from a pristine copy in
float32. The lens evaluates a Gauss rule of one or two nodes a side on the same directions (seeds),
and the centre once. A model is first trained on embedded text for a while, since curvature at
initialisation is no test. The versions are interleaved direction by direction; times are processor
seconds of one thread. Bias is the difference of the two sharpnesses on the same directions over the
standard error.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lowrank import models
from lowrank.config import Data, ModelShape, RunConfig, Training
from lowrank.data import open_data
from lowrank.geometry.directions import random_direction
from lowrank.geometry.estimate import EvaluationBatch
from lowrank.geometry.offsets import Walk, rule_for
from lowrank.geometry.probe import row_losses
from lowrank.metrics.landscape import LandscapeSettings, direction_variance, sharpness
from lowrank.presets import load


def trained(scale: str, updates: int, rows: int) -> tuple[nn.Module, list[EvaluationBatch]]:
    """A model after ``updates`` of AdamW, and an evaluation set of ``rows`` rows."""
    shape = ModelShape.model_validate(load("scales")[scale])
    data = open_data(Data(max_length=128), 0)
    config = RunConfig(
        method="full_rank",
        scale=scale,
        seed=0,
        init_seed=0,
        data_seed=0,
        shape=shape,
        settings={},
        data=Data(max_length=128),
        training=Training(learning_rate=5e-3),
    )
    model, _ = models.build(config, data.vocabulary_size, data.special)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for update in range(updates):
        ids = data.rows(8 * update, 8).input_ids
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        for group in optimizer.param_groups:
            group["lr"] = 5e-3 * (1 - update / updates)
    found = data.evaluation_set("benchmark", split="validation", examples=rows)
    return model.eval(), [EvaluationBatch(b.input_ids, b.labels) for b in found.batches(16)]


def plain(
    model: nn.Module,
    pristine: dict[str, Tensor],
    direction: dict[str, Tensor],
    offsets: list[float],
    batches: list[EvaluationBatch],
) -> list[float]:
    """The published loop over offsets, without its flaws."""
    losses = []
    for offset in offsets:
        with torch.no_grad():
            for name, p in model.named_parameters():
                p.copy_(pristine[name] + offset * direction[name])
            total, count = 0.0, 0
            for batch in batches:
                logits = model(input_ids=batch.input_ids, use_cache=False).logits[:, :-1]
                targets = batch.labels[:, 1:]
                total += float(
                    F.cross_entropy(
                        logits.flatten(0, 1), targets.flatten(), ignore_index=-100, reduction="sum"
                    )
                )
                count += int((targets != -100).sum())
            losses.append(total / count)
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.copy_(pristine[name])
    return losses


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--scale", default="nano")
    parser.add_argument("--updates", type=int, default=150)
    parser.add_argument("--directions", type=int, default=40)
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--normalization", choices=["raw", "filter"], default="raw")
    parser.add_argument(
        "--end", type=float, default=None, help="largest offset; else 0.003 (raw) or 0.12 (filter)"
    )
    options = parser.parse_args()
    torch.set_num_threads(1)
    model, batches = trained(options.scale, options.updates, options.rows)
    end = options.end or (0.003 if options.normalization == "raw" else 0.12)
    grid = LandscapeSettings(grid={"start": -end, "step": end / 12, "count": 25}).grid  # type: ignore[arg-type]
    offsets = grid.offsets()
    rules = {nodes: rule_for(offsets, nodes) for nodes in (1, 2)}
    centre = row_losses(model, batches).mean()
    pristine = {name: p.detach().clone() for name, p in model.named_parameters()}
    full: list[list[float]] = []
    few: dict[int, list[list[float]]] = {1: [], 2: []}
    spent = {0: 0.0, 1: 0.0, 2: 0.0}
    with Walk(model, batches, centre=centre) as walk:
        for index in range(options.directions):
            start = time.process_time()
            direction = random_direction(pristine, 0, index, options.normalization)
            direction |= {
                name: torch.zeros_like(p) for name, p in pristine.items() if name not in direction
            }
            full.append(plain(model, pristine, direction, offsets, batches))
            spent[0] += time.process_time() - start
            for nodes, rule in rules.items():
                start = time.process_time()
                again = random_direction(walk.pristine, 0, index, options.normalization)
                few[nodes].append(walk.losses(again, rule.offsets))
                spent[nodes] += time.process_time() - start
    truth, variance = sharpness(offsets, full), direction_variance(offsets, full)
    what = f"{options.directions} {options.normalization} directions to {end:g}"
    print(f"{options.scale} after {options.updates} updates, loss {centre:.4f}, {what}")
    print(
        f"plain, 25 offsets: sharpness {truth.value:.6g} ± {truth.standard_error:.2g}, variance {variance.value:.4g}"
    )
    for nodes, rule in rules.items():
        table = np.array(few[nodes])
        found, spread = rule.sharpness(table), rule.variance(table)
        bias = abs(found.value - truth.value) / (truth.standard_error or 1.0)
        bias_variance = abs(spread.value - variance.value) / (variance.standard_error or 1.0)
        ratio = (found.standard_error or 0.0) / (truth.standard_error or 1.0)
        print(
            f"{nodes} node(s) a side: {spent[0] / spent[nodes]:.2f} times faster; sharpness {found.value:.6g}, bias {bias:.3f} of "
            f"the standard error, standard error {ratio:.3f} of the plain one's; bias of the variance {bias_variance:.3f}"
        )


if __name__ == "__main__":
    main()
