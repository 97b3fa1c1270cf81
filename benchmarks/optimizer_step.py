"""GaLoreAdamW and FiraAdamW beside galore-torch and fira: time of a step, of a refresh, accuracy
and state.

    python benchmarks/optimizer_step.py [--scale 60m] [--rounds 9] [--threads 1] [--updates 12]

The gradients are real: those of the first update of a full-rank model on the embedded corpus, and
of a later one. Ours and theirs take turns within one run, and what is printed are medians of paired
ratios, so that a busy machine does no harm.
"""

from __future__ import annotations

import argparse
import statistics
import time
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from lowrank.config.resolve import RunConfig
from lowrank.config.schema import Data, ModelShape
from lowrank.data import open_data
from lowrank.layers import targets
from lowrank.models import build
from lowrank.optim.fira import FiraAdamW
from lowrank.optim.galore import GaLoreAdamW
from lowrank.optim.projection import decompose
from lowrank.presets import load
from lowrank.settings import Training

VOCABULARY = 32_000
Gradients = dict[str, Tensor]


def real_gradients(shape: ModelShape, updates: int) -> tuple[nn.Module, list[Gradients]]:
    """A full-rank model of ``shape`` and its gradients at the first and at the last of ``updates``
    updates.
    """
    data, training = (
        Data(max_length=128),
        Training(learning_rate=1e-3, steps=updates, batch_size=8, warmup_steps=0),
    )
    rows = open_data(data, 0)
    config = RunConfig(
        method="full_rank",
        scale="",
        seed=0,
        init_seed=0,
        data_seed=0,
        shape=shape,
        settings={},
        data=data,
        training=training,
    )
    model, method = build(config, VOCABULARY, rows.special)
    optimizer, kept = method.optimizer(model, training), []
    for update in range(1, updates + 1):
        batch = rows.rows((update - 1) * 8, 8)
        model(input_ids=batch.input_ids, labels=batch.labels).loss.backward()
        if update in (1, updates):
            kept.append(
                {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
            )
        optimizer.step()
        optimizer.zero_grad()
    return model, kept


def paired(ours: Callable[[], Any], theirs: Callable[[], Any]) -> tuple[float, float]:
    """Seconds of both, one after the other."""
    start = time.perf_counter()
    ours()
    middle = time.perf_counter()
    theirs()
    return middle - start, time.perf_counter() - middle


def report(label: str, pairs: list[tuple[float, float]]) -> None:
    """One line: both medians and the median of the ratios."""
    ours, theirs = (statistics.median(side) for side in zip(*pairs, strict=True))
    ratio = statistics.median(a / b for a, b in pairs)
    print(
        f"{label:32} ours {ours * 1e3:8.1f} ms   theirs {theirs * 1e3:8.1f} ms   ratio {ratio:.3f}",
        flush=True,
    )


def state_bytes(optimizer: torch.optim.Optimizer) -> int:
    """Bytes of the tensors in an optimizer's state, projectors included."""
    found = 0
    for state in optimizer.state.values():
        values = [*state.values(), getattr(state.get("projector"), "ortho_matrix", None)]
        found += sum(v.numel() * v.element_size() for v in values if torch.is_tensor(v))
    return found


def compare_steps(
    name: str,
    ours: Any,
    theirs: Any,
    scale_key: str,
    model: nn.Module,
    gradients: Gradients,
    rank: int,
    rounds: int,
) -> None:
    """Steps between refreshes, on copies of the model's parameters that share their gradients."""
    matrices = {f"{path}.weight" for path, _ in targets(model)}

    def make(optimizer: Any, **options: Any) -> torch.optim.Optimizer:
        copies = {n: nn.Parameter(p.detach().clone()) for n, p in model.named_parameters()}
        for n, p in copies.items():
            p.grad = gradients[n]
        projected = [p for n, p in copies.items() if n in matrices]
        plain = [p for n, p in copies.items() if n not in matrices]
        group = {
            "params": projected,
            "rank": rank,
            "update_proj_gap": 10**9,
            scale_key: 0.25,
            "proj_type": "std",
        }
        built: torch.optim.Optimizer = optimizer([{"params": plain}, group], lr=1e-2, **options)
        built.step()
        return built

    mine, reference = make(ours), make(theirs, no_deprecation_warning=True)
    report(
        f"{name}: step between refreshes",
        [paired(mine.step, reference.step) for _ in range(rounds)],
    )
    print(
        f"{name}: state of ours {state_bytes(mine):,} bytes, of theirs {state_bytes(reference):,}"
    )


def compare_refreshes(
    gradients: Gradients, matrices: set[str], rank: int, rounds: int, label: str
) -> None:
    """All projectors once: ours, exact and fast, beside the full SVDs that galore-torch makes."""
    from galore_torch.galore_projector import GaLoreProjector

    oracle = GaLoreProjector(rank)

    def one(G: Tensor, svd: str) -> tuple[float, float]:
        side = "right" if G.shape[0] >= G.shape[1] else "left"
        return paired(
            lambda: decompose(G, rank, "std", svd),
            lambda: oracle.get_orthogonal_matrix(G, rank, type=side),
        )

    for svd in ("exact", "fast"):
        pairs = []
        for _ in range(rounds):
            each = [one(gradients[name], svd) for name in sorted(matrices)]
            pairs.append((sum(a for a, _ in each), sum(b for _, b in each)))
        report(f"refresh, svd={svd}, {label}", pairs)


def accuracy(gradients: Gradients, matrices: set[str], rank: int) -> None:
    """Worst matrix: sine of the largest principal angle (exact) and share of the exact subspace's
    energy (fast).
    """
    angle, energy = 0.0, 1.0
    for name in sorted(matrices):
        G = gradients[name].double()
        U, s, Vh = torch.linalg.svd(G, full_matrices=False)
        exact, fast = (
            decompose(gradients[name], rank, "std", svd)[0].double() for svd in ("exact", "fast")
        )
        if G.shape[0] >= G.shape[1]:
            wanted, exact, fast, turned = Vh[:rank].T, exact.T, fast.T, G.T
        else:
            wanted, turned = U[:, :rank], G
        angle = max(angle, float(torch.linalg.matrix_norm(wanted - exact @ (exact.T @ wanted), 2)))
        energy = min(energy, float((fast.T @ turned).square().sum() / s[:rank].square().sum()))
    print(f"worst matrix: principal angle of exact {angle:.1e}, energy kept by fast {energy:.6f}")


def main() -> None:
    """Print every comparison."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--scale", default="60m")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--updates", type=int, default=12)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    import fira
    import galore_torch

    torch.set_num_threads(arguments.threads)
    shape = ModelShape.model_validate(load("scales")[arguments.scale])
    model, kept = real_gradients(shape, arguments.updates)
    matrices = {f"{path}.weight" for path, _ in targets(model)}
    threads = f"{arguments.threads} thread" + "s" * (arguments.threads > 1)
    print(
        f"{arguments.scale}: {len(matrices)} matrices, rank {shape.rank}, {threads}, torch {torch.__version__}"
    )
    compare_steps(
        "galore",
        GaLoreAdamW,
        galore_torch.GaLoreAdamW,
        "scale",
        model,
        kept[-1],
        shape.rank,
        arguments.rounds,
    )
    compare_steps(
        "fira", FiraAdamW, fira.FiraAdamW, "alpha", model, kept[-1], shape.rank, arguments.rounds
    )
    for update, gradients in zip((1, arguments.updates), kept, strict=True):
        compare_refreshes(
            gradients, matrices, shape.rank, max(1, arguments.rounds // 3), f"update {update}"
        )
        accuracy(gradients, matrices, shape.rank)


if __name__ == "__main__":
    main()
