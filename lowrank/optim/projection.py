"""Gradient subspaces: which singular vectors span them, and how to project into them and back.

A projection of G (m, n) is a tuple of orthonormal bases (GaLore, arXiv:2403.03507),
each shaped so that it multiplies as written:

====== ==================== ========================= =====================
kind   bases                into the subspace         back
====== ==================== ========================= =====================
right  Q (r, n)             R = G Qᵀ (m, r)           R Q
left   Q (m, r)             R = Qᵀ G (r, n)           Q R
full   P (m, r), Q (r, n)   R = Pᵀ G Qᵀ (r, r)        P R Q
====== ==================== ========================= =====================

Singular vectors have arbitrary signs, on which moments that outlive a refresh depend. By convention
the entry of largest magnitude of each kept singular vector is positive.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from lowrank.errors import ConfigError
from lowrank.optim.decomposition import exact_vectors, fast_vectors
from lowrank.optim.sharding import full_tensor, local_tensor

OneSided = Literal["std", "reverse_std", "right", "left"]
ProjType = Literal["std", "reverse_std", "right", "left", "full"]
Svd = Literal["exact", "fast"]
Side = Literal["right", "left"]
Kind = Literal["right", "left", "full"]
Bases = tuple[Tensor, ...]

ONE_SIDED: tuple[str, ...] = ("std", "reverse_std", "right", "left")
PROJ_TYPES: tuple[str, ...] = (*ONE_SIDED, "full")
VECTORS: dict[str, Callable[[Tensor, int], Tensor]] = {"exact": exact_vectors, "fast": fast_vectors}
SVDS: tuple[str, ...] = tuple(VECTORS)


def kind_of(shape: torch.Size, proj_type: str) -> Kind:
    """Return the kind of projection for a matrix of ``shape`` (m, n).

    ``std`` keeps right singular vectors where m >= n and left ones where m < n, which compresses
    the shorter side (GaLore, section 4.2); ``reverse_std`` compresses the longer one; ``right``,
    ``left`` and ``full`` are kinds themselves. Raises :class:`ConfigError` for any other name.
    """
    check_proj_type(proj_type)
    if proj_type in ("right", "left", "full"):
        return proj_type  # type: ignore[return-value]
    tall = shape[0] >= shape[1]
    return "right" if tall == (proj_type == "std") else "left"


def check_proj_type(proj_type: str, known: tuple[str, ...] = PROJ_TYPES) -> None:
    """Raise :class:`ConfigError` unless ``proj_type`` is one of ``known``."""
    if proj_type not in known:
        raise ConfigError(f"proj_type is '{proj_type}'; choose one of {', '.join(known)}")


def check_svd(svd: str) -> None:
    """Raise :class:`ConfigError` unless ``svd`` is ``exact`` or ``fast``."""
    if svd not in SVDS:
        raise ConfigError(f"svd is '{svd}'; choose one of {', '.join(SVDS)}")


def check_rank(name: str, shape: torch.Size, rank: int) -> None:
    """Raise :class:`ConfigError` unless a matrix of ``shape``, called ``name``, has that rank.

    Shapes other than (m, n) are refused too.
    """
    if len(shape) != 2:
        raise ConfigError(
            f"{name}: only matrices are projected, this has shape {tuple(shape)}; move it to a group without a rank"
        )
    if not 1 <= rank <= min(shape):
        raise ConfigError(
            f"{name}: rank {rank} does not fit a matrix of shape {tuple(shape)}; choose 1 to {min(shape)}"
        )


def decompose(G: Tensor, rank: int, proj_type: str, svd: str) -> Bases:
    """Return the bases that the leading ``rank`` singular vectors of ``G`` (m, n) form.

    ``proj_type`` chooses the sides as in :func:`kind_of`. ``svd`` is ``exact`` (float64) or
    ``fast`` (nearly the same space in half the time). The bases are in the dtype of ``G`` and
    shaped as in the table above: one, or two for ``full``. Raises :class:`ConfigError` for a rank
    that does not fit or an unknown name.
    """
    check_rank("the gradient", G.shape, rank)
    kind = kind_of(G.shape, proj_type)
    sides: tuple[Side, ...] = ("left", "right") if kind == "full" else (kind,)
    vectors = {side: leading_vectors(G, rank, side, svd) for side in sides}
    return tuple(
        (V if side == "left" else V.T).to(G.dtype).contiguous() for side, V in vectors.items()
    )


def leading_vectors(G: Tensor, rank: int, side: Side, svd: str) -> Tensor:
    """Return the leading ``rank`` singular vectors of one side of ``G`` (m, n) as columns.

    ``side`` is ``left``, for (m, rank), or ``right``, for (n, rank). The columns are sorted by
    falling singular value, their signs follow the convention, and the dtype is that of the
    decomposition ``svd``: float64 for ``exact``, float32 for ``fast``.
    """
    check_svd(svd)
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
    """Flip columns of ``V`` so that the entry of largest magnitude of each is positive.

    Returns a new matrix.
    """
    largest = V.abs().argmax(dim=0, keepdim=True)
    return V * V.gather(0, largest).sign()


def state_elements(shape: torch.Size, rank: int, proj_type: str) -> tuple[int, int]:
    """Return the numbers of elements (of all bases, of one moment) of a matrix of ``shape``."""
    m, n = shape
    return {
        "right": (rank * n, m * rank),
        "left": (m * rank, rank * n),
        "full": (m * rank + rank * n, rank * rank),
    }[kind_of(shape, proj_type)]


def project(G: Tensor, bases: Bases, kind: str) -> Tensor:
    """Return ``G`` (m, n) in the coordinates of the subspace that ``bases`` span.

    The result R is shaped as in the table above. ``bases`` come from :func:`decompose`, ``kind``
    from :func:`kind_of`.
    """
    if kind == "right":
        return G @ bases[0].T
    if kind == "left":
        return bases[0].T @ G
    return bases[0].T @ G @ bases[1].T


def add_back(target: Tensor, R: Tensor, bases: Bases, kind: str, alpha: float) -> Tensor:
    """Add ``alpha`` times the matrix that ``R`` stands for in the full space to ``target`` (m, n).

    Changes ``target`` in place and returns it. ``bases`` and ``kind`` are as in :func:`project`.
    With alpha -1 and R the projection of ``target``, what remains is the part outside the subspace.
    """
    if isinstance(target, DTensor):
        add_back(
            local_tensor(target),
            full_tensor(R) if kind == "left" else local_tensor(R),
            tuple(map(local_tensor, bases)),
            kind,
            alpha,
        )
        return target
    if kind == "full":
        R, bases, kind = bases[0] @ R, bases[1:], "right"
    first, second = (R, bases[0]) if kind == "right" else (bases[0], R)
    if target.dtype == first.dtype:
        return target.addmm_(first, second, alpha=alpha)
    # The moments have another precision than the weights.
    return target.add_(first @ second, alpha=alpha)
