"""What a projected optimizer may override, each alone; typed fields over the stored state."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lowrank.errors import ConfigError
from lowrank.optim import AdamState, BlockCodec, Field, GaLoreAdamW, ProjectedMatrix, decompose
from lowrank.optim.projection import Bases
from lowrank.optim.state import FiraState, ProjectedState


def train(optimizer: Any, p: nn.Parameter, updates: int = 7) -> list[Tensor]:
    """Run updates with given gradients; return the stored basis after each."""
    generator = torch.Generator().manual_seed(1)
    bases = []
    for _ in range(updates):
        p.grad = torch.randn(p.shape, generator=generator)
        optimizer.step()
        bases.append(optimizer.state[p].get("basis", torch.empty(0)).clone())
    return bases


def made(cls: type[GaLoreAdamW], **group: Any) -> tuple[Any, nn.Parameter]:
    p = nn.Parameter(torch.randn(12, 8, generator=torch.Generator().manual_seed(0)))
    return cls([{"params": [p], "rank": 3, "update_proj_gap": 3, **group}], lr=0.1), p


class Always(GaLoreAdamW):
    def is_due(self, matrix: ProjectedMatrix) -> bool:
        return True


class RotatedState(ProjectedState):
    renewals = Field(0)


class Rotating(GaLoreAdamW):
    """Carries the first moment over into the new basis."""

    state_class = RotatedState

    def renew(self, matrix: ProjectedMatrix, G: Tensor) -> None:
        state: RotatedState = matrix.state
        old = state.bases
        super().renew(matrix, G)
        state.renewals += 1
        if old:
            state.exp_avg.values = state.exp_avg.values @ old[0] @ state.bases[0].T


class EncodedState(ProjectedState):
    codes: Field[Tensor | None] = Field(None)
    scales: Field[Tensor | None] = Field(None)

    @property
    def bases(self) -> Bases:  # type: ignore[override]
        return () if self.codes is None else (BlockCodec(True).decode(self.codes, self.scales),)


class Encoded(GaLoreAdamW):
    """Stores the basis as codes and never in full."""

    state_class = EncodedState

    def renew(self, matrix: ProjectedMatrix, G: Tensor) -> None:
        (basis,) = decompose(G, matrix.group["rank"], "std", "exact")
        matrix.state.codes, matrix.state.scales = BlockCodec(True).encode(basis)


def changes(bases: list[Tensor]) -> list[int]:
    return [i for i, (a, b) in enumerate(itertools.pairwise(bases)) if not a.equal(b)]


def test_by_default_the_basis_changes_with_every_gap() -> None:
    assert changes(train(*made(GaLoreAdamW))) == [2, 5]


def test_when_a_basis_is_due_may_be_overridden() -> None:
    assert changes(train(*made(Always))) == [0, 1, 2, 3, 4, 5]


def test_renewal_may_be_overridden_and_transform_the_moments() -> None:
    (plain, p), (rotating, q) = made(GaLoreAdamW), made(Rotating)
    train(plain, p, updates=3)
    train(rotating, q, updates=3)
    assert torch.equal(p, q)
    train(plain, p, updates=4)
    train(rotating, q, updates=4)
    assert not torch.allclose(p, q)
    assert rotating.state[q]["renewals"] == 3


def test_what_is_stored_of_a_basis_may_be_overridden() -> None:
    (plain, p), (encoded, q) = made(GaLoreAdamW), made(Encoded)
    train(plain, p, updates=2)
    train(encoded, q, updates=2)
    assert "basis" not in encoded.state[q]
    assert encoded.state[q]["codes"].dtype == torch.uint8
    torch.testing.assert_close(p, q, atol=0.05, rtol=0)


def test_views_read_and_write_the_stored_dictionary() -> None:
    stored: dict[str, Any] = {}
    state = FiraState(stored)
    assert (state.step, state.bases, state.residual_norm, state.dtype) == (0, (), None, None)
    assert not state.has_moments
    state.step += 1
    state.bases = (torch.ones(1), torch.zeros(1))
    state.exp_avg.values, state.exp_avg.scales = torch.ones(2), torch.ones(1)
    state.residual_norm = torch.tensor(2.0)
    assert list(stored) == ["step", "basis", "basis_2", "exp_avg", "exp_avg_scale", "residual_norm"]
    assert state.is_quantised
    assert not state.has_moments
    keys = ("exp_avg", "exp_avg_sq", "basis", "basis_2", "exp_avg_scale", "step", "unknown")
    assert [FiraState.layout(key) for key in keys] == [
        "moment",
        "moment",
        "basis",
        *["replicated"] * 4,
    ]


@pytest.mark.parametrize("counter", [3, torch.tensor(3.0)], ids=["int", "tensor"])
def test_a_counter_restarts_as_what_it_was(counter: Any) -> None:
    stored = {"step": counter}
    AdamState(stored).restart()
    assert stored["step"] == 0
    assert (stored["step"] is counter) == torch.is_tensor(counter)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ((9, "std", "exact"), "rank 9 does not fit a matrix of shape \\(12, 8\\)"),
        ((2, "both", "exact"), "proj_type is 'both'; choose one of std"),
        ((2, "std", "quick"), "svd is 'quick'; choose one of exact, fast"),
    ],
)
def test_a_decomposition_that_cannot_be_is_one_sentence(
    arguments: tuple[int, str, str], sentence: str
) -> None:
    with pytest.raises(ConfigError, match=sentence):
        decompose(torch.randn(12, 8), *arguments)


def test_the_codec_keeps_shapes_and_takes_half_precision() -> None:
    x = torch.randn(3, 5, 41, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
    codes, scales = BlockCodec(signed=True).encode(x)
    flat, same = BlockCodec(signed=True).encode(x.float().flatten())
    assert codes.shape == x.shape
    assert torch.equal(codes.flatten(), flat)
    assert torch.equal(scales, same)
    restored = BlockCodec(signed=True).decode(codes, scales)
    assert restored.shape == x.shape
    torch.testing.assert_close(restored, x.float(), atol=0.05, rtol=0)
