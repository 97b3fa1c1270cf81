"""The landscape of functions whose curvature is known, and of tiny networks that must come back
unchanged.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from lowrank.geometry.directions import Components, random_direction, trajectory_directions
from lowrank.geometry.estimate import EvaluationBatch
from lowrank.geometry.offsets import Walk, gauss, rule_for
from lowrank.geometry.probe import borrowed_weights
from lowrank.metrics.base import Comparison, Expected
from lowrank.metrics.landscape import (
    Grid,
    Landscape,
    LandscapeSettings,
    direction_variance,
    random_table,
    sharpness,
)

GRID = Grid(start=-0.003, step=0.00025, count=25)
WIDE = Grid(start=-0.3, step=0.025, count=25)


class Quadratic(nn.Module):
    """A "network" whose loss is L0 + g·θ + ½θᵀHθ for every token, whatever the text: nll = q for
    logits (-ln(e^q - 1), 0).
    """

    def __init__(self, H: torch.Tensor, g: torch.Tensor, level: float = 3.0) -> None:
        super().__init__()
        self.theta = nn.Parameter(torch.zeros(len(g), dtype=torch.float64))
        self.H, self.g, self.level = H, g, level

    def forward(self, input_ids: torch.Tensor, use_cache: bool = False) -> SimpleNamespace:
        q = self.level + self.g @ self.theta + 0.5 * self.theta @ self.H @ self.theta
        token = torch.stack([-torch.log(torch.expm1(q)), torch.zeros((), dtype=torch.float64)])
        return SimpleNamespace(logits=token.expand(*input_ids.shape, 2))


def quadratic(size: int = 30, slope: float = 0.1) -> tuple[Quadratic, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    A = torch.randn(size, size, generator=generator, dtype=torch.float64)
    H = A @ A.T / size
    g = slope * torch.randn(size, generator=generator, dtype=torch.float64)
    return Quadratic(H, g), H, g


ZEROS = EvaluationBatch(torch.zeros(2, 5, dtype=torch.int64), torch.zeros(2, 5, dtype=torch.int64))


def table(
    network: nn.Module, nodes: int, directions: int, grid: Grid = WIDE
) -> tuple[Any, np.ndarray]:
    settings = LandscapeSettings(directions=directions, grid=grid, nodes=nodes)
    rule = rule_for(grid.offsets(), nodes)
    with Walk(network, [ZEROS]) as walk:
        return rule, random_table(walk, rule, settings)


@pytest.mark.parametrize("nodes", [0, 1, 2])
def test_a_quadratic_has_its_analytic_sharpness_and_variance(nodes: int) -> None:
    network, H, g = quadratic()
    rule, losses = table(network, nodes, directions=300)
    squares = np.square(WIDE.offsets())
    positive = squares[13:].mean()
    found, variance = rule.sharpness(losses), rule.variance(losses)
    assert found.value == pytest.approx(
        0.5 * positive * float(H.trace()), abs=4 * found.standard_error
    )
    expected_error = 0.5 * positive * math.sqrt(2 * float((H @ H).trace())) / math.sqrt(300)
    assert found.standard_error == pytest.approx(expected_error, rel=0.2)
    analytic = squares.mean() * float(g @ g) + 0.25 * np.square(squares).mean() * 2 * float(
        (H @ H).trace()
    )
    assert variance.value == pytest.approx(analytic, abs=4 * variance.standard_error)
    assert 0 < variance.standard_error < 0.2 * variance.value


def test_the_public_functions_agree_with_the_whole_grid() -> None:
    network, *_ = quadratic()
    rule, losses = table(network, 0, directions=20)
    assert sharpness(WIDE.offsets(), losses).value == pytest.approx(
        rule.sharpness(losses).value, rel=1e-12
    )
    assert sharpness(WIDE.offsets(), losses).standard_error == pytest.approx(
        rule.sharpness(losses).standard_error, rel=1e-12
    )
    ours = direction_variance(WIDE.offsets(), losses)
    assert ours.value == pytest.approx(losses.var(axis=0).mean(), rel=1e-12), (
        "population variance, all offsets"
    )
    assert ours.value == pytest.approx(rule.variance(losses).value, rel=1e-12)


def test_fewer_offsets_give_the_same_number_on_the_same_directions() -> None:
    network, *_ = quadratic()
    full_rule, full = table(network, 0, directions=25)
    for nodes in (1, 2):
        rule, few = table(network, nodes, directions=25)
        assert few.shape == (25, 2 * nodes + 1)
        assert rule.sharpness(few).value == pytest.approx(full_rule.sharpness(full).value, rel=1e-9)
        tolerance = (
            1e-9 if nodes == 2 else 1e-3
        )  # the variance has terms up to the eighth order only through products
        assert rule.variance(few).value == pytest.approx(
            full_rule.variance(full).value, rel=tolerance
        )


@pytest.mark.parametrize("nodes", [1, 2, 3])
def test_gauss_rules_are_exact_to_their_order(nodes: int) -> None:
    positive = WIDE.offsets()[13:]
    points, weights = gauss(positive, nodes)
    for power in range(1, 2 * nodes + 1):
        exact = np.mean(np.power(positive, 2 * power))
        assert sum(
            w * b ** (2 * power) for b, w in zip(points, weights, strict=True)
        ) == pytest.approx(exact, rel=1e-10)
    beyond = 4 * nodes + 2
    ours = sum(w * b**beyond for b, w in zip(points, weights, strict=True))
    assert ours != pytest.approx(np.mean(np.power(positive, beyond)), rel=1e-10)


def test_one_direction_has_no_standard_error() -> None:
    found = sharpness([-1.0, 0.0, 1.0], [[2.0, 1.0, 4.0]])
    assert (found.value, found.standard_error) == (2.0, None)
    assert direction_variance([-1.0, 0.0, 1.0], [[2.0, 1.0, 4.0]]).value == 0.0


@pytest.mark.parametrize(
    ("offsets", "losses", "words"),
    [
        ([-0.05, -0.01, 0.03], [[1.0, 1.0, 1.0]], "symmetric"),
        ([-1.0, 1.0], [[1.0, 1.0]], "odd number"),
        ([1.0, 0.0, -1.0], [[1.0, 1.0, 1.0]], "ascend"),
        ([-1.0, 0.0, 1.0], [[1.0, 1.0]], "3 offsets"),
    ],
)
def test_uneven_grids_are_refused(
    offsets: list[float], losses: list[list[float]], words: str
) -> None:
    for function in (sharpness, direction_variance):
        with pytest.raises(ValueError, match=words):
            function(offsets, losses)


def test_the_published_grid_without_zero_is_repeated_as_it_was() -> None:
    grid = Grid(start=-0.05, step=0.004, count=26)
    rule = rule_for(grid.offsets(), 0)
    assert rule.offsets[rule.centre] == pytest.approx(0.002)
    unpaired = set(range(26)) - {i for pair in rule.pairs for i in pair[:2]} - {rule.centre}
    assert [rule.offsets[i] for i in unpaired] == [-0.05]
    curve = np.array([[1.0 + 50 * a + 400 * a * a for a in rule.offsets]])
    steps = 0.004 * np.arange(1, 13)
    assert rule.sharpness(curve).value == pytest.approx(400 * np.square(steps).mean()), (
        "around +0.002 instead of 0"
    )
    with pytest.raises(ValueError, match="symmetric around 0"):
        rule_for(grid.offsets(), 2)
    with pytest.raises(ValueError, match="both sides"):
        rule_for([0.0, 0.1, 0.2], 0)


def test_the_grids_of_the_presets_have_25_points_with_zero() -> None:
    settings = LandscapeSettings()
    for grid, end in ((settings.grid, 0.003), (settings.component_grid, 0.048)):
        offsets = grid.offsets()
        assert (len(offsets), offsets[12]) == (25, 0.0)
        assert offsets[-1] == pytest.approx(end)
        assert offsets == [-a for a in offsets[::-1]]


def test_directions_depend_on_seed_index_and_name_alone() -> None:
    weights = {"a": torch.ones(4, 3), "b": torch.ones(5)}
    first = random_direction(weights, 0, 7, "raw")
    again = random_direction(
        {"b": torch.zeros(5), "c": torch.ones(2, 2), "a": torch.zeros(4, 3)}, 0, 7, "raw"
    )
    assert torch.equal(first["a"], again["a"])
    assert torch.equal(first["b"], again["b"])
    for other in (random_direction(weights, 1, 7, "raw"), random_direction(weights, 0, 8, "raw")):
        assert not torch.equal(first["a"], other["a"])


def test_normalisations() -> None:
    weights = {"W": torch.randn(6, 4), "gain": torch.rand(4)}
    filtered = random_direction(weights, 0, 0, "filter")
    assert set(filtered) == {"W"}, "one-dimensional tensors stay put"
    torch.testing.assert_close(filtered["W"].norm(dim=1), weights["W"].norm(dim=1))
    relative = random_direction(weights, 0, 0, "relative")
    for name, W in weights.items():
        torch.testing.assert_close(relative[name].norm(), W.norm())


def test_components_are_those_of_the_svd() -> None:
    generator = torch.Generator().manual_seed(0)
    weights = {
        "tall": torch.randn(9, 4, generator=generator),
        "wide": torch.randn(3, 8, generator=generator),
        "gain": torch.ones(4),
    }
    found = Components(weights, 5)
    for k in (1, 3):
        made = found.direction(k)
        assert set(made) == {"tall", "wide"}
        for name, block in made.items():
            U, S, V = torch.linalg.svd(weights[name].double())
            torch.testing.assert_close(
                block.double(), S[k - 1] * torch.outer(U[:, k - 1], V[k - 1]), rtol=0, atol=1e-6
            )
    U, S, V = torch.linalg.svd(weights["wide"].double())
    torch.testing.assert_close(
        found.direction(5)["wide"].double(), S[2] * torch.outer(U[:, 2], V[2]), rtol=0, atol=1e-6
    )


def test_trajectory_directions_are_those_of_the_stacked_differences() -> None:
    generator = torch.Generator().manual_seed(0)
    path = [
        {"a": torch.randn(3, 2, generator=generator), "b": torch.randn(4, generator=generator)}
        for _ in range(5)
    ]
    stacked = torch.stack(
        [torch.cat([(w[n] - path[-1][n]).flatten() for n in ("a", "b")]) for w in path[:-1]]
    ).double()
    _, S, V = torch.linalg.svd(stacked, full_matrices=False)
    directions, shares = trajectory_directions(path, 2)
    for k in range(2):
        flat = torch.cat([directions[k][n].flatten() for n in ("a", "b")]).double()
        expected = S[k] / math.sqrt(4) * V[k]
        assert min(float((flat - expected).norm()), float((flat + expected).norm())) < 1e-6
        assert shares[k] == pytest.approx(float(S[k] ** 2 / (S**2).sum()))


def test_lent_weights_come_back_bit_for_bit_on_an_exception() -> None:
    network = nn.Linear(5, 5)
    before = {name: p.clone() for name, p in network.named_parameters()}

    def break_off() -> None:
        with borrowed_weights(network) as (weights, _):
            for tensor in weights.values():
                tensor.mul_(1.7)
            raise RuntimeError("broken off")

    with pytest.raises(RuntimeError, match="broken off"):
        break_off()
    assert all(torch.equal(before[name], p) for name, p in network.named_parameters())


def run(unit: Comparison, context: Any, **options: Any) -> dict[str, Any]:
    lens, chosen = (
        Landscape(),
        LandscapeSettings(**{"directions": 3, "components": (1,), "trajectory": 0, **options}),
    )
    results = list(lens.compute(unit, context, chosen))
    assert Expected.of(results) == lens.expected(unit, chosen)
    return {getattr(r, "metric", None) or f"curve {r.curve}": r for r in results}


def test_methods_of_one_shape_share_their_directions(arena: Callable[..., Any]) -> None:
    place = arena(("full_rank", 0), ("relora", 0))
    full, relora = (
        place.point("full_rank", 0),
        place.point("relora", 0),
    )  # the same effective weights at the start
    one, other = (run(Comparison(p), place.context) for p in (full, relora))
    for name in ("sharpness_random", "direction_variance", "sharpness_pca_1"):
        assert one[name].value == pytest.approx(other[name].value, rel=1e-3, abs=1e-7)
    trained = run(Comparison(relora), place.context, space="trained")
    assert trained["sharpness_random"].value != pytest.approx(
        one["sharpness_random"].value, rel=1e-3
    )


def test_a_method_without_dense_weights_has_absent_cells_with_a_reason(
    arena: Callable[..., Any],
) -> None:
    place = arena(("cola", 0))
    point = place.point("cola", 20)
    absent = run(Comparison(point), place.context)
    assert {r.value for r in absent.values()} == {None}
    assert all("no dense equivalent" in r.note for r in absent.values())
    assert (
        run(Comparison(point), place.context, space="trained")["sharpness_random"].value is not None
    )


def test_components_beyond_the_rank(arena: Callable[..., Any]) -> None:
    place = arena(("cola", 0))
    unit = Comparison(place.point("cola", 20))
    found = run(unit, place.context, space="trained", components=(1, 5))
    assert found["sharpness_pca_1"].value is not None
    assert found["sharpness_pca_5"].value is None
    assert "component 5 does not exist: the smallest matrix has 4" in found["sharpness_pca_5"].note
    last = run(unit, place.context, space="trained", components=(4, 5), beyond_rank="last")
    assert last["sharpness_pca_5"].value is not None


def test_an_adaptive_budget_stops_at_its_precision(arena: Callable[..., Any]) -> None:
    place = arena(("full_rank", 0))
    unit = Comparison(place.point("full_rank", 20))
    loose = run(
        unit, place.context, directions="auto", relative_error=0.5, fewest=4, most=30, components=()
    )
    tight = run(
        unit,
        place.context,
        directions="auto",
        relative_error=0.25,
        fewest=4,
        most=60,
        components=(),
    )
    assert 4 <= loose["sharpness_random"].n < tight["sharpness_random"].n <= 60
    value = tight["sharpness_random"]
    assert value.n == 60 or value.standard_error <= 0.25 * abs(value.value)
    fixed = run(unit, place.context, directions=value.n, components=())
    assert fixed["sharpness_random"].value == value.value, "the first directions are the same"


def test_in_place_bfloat16_works_on_a_copy(arena: Callable[..., Any]) -> None:
    place = arena(("full_rank", 0))
    point = place.point("full_rank", 20)
    model = place.context.models[point.checkpoint_id].model
    before = {name: p.clone() for name, p in model.named_parameters()}
    options = {"space": "trained", "nodes": 0, "components": ()}
    drifted = run(Comparison(point), place.context, precision="bfloat16", in_place=True, **options)
    exact = run(Comparison(point), place.context, **options)
    assert all(torch.equal(before[name], p) for name, p in model.named_parameters())
    assert drifted["sharpness_random"].value != exact["sharpness_random"].value
