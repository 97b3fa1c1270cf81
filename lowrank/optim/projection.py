"""Gradient subspaces: which singular vectors of a gradient span them, and how a matrix goes in and
comes back.

A projection of G (m, n) is a tuple of orthonormal bases, each shaped so that it multiplies as
written:

====== ==================== ========================= =====================
kind   bases                into the subspace         back
====== ==================== ========================= =====================
right  Q (r, n)             R = G Qᵀ (m, r)           R Q
left   Q (m, r)             R = Qᵀ G (r, n)           Q R
full   P (m, r), Q (r, n)   R = Pᵀ G Qᵀ (r, r)        P R Q
====== ==================== ========================= =====================

Singular vectors have arbitrary signs, and moments that outlive a refresh feel them. The convention
here: the entry of largest magnitude of each kept singular vector is positive.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from lowrank.errors import ConfigError
from lowrank.optim.decomposition import exact_vectors, fast_vectors
from lowrank.optim.sharding import local, whole

OneSided = Literal["std", "reverse_std", "right", "left"]
ProjType = Literal["std", "reverse_std", "right", "left", "full"]
Svd = Literal["exact", "fast"]
Side = Literal["right", "left"]
Bases = tuple[Tensor, ...]

ONE_SIDED: tuple[str, ...] = ("std", "reverse_std", "right", "left")
PROJ_TYPES: tuple[str, ...] = (*ONE_SIDED, "full")
VECTORS: dict[str, Callable[[Tensor, int], Tensor]] = {"exact": exact_vectors, "fast": fast_vectors}
SVDS: tuple[str, ...] = tuple(VECTORS)


def kind_of(shape: torch.Size, proj_type: str) -> Literal["right", "left", "full"]:
    """The kind of projection for a matrix of ``shape``; ``std`` compresses its shorter side
    (GaLore, section 4.2).
    """
    if proj_type in ("right", "left", "full"):
        return proj_type  # type: ignore[return-value]
    tall = shape[0] >= shape[1]
    return "right" if tall == (proj_type == "std") else "left"


def check_rank(name: str, shape: torch.Size, rank: int) -> None:
    """Raise unless ``rank`` singular vectors exist."""
    if len(shape) != 2:
        raise ConfigError(
            f"{name}: only matrices are projected, this has shape {tuple(shape)}; move it to a group without a rank"
        )
    if not 1 <= rank <= min(shape):
        raise ConfigError(
            f"{name}: rank {rank} does not fit a matrix of shape {tuple(shape)}; choose 1 to {min(shape)}"
        )


def decompose(G: Tensor, rank: int, proj_type: str, svd: str) -> Bases:
    """The bases of the leading ``rank`` singular vectors of ``G`` (m, n), in its dtype."""
    kind = kind_of(G.shape, proj_type)
    sides: tuple[Side, ...] = ("left", "right") if kind == "full" else (kind,)
    vectors = {side: leading_vectors(G, rank, side, svd) for side in sides}
    return tuple(
        (V if side == "left" else V.T).to(G.dtype).contiguous() for side, V in vectors.items()
    )


def leading_vectors(G: Tensor, rank: int, side: Side, svd: str) -> Tensor:
    """Leading ``rank`` singular vectors of one side of ``G`` as columns, by falling singular value,
    signs fixed.
    """
    A = G if side == "left" else G.T  # left singular vectors of A are wanted
    if A.shape[0] <= A.shape[1]:
        return fix_signs(VECTORS[svd](A, rank))
    # The longer side: A maps each vector of the shorter side to sigma times its partner. Nearly
    # vanished partners are completed by the QR decomposition, whose columns differ from the
    # singular vectors in sign alone.
    V = VECTORS[svd](A.T, rank)
    partners, _ = torch.linalg.qr(A.to(V.dtype) @ V)
    return fix_signs(partners)


def fix_signs(V: Tensor) -> Tensor:
    """Flip columns of ``V`` so that the entry of largest magnitude of each is positive."""
    largest = V.abs().argmax(dim=0, keepdim=True)
    return V * V.gather(0, largest).sign()


def state_elements(shape: torch.Size, rank: int, proj_type: str) -> tuple[int, int]:
    """Elements (of the bases, of one moment) of a matrix of ``shape``."""
    m, n = shape
    return {
        "right": (rank * n, m * rank),
        "left": (m * rank, rank * n),
        "full": (m * rank + rank * n, rank * rank),
    }[kind_of(shape, proj_type)]


def project(G: Tensor, bases: Bases, kind: str) -> Tensor:
    """``G`` in the coordinates of the subspace."""
    if kind == "right":
        return G @ bases[0].T
    if kind == "left":
        return bases[0].T @ G
    return bases[0].T @ G @ bases[1].T


def add_back(target: Tensor, R: Tensor, bases: Bases, kind: str, alpha: float) -> Tensor:
    """``target + alpha · back(R)``, in place."""
    if isinstance(target, DTensor):
        add_back(
            local(target),
            whole(R) if kind == "left" else local(R),
            tuple(map(local, bases)),
            kind,
            alpha,
        )
        return target
    if kind == "full":
        R, bases, kind = bases[0] @ R, bases[1:], "right"
    first, second = (R, bases[0]) if kind == "right" else (bases[0], R)
    if target.dtype == first.dtype:
        return target.addmm_(first, second, alpha=alpha)
    return target.add_(first @ second, alpha=alpha)  # moments of another precision than the weights
