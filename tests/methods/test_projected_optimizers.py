"""GaLoreAdamW and FiraAdamW against the authors' packages, step by step, under one convention of
signs.
"""

from __future__ import annotations

import io
import itertools
from typing import Any

import fira
import galore_torch
import pytest
import torch
from fira.gradient_projection import GradientProjector
from galore_torch.galore_projector import GaLoreProjector
from torch import Tensor, nn

from lowrank.errors import ConfigError, DivergedError
from lowrank.optim.fira import FiraAdamW
from lowrank.optim.galore import GaLoreAdamW
from lowrank.optim.projection import fix_signs

SHAPES = {"tall": (24, 10), "wide": (10, 24), "square": (12, 12)}


def canonical(original: Any) -> Any:
    """The oracle's decomposition with the signs of the project's convention."""

    def decomposition(self: Any, weights: Tensor, rank: int, type: str) -> Any:
        found = original(self, weights, rank, type)
        if type == "full":
            return [fix_signs(found[0]), fix_signs(found[1].T).T]
        return fix_signs(found) if type == "left" else fix_signs(found.T).T

    return decomposition


@pytest.fixture
def galore_oracle(monkeypatch: pytest.MonkeyPatch) -> type:
    monkeypatch.setattr(
        GaLoreProjector, "get_orthogonal_matrix", canonical(GaLoreProjector.get_orthogonal_matrix)
    )
    return galore_torch.GaLoreAdamW


@pytest.fixture
def fira_oracle(monkeypatch: pytest.MonkeyPatch) -> type:
    monkeypatch.setattr(
        GradientProjector,
        "get_orthogonal_matrix",
        canonical(GradientProjector.get_orthogonal_matrix),
    )
    return fira.FiraAdamW


def parameters(dtype: torch.dtype = torch.float32) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(1)
    made = [torch.randn(shape, generator=generator) for shape in SHAPES.values()] + [
        torch.randn(7, generator=generator)
    ]
    return [nn.Parameter(p.to(dtype)) for p in made]


def set_gradients(trained: list[nn.Parameter], update: int) -> None:
    generator = torch.Generator().manual_seed(100 + update)
    for p in trained:
        noise = torch.randn(p.shape, generator=generator)
        p.grad = (noise * 0.1 + p.detach().float()).to(p.dtype)


def groups(trained: list[nn.Parameter], **projected: Any) -> list[dict[str, Any]]:
    return [
        {"params": trained[3:]},
        {"params": trained[:3], "rank": 4, "update_proj_gap": 5, **projected},
    ]


def run(
    optimizer: torch.optim.Optimizer, trained: list[nn.Parameter], first: int = 0, last: int = 25
) -> None:
    for update in range(first, last):
        set_gradients(trained, update)
        optimizer.step()


