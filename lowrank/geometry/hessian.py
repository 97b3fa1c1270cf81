"""Hessian-vector products of the loss, the trace of the Hessian and its largest eigenvalue."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from lowrank.geometry.estimate import ALONE, Estimate, EvaluationBatch, Sharer
from lowrank.geometry.offsets import mean_estimate
from lowrank.loss import scored_tokens, summed_nats
from lowrank.seeds import generator

Vectors = dict[str, Tensor]
Product = Callable[[Vectors], Vectors]


def hutchinson(
    product: Product,
    like: Mapping[str, Tensor],
    probes: int,
    seed: int,
    sharer: Sharer = ALONE,
) -> Estimate:
    """Estimate tr(H) as the mean of zᵀHz over ``probes`` vectors z of random signs.

    The estimator is that of Hutchinson (1990). ``product`` maps named vectors v to H v; ``like``
    gives names and shapes. The generator of probe i is keyed by (seed, i, name). ``sharer`` shares
    the probes among processes.
    """

    def sample(index: int) -> float:
        z = {name: _signs(W, f"{seed}/{index}/{name}") for name, W in like.items()}
        return inner(z, product(z))

    return mean_estimate(np.array(sharer.map(sample, range(probes))))


def top_eigenvalue(
    product: Product,
    like: Mapping[str, Tensor],
    most: int,
    tolerance: float,
    seed: int,
) -> tuple[float, float, int]:
    """Return (largest eigenvalue of H, bound on its error, number of products used).

    The Lanczos process runs without reorthogonalisation: a loss of orthogonality only repeats
    eigenvalues that have converged. The bound is the residual of the Ritz pair. The process stops
    when the bound is below ``tolerance`` times the value, or after ``most`` products.
    """
    v = {name: _normal(W, f"{seed}/start/{name}") for name, W in like.items()}
    v = scaled(v, 1.0 / math.sqrt(inner(v, v)))
    previous: Vectors | None = None
    diagonal: list[float] = []
    off: list[float] = []
    value = bound = math.inf
    for _ in range(most):
        image = product(v)
        diagonal.append(inner(v, image))
        image = {name: t - diagonal[-1] * v[name] for name, t in image.items()}
        if previous is not None:
            image = {name: t - off[-1] * previous[name] for name, t in image.items()}
        beta = math.sqrt(inner(image, image))
        values, vectors = np.linalg.eigh(np.diag(diagonal) + np.diag(off, 1) + np.diag(off, -1))
        value, bound = float(values[-1]), float(beta * abs(vectors[-1, -1]))
        if bound <= tolerance * abs(value) or beta == 0.0:
            break
        off.append(beta)
        previous, v = v, scaled(image, 1.0 / beta)
    return value, bound, len(diagonal)


def inner(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> float:
    """Return the inner product of named vectors, computed in float64."""
    return math.fsum(float((a.double() * other[name].double()).sum()) for name, a in one.items())


def scaled(vectors: Vectors, factor: float) -> Vectors:
    """Return ``factor`` times the named vectors."""
    return {name: factor * v for name, v in vectors.items()}


def _signs(W: Tensor, key: str) -> Tensor:
    return (torch.randint(0, 2, W.shape, generator=generator(key)) * 2 - 1).to(W.dtype).to(W.device)


def _normal(W: Tensor, key: str) -> Tensor:
    return torch.randn(W.shape, generator=generator(key)).to(W.dtype).to(W.device)


@contextmanager
def hessian_products(
    network: nn.Module, batches: Sequence[EvaluationBatch]
) -> Iterator[tuple[Product, dict[str, Tensor]]]:
    """Yield (v ↦ H v, the parameters by name).

    H is the Hessian of the mean loss per token over ``batches`` with respect to all floating-point
    parameters, including frozen ones. At the end ``requires_grad`` of every parameter is restored.
    """
    named = {name: p for name, p in network.named_parameters() if p.is_floating_point()}
    flags = {name: p.requires_grad for name, p in named.items()}
    tokens = sum(scored_tokens(batch.labels) for batch in batches)

    def product(v: Vectors) -> Vectors:
        total = {name: torch.zeros_like(p) for name, p in named.items()}
        for batch in batches:
            # Only the plain attention kernel has second derivatives.
            with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
                loss = (
                    summed_nats(
                        network(input_ids=batch.input_ids, use_cache=False).logits, batch.labels
                    )
                    / tokens
                )
                slopes = torch.autograd.grad(loss, list(named.values()), create_graph=True)
                along = sum((g * v[name]).sum() for name, g in zip(named, slopes, strict=True))
                parts = torch.autograd.grad(along, list(named.values()))  # type: ignore[arg-type]
            for name, part in zip(named, parts, strict=True):
                total[name] += part
        return total

    try:
        for p in named.values():
            p.requires_grad_(True)
        yield product, {name: p.detach() for name, p in named.items()}
    finally:
        for name, p in named.items():
            p.requires_grad_(flags[name])
