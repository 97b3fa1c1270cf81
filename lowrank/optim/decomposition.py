"""Compute leading left singular vectors of a wide matrix from its Gram matrix.

:func:`exact_vectors` works in float64; :func:`fast_vectors` iterates in float32 until the captured
energy settles. For either side of a matrix of any shape, with a convention of signs, call
:func:`lowrank.optim.projection.leading_vectors`.

Squaring a matrix costs half the digits. A float32 gradient squared in float64 loses nothing;
squared in float32 it loses the directions whose singular values are below about 3e-4 of the
largest, which hold next to no energy.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from scipy.linalg import blas, lapack
from torch import Tensor

OVERSAMPLING = 24  # directions of the fast decomposition beyond the rank
MAX_ROUNDS = 6  # of block power iteration
# The iteration stops when a round adds less than this share of the energy: each round shrinks what
# is missing severalfold.
SETTLED = 5e-4
LAPACK_FROM = 64  # rows from which LAPACK by parts is quicker than torch.linalg.eigh


def exact_vectors(A: Tensor, rank: int) -> Tensor:
    """Return the leading ``rank`` left singular vectors of ``A`` (k, l), k <= l.

    They are the columns of a float64 matrix (k, rank) on the device of ``A``, by falling singular
    value. Their signs are arbitrary.
    """
    A = A.to(torch.float64)
    if A.device.type == "cpu" and len(A) >= LAPACK_FROM:
        vectors = _by_parts(A.numpy(), rank)
        if vectors is not None:
            return torch.from_numpy(vectors)
    leading: Tensor = torch.linalg.eigh(A @ A.T)[1][:, -rank:].flip(1)
    return leading


def _by_parts(a: np.ndarray[Any, Any], rank: int) -> np.ndarray[Any, Any] | None:
    """Compute only the leading eigenvectors of the Gram matrix of ``a`` (k, l), with LAPACK.

    This takes half the time of a routine that computes all of them: reduction to tridiagonal form,
    its eigenvalues, inverse iteration for the wanted ones, and back. Returns None where inverse
    iteration fails or leaves vectors that are not orthogonal (many equal singular values); the
    caller then computes all of them.
    """
    k = len(a)
    gram = (
        blas.dsyrk(1.0, a, lower=1)
        if a.flags.f_contiguous
        else blas.dsyrk(1.0, a.T, trans=1, lower=1)
    )
    reflectors, diagonal, off, tau, _ = lapack.dsytrd(
        gram, lower=1, lwork=int(lapack.dsytrd_lwork(k, lower=1)[0]), overwrite_a=1
    )
    eigenvalues, failed = lapack.dsterf(diagonal, off)
    if failed:
        return None
    one_block = np.ones(k, dtype=np.int32), np.full(k, k, dtype=np.int32)
    vectors, failed = lapack.dstein(diagonal, off, eigenvalues[-rank:], *one_block)
    if failed or not np.allclose(vectors.T @ vectors, np.eye(rank), rtol=0.0, atol=1e-10):
        return None
    # The reflectors leave the first coordinate alone; on the others they are those of a QR
    # decomposition.
    rest, _, _ = lapack.dormqr("L", "N", reflectors[1:, :-1], tau, vectors[1:], lwork=64 * rank)
    return np.vstack([vectors[:1], rest])[:, ::-1].copy()


def fast_vectors(A: Tensor, rank: int) -> Tensor:
    """Return orthonormal columns with nearly the energy of the leading left singular vectors.

    ``A`` is (k, l) with k <= l; the columns are (k, rank), float32, on the device of ``A``. Runs a
    block power iteration on the Gram matrix until the captured share of the energy settles
    (arXiv:0909.4061, algorithms 4.4 and 5.3). The sketch has a few directions to spare and is the
    same at every call, so the same matrix gives the same vectors.
    """
    k = len(A)
    A = A.to(torch.float32)
    # The squares of small gradients would vanish.
    A = A / A.abs().amax().clamp(min=torch.finfo(torch.float32).tiny)
    C = A @ A.T
    width, tiny = min(k, rank + OVERSAMPLING), torch.finfo(torch.float32).tiny
    sketch = torch.randn(k, width, generator=torch.Generator().manual_seed(k)).to(C.device)
    energy, captured = float(C.trace().clamp(min=tiny)), 0.0
    for _ in range(MAX_ROUNDS):
        basis, _ = torch.linalg.qr(C @ sketch)
        sketch = C @ basis
        before, captured = captured, float((basis * sketch).sum()) / energy
        if captured - before < SETTLED or captured > 1.0 - SETTLED:
            break
    leading: Tensor = basis @ torch.linalg.eigh(basis.T @ sketch)[1][:, -rank:].flip(1)
    return leading
