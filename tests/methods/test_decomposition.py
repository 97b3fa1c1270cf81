"""Leading singular subspaces against float64 SVDs: angles, energy, order, signs, and matrices that
break routines.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from lowrank.optim.decomposition import exact_vectors, fast_vectors
from lowrank.optim.projection import decompose, leading_vectors

ROWS, COLUMNS, RANK = 96, 160, 24


def spectrum(kind: str) -> Tensor:
    steps = torch.arange(ROWS, dtype=torch.float64)
    return {
        "flat": 1 + 0.01 * (ROWS - steps),
        "falling": 0.9**steps,
        "steep": 10.0 ** (-steps / 6),
        "long": 1 / (1 + steps),
    }[kind]


def matrix(kind: str, scale: float = 1.0) -> Tensor:
    """(96, 160) in float32 with known singular values."""
    generator = torch.Generator().manual_seed(0)
    U, _ = torch.linalg.qr(torch.randn(ROWS, ROWS, generator=generator, dtype=torch.float64))
    V, _ = torch.linalg.qr(torch.randn(COLUMNS, ROWS, generator=generator, dtype=torch.float64))
    return (scale * U * spectrum(kind) @ V.T).float()


def largest_angle(found: Tensor, wanted: Tensor) -> float:
    """Sine of the largest principal angle between two column spaces."""
    found = found.double()
    return float(torch.linalg.matrix_norm(wanted - found @ (found.T @ wanted), 2))


@pytest.mark.parametrize("kind", ["flat", "falling", "steep", "long"])
@pytest.mark.parametrize("layout", ["rows", "columns"])
def test_exact_vectors_are_those_of_a_float64_svd(kind: str, layout: str) -> None:
    A = matrix(kind)
    U = torch.linalg.svd(A.double())[0][:, :RANK]
    found = exact_vectors(A if layout == "rows" else A.T.contiguous().T, RANK)
    assert largest_angle(found, U) < 1e-4
    cosines = (found * U).sum(0).abs()  # one by one, in order
    torch.testing.assert_close(cosines, torch.ones(RANK, dtype=torch.float64), rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", ["flat", "falling", "steep", "long"])
@pytest.mark.parametrize("scale", [1.0, 1e-25])
def test_fast_vectors_keep_the_energy(kind: str, scale: float) -> None:
    A = matrix(kind, scale)
    found = fast_vectors(A, RANK).double()
    torch.testing.assert_close(
        found.T @ found, torch.eye(RANK, dtype=torch.float64), rtol=0, atol=1e-5
    )
    best = torch.linalg.svdvals(A.double())[:RANK].square().sum()
    assert (found.T @ A.double()).square().sum() > 0.999 * best
    assert torch.equal(found, fast_vectors(A, RANK).double())


@pytest.mark.parametrize("svd", ["exact", "fast"])
@pytest.mark.parametrize("make", [torch.zeros, torch.eye, torch.ones])
@pytest.mark.parametrize("rank", [1, RANK, ROWS])
def test_degenerate_gradients_still_give_a_basis(
    svd: str, make: Callable[..., Tensor], rank: int
) -> None:
    A = make(ROWS, COLUMNS)
    found = (exact_vectors if svd == "exact" else fast_vectors)(A, rank).double()
    torch.testing.assert_close(
        found.T @ found, torch.eye(rank, dtype=torch.float64), rtol=0, atol=1e-5
    )


@pytest.mark.parametrize("svd", ["exact", "fast"])
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("turned", [False, True])
def test_the_largest_entry_of_every_vector_is_positive(svd: str, side: str, turned: bool) -> None:
    G = matrix("falling").T if turned else matrix("falling")
    found = leading_vectors(G, RANK, side, svd)  # type: ignore[arg-type]
    assert found.shape == (G.shape[0] if side == "left" else G.shape[1], RANK)
    assert (found.gather(0, found.abs().argmax(0, keepdim=True)) > 0).all()
    U, _, Vh = torch.linalg.svd(G.double(), full_matrices=False)
    assert largest_angle(found, (U if side == "left" else Vh.T)[:, :RANK]) < (
        1e-4 if svd == "exact" else 0.2
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_bases_have_the_gradients_dtype_and_the_documented_shapes(dtype: torch.dtype) -> None:
    G = matrix("falling").to(dtype)
    shapes = {
        kind: tuple(tuple(basis.shape) for basis in decompose(G, RANK, kind, "exact"))
        for kind in ("left", "right", "full")
    }
    left, right = (ROWS, RANK), (RANK, COLUMNS)
    assert shapes == {"left": (left,), "right": (right,), "full": (left, right)}
    assert decompose(G, RANK, "std", "exact")[0].dtype == dtype