@pytest.mark.parametrize("proj_type", ["std", "reverse_std", "right", "left", "full"])
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
@pytest.mark.parametrize("correct_bias", [True, False])
def test_galore_follows_the_authors_package(
    galore_oracle: type, proj_type: str, weight_decay: float, correct_bias: bool
) -> None:
    ours, theirs = parameters(), parameters()
    key = {"scale": 0.25, "proj_type": proj_type}
    # Two-sided, the projected gradient is diagonal but for rounding at each refresh, and Adam blows
    # that rounding up to full steps wherever eps is as small as it is: there no two implementations
    # can agree.
    eps = 1e-2 if proj_type == "full" else 1e-6
    common = {"lr": 1e-2, "eps": eps, "weight_decay": weight_decay, "correct_bias": correct_bias}
    run(GaLoreAdamW(groups(ours, **key), **common), ours)
    run(galore_oracle(groups(theirs, **key), no_deprecation_warning=True, **common), theirs)
    for p, q in zip(ours, theirs, strict=True):
        torch.testing.assert_close(p, q, rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("proj_type", ["std", "reverse_std"])
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
@pytest.mark.parametrize("alpha", [1.0, 0.25])
def test_fira_follows_the_authors_package(
    fira_oracle: type, proj_type: str, weight_decay: float, alpha: float
) -> None:
    ours, theirs = parameters(), parameters()
    key = {"alpha": alpha, "proj_type": proj_type}
    common = {"lr": 1e-2, "weight_decay": weight_decay}
    run(FiraAdamW(groups(ours, **key), **common), ours)
    run(fira_oracle(groups(theirs, **key), no_deprecation_warning=True, **common), theirs)
    for p, q in zip(ours, theirs, strict=True):
        torch.testing.assert_close(p, q, rtol=5e-6, atol=5e-6)


@pytest.mark.parametrize("update", [7, 10])
@pytest.mark.parametrize(
    ("oracle", "ours", "key"),
    [
        ("galore_oracle", GaLoreAdamW, {"scale": 0.25, "proj_type": "std"}),
        ("galore_oracle", GaLoreAdamW, {"scale": 1.0, "proj_type": "reverse_std"}),
        ("fira_oracle", FiraAdamW, {"alpha": 0.25, "proj_type": "std"}),
    ],
)
def test_goes_on_from_a_state_of_the_authors_package(
    oracle: str,
    ours: type,
    key: dict[str, Any],
    update: int,
    request: pytest.FixtureRequest,
) -> None:
    """Read from a file with their projector alone allowed; between two refreshes, and where one is
    due.
    """
    theirs, common = parameters(), {"lr": 1e-2, "weight_decay": 0.1}
    published = request.getfixturevalue(oracle)(
        groups(theirs, **key), no_deprecation_warning=True, **common
    )
    run(published, theirs, last=update)
    file = io.BytesIO()
    torch.save(published.state_dict(), file)
    file.seek(0)
    with torch.serialization.safe_globals([GaLoreProjector, GradientProjector]):
        state = torch.load(file, weights_only=True)
    mine = [nn.Parameter(p.detach().clone()) for p in theirs]
    optimizer = ours(groups(mine, **key), **common)
    optimizer.load_state_dict(state)
    run(optimizer, mine, first=update, last=25)
    run(published, theirs, first=update)
    for p, q in zip(mine, theirs, strict=True):
        torch.testing.assert_close(p, q, rtol=5e-6, atol=5e-6)
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    torch.load(file, weights_only=True)  # nothing of theirs is left


def test_a_foreign_projector_without_a_basis_is_refused() -> None:
    trained = parameters()
    optimizer = GaLoreAdamW(groups(trained))
    state = optimizer.state_dict()
    with pytest.raises(ConfigError, match="parameter 1 in this state holds no basis"):
        optimizer.load_state_dict({**state, "state": {1: {"step": 3, "projector": object()}}})


def test_fira_limits_the_growth_of_the_residual_across_refreshes() -> None:
    trained = parameters()
    optimizer = FiraAdamW(groups(trained, alpha=0.25), lr=1e-2)
    norms = []
    for update in range(12):
        set_gradients(trained, update)
        for p in trained:
            p.grad.mul_(3.0**update)  # without the limiter the residual's norm would treble
        optimizer.step()
        norms.append(float(optimizer.state[trained[0]]["residual_norm"]))
    growth = [after / before for before, after in itertools.pairwise(norms)]
    assert max(growth) <= 1.01 * (1 + 1e-6)
    assert max(growth[3:]) > 1.0099  # the limit binds


def test_fira_refuses_two_sided_projection() -> None:
    with pytest.raises(ConfigError, match="proj_type is 'full'"):
        FiraAdamW(groups(parameters(), proj_type="full"))


def test_the_convention_of_signs_matters(galore_oracle: type) -> None:
    """Without it a comparison after the first refresh says nothing: flipped vectors change the
    trajectory.
    """
    ours, theirs = parameters(), parameters()
    run(GaLoreAdamW(groups(ours, scale=0.25), lr=1e-2), ours, last=25)
    flipping = GaLoreAdamW(groups(theirs, scale=0.25), lr=1e-2)
    for update in range(25):
        set_gradients(theirs, update)
        flipping.step()
        if update % 5 == 0:
            for p in theirs[:3]:
                flipping.state[p]["basis"].neg_()
    assert (ours[0] - theirs[0]).abs().max() > 1e-3


def test_pure_bfloat16_rounds_like_the_authors_package(galore_oracle: type) -> None:
    ours, theirs = parameters(torch.bfloat16), parameters(torch.bfloat16)
    key = {"scale": 0.25, "proj_type": "std"}
    run(GaLoreAdamW(groups(ours, **key), lr=1e-2), ours, last=3)
    run(galore_oracle(groups(theirs, **key), lr=1e-2, no_deprecation_warning=True), theirs, last=3)
    for p, q in zip(ours, theirs, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("Optimizer", [GaLoreAdamW, FiraAdamW])
def test_state_survives_torch_save_between_refreshes(dtype: torch.dtype, Optimizer: type) -> None:
    whole, cut = parameters(dtype), parameters(dtype)
    run(Optimizer(groups(whole), lr=1e-2), whole)
    first = Optimizer(groups(cut), lr=1e-2)
    run(first, cut, last=8)
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    file.seek(0)
    second = Optimizer(groups(cut), lr=1e-2)
    second.load_state_dict(torch.load(file, weights_only=True))
    run(second, cut, first=8)
    for p, q in zip(whole, cut, strict=True):
        assert torch.equal(p, q)


@pytest.mark.parametrize("Optimizer", [GaLoreAdamW, FiraAdamW])
def test_state_keeps_its_precision_in_a_model_of_another(Optimizer: type) -> None:
    trained = parameters()
    first = Optimizer(groups(trained), lr=1e-2)
    run(first, trained, last=8)
    halves = parameters(torch.bfloat16)
    second = Optimizer(groups(halves), lr=1e-2)
    second.load_state_dict(first.state_dict())
    run(second, halves, first=8, last=12)
    for p in halves:
        assert {value.dtype for value in second.state[p].values() if torch.is_tensor(value)} == {
            torch.float32
        }
        assert torch.isfinite(p).all()


def test_a_gradient_that_is_not_finite_is_named_before_anything_moves() -> None:
    named = [("embed.weight", nn.Parameter(torch.ones(3, 3)))]
    matrices = [
        ("a.weight", nn.Parameter(torch.ones(4, 3))),
        ("b.weight", nn.Parameter(torch.ones(3, 4))),
    ]
    optimizer = GaLoreAdamW([{"params": named}, {"params": matrices, "rank": 2}])
    for _, p in [*named, *matrices]:
        p.grad = torch.randn(p.shape)
    matrices[1][1].grad[0, 0] = float("nan")
    with pytest.raises(DivergedError, match=r"b\.weight .* update 1"):
        optimizer.step()
    assert all(torch.equal(p, torch.ones_like(p)) for _, p in [*named, *matrices])


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"rank": 11}, "rank 11"),
        ({"rank": 0}, "rank 0"),
        ({"proj_type": "sideways"}, "proj_type is 'sideways'"),
        ({"svd": "sloppy"}, "svd is 'sloppy'"),
        ({"update_proj_gap": 0}, "update_proj_gap"),
    ],
)
def test_impossible_groups_are_refused(change: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        GaLoreAdamW(groups(parameters(), **change))


def test_a_vector_cannot_be_projected() -> None:
    with pytest.raises(ConfigError, match="only matrices"):
        GaLoreAdamW([{"params": [nn.Parameter(torch.ones(7))], "rank": 2}])


@pytest.mark.parametrize("Optimizer", [GaLoreAdamW, FiraAdamW])
@pytest.mark.parametrize("projected", [1, 3])
def test_the_layout_of_gradients_in_memory_changes_nothing(Optimizer: type, projected: int) -> None:
    plain, turned = parameters(), parameters()
    turned[2] = nn.Parameter(turned[2].detach().T.contiguous().T)
    ours, other = (
        Optimizer([{"params": p[projected:]}, {"params": p[:projected], "rank": 4}], lr=1e-2)
        for p in (plain, turned)
    )
    for update in range(4):
        set_gradients(plain, update)
        for p, q in zip(plain, turned, strict=True):
            q.grad = p.grad.T.contiguous().T if update % 2 and p.dim() == 2 else p.grad.clone()
        ours.step()
        other.step()
    for p, q in zip(plain, turned, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-6, atol=1e-6)
