"""The permutation test of whole methods: against single fits, its size, and when it declines."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from sklearn.linear_model import LinearRegression

from lowrank.predict import PredictError, cross_validate
from lowrank.predict.inference import jackknife_pearson, permutation_test

SCHEMES = ("size", "method", "run", "seed")


def simulated(
    seed: int,
    *,
    methods: int = 6,
    method_effect: float = 0.02,
    size_effect: float = 0.0,
    slope: float = 0.0,
    features: int = 4,
) -> pd.DataFrame:
    """Return a study of ``methods`` by 3 sizes, 2 seeds and 2 steps, whose features hold parts of
    each method and size; ``slope`` is what the first of them says about the score.
    """
    generator = np.random.default_rng(seed)
    names = ["method", "size", "seed", "step"]
    frame = pd.DataFrame(
        itertools.product(range(methods), range(3), range(2), range(2)), columns=names
    )
    frame["run"] = (frame["method"] * 3 + frame["size"]) * 2 + frame["seed"]
    method, size, run = (frame[name].to_numpy() for name in ("method", "size", "run"))

    def noise(part: float, of_run: float, row: float) -> np.ndarray:
        by_method, by_run = generator.normal(size=methods), generator.normal(size=6 * methods)
        of_row = generator.normal(size=len(frame))
        return np.asarray(part * by_method[method] + of_run * by_run[run] + row * of_row)

    frame["loss"] = 5 - 0.5 * size - 0.3 * frame["step"] + noise(0.1, 0.02, 0.02)
    for i in range(features):
        frame[f"g{i}"] = noise(1.0, 0.4, 0.4) + generator.normal(size=3)[size]
    frame["score"] = -0.06 * frame["loss"] + noise(method_effect, 0.005, 0.005)
    frame["score"] += size_effect * generator.normal(size=3)[size] + slope * frame["g0"]
    return frame


def geometry_test(frame: pd.DataFrame, scheme: str, **settings: Any) -> Any:
    """Return the test of all geometry of a simulated study."""
    return permutation_test(
        frame[["loss"]],
        frame[[c for c in frame.columns if c.startswith("g")]],
        frame["score"],
        groups=frame[scheme],
        methods=frame["method"],
        cells=list(zip(frame["size"], frame["seed"], frame["step"], strict=True)),
        sizes=frame["size"],
        **settings,
    )


def by_hand(frame: pd.DataFrame, scheme: str) -> tuple[float, float]:
    """Return (statistic, p) with one cross-validation for each permutation; rows in order."""
    y, count = frame["score"].to_numpy(), frame["method"].nunique()
    dummies = pd.get_dummies(frame["size"], drop_first=True, dtype=float).to_numpy()
    common = np.hstack([frame[["loss"]].to_numpy(), dummies])
    of_method = pd.get_dummies(frame["method"], drop_first=True, dtype=float).to_numpy()
    fit = LinearRegression().fit(np.hstack([common, of_method]), y)
    explained = common @ fit.coef_[: common.shape[1]]
    residual = (y - explained).reshape(count, -1)
    geometry = [c for c in frame.columns if c.startswith("g")]
    ratios = []
    for order in itertools.permutations(range(count)):
        target = explained + residual[list(order)].ravel()
        alone, both = (
            ((target - cross_validate(frame[names], target, frame[scheme]).predicted) ** 2).sum()
            for names in (["loss"], ["loss", *geometry])
        )
        ratios.append(alone / both)
    return ratios[0], float(np.mean(np.array(ratios) >= ratios[0] * (1 - 1e-9)))


@pytest.mark.parametrize("scheme", SCHEMES)
def test_all_permutations_give_what_their_fits_give(scheme: str) -> None:
    frame = simulated(3, methods=4, slope=0.01, features=2)
    found = geometry_test(frame, scheme)
    statistic, p = by_hand(frame, scheme)
    assert found.testable
    assert found.reason is None
    assert (found.permutations, found.distinct, found.rows) == (24, 24, 48)
    assert found.statistic == pytest.approx(statistic, rel=1e-9)
    assert found.p == p


def test_features_that_a_fold_does_not_determine_are_fitted_as_everywhere() -> None:
    """Leaving a size out, eight rows train nine coefficients: the shortest fit."""
    frame = simulated(5, methods=4, features=8)
    frame = frame[(frame["seed"] == 0) & (frame["step"] == 0)].reset_index(drop=True)
    statistic, p = by_hand(frame, "size")
    found = geometry_test(frame, "size")
    assert found.statistic == pytest.approx(statistic, rel=1e-8)
    assert found.p == p


@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_test_keeps_its_size_under_effects_of_methods_and_sizes(scheme: str) -> None:
    """Exchanging single runs rejects in 28 to 88 of 100 such studies."""
    studies = (simulated(seed, size_effect=0.02 * (seed % 2)) for seed in range(200))
    rejected = np.mean([geometry_test(frame, scheme).p <= 0.05 for frame in studies])
    assert rejected < 0.12


def test_the_test_sees_geometry_that_counts() -> None:
    found = [geometry_test(simulated(seed, slope=0.05), "method").p for seed in range(20)]
    assert np.mean(np.array(found) <= 0.05) > 0.7


def test_the_order_of_rows_does_not_matter() -> None:
    frame = simulated(2, methods=4)
    mixed = frame.sample(frac=1.0, random_state=1)
    assert geometry_test(mixed, "run").p == geometry_test(frame, "run").p
    assert geometry_test(mixed, "run").statistic == pytest.approx(
        geometry_test(frame, "run").statistic
    )


def test_rows_that_are_fixed_by_definition_leave_both_models() -> None:
    frame = simulated(7, methods=6)
    fixed = frame["method"] == 0
    frame.loc[fixed, ["g0", "g1"]] = 1000.0
    found = geometry_test(frame, "method", fixed=fixed)
    assert found == geometry_test(frame[~fixed], "method")
    assert (found.methods, found.distinct) == (5, 120)


def test_three_methods_cannot_be_geometry_test() -> None:
    found = geometry_test(simulated(0, methods=3), "run")
    assert not found.testable
    assert (found.p, found.statistic, found.permutations, found.distinct) == (None, None, 0, 6)
    assert found.reason is not None
    assert "cannot be tested" in found.reason
    assert "6 distinct permutations" in found.reason


def test_methods_are_exchanged_with_methods_of_the_same_cells_alone() -> None:
    frame = simulated(0, methods=7)
    lacking = (frame["method"] >= 4) & (frame["seed"] == 1) & (frame["size"] == 2)
    found = geometry_test(frame[~lacking], "run")
    assert found.distinct == found.permutations == 24 * 6
    odd = (frame["method"] >= 3) & (frame["seed"] + frame["size"] + frame["method"] == 6)
    assert geometry_test(frame[~odd], "run").distinct == 6
    assert not geometry_test(frame[~odd], "run").testable


def test_many_permutations_are_drawn_and_their_number_bounds_p() -> None:
    frame = simulated(1, methods=9, slope=0.2)
    found = geometry_test(frame, "run", permutations=99)
    assert found.p == 0.01
    assert found.permutations == 100
    assert geometry_test(frame, "run", permutations=99, seed=1).p == pytest.approx(0.01)


def test_one_group_cannot_be_left_out() -> None:
    frame = simulated(0)
    found = geometry_test(frame[frame["seed"] == 0], "seed")
    assert found.p is None
    assert found.reason == "leaving one group out needs at least two groups"


def test_two_rows_of_one_cell_are_refused() -> None:
    frame = simulated(0)
    with pytest.raises(PredictError, match="same size, seed and step"):
        geometry_test(pd.concat([frame, frame.iloc[:1]]), "run")


def test_the_jackknife_leaves_out_one_method_at_a_time() -> None:
    generator = np.random.default_rng(0)
    y, clusters = generator.normal(size=24), np.repeat(list("abcdef"), 4)
    p = y + generator.normal(size=24)
    low, high = jackknife_pearson(y, p, clusters)
    whole = np.arctanh(np.corrcoef(y, p)[0, 1])
    parts = [np.arctanh(np.corrcoef(y[clusters != c], p[clusters != c])[0, 1]) for c in "abcdef"]
    pseudo = 6 * whole - 5 * np.array(parts)
    reach = stats.t.ppf(0.975, 5) * pseudo.std(ddof=1) / np.sqrt(6)
    assert (low, high) == pytest.approx((np.tanh(whole - reach), np.tanh(whole + reach)))


def test_the_jackknife_covers_where_methods_have_something_in_common() -> None:
    """The bootstrap over runs covers about 70 of 100 here."""
    covered = []
    for seed in range(300):
        generator = np.random.default_rng(seed)
        of_method = np.repeat(np.arange(6), 9)
        y, noise = generator.normal(size=(2, 6))[:, of_method] + generator.normal(size=(2, 54))
        low, high = jackknife_pearson(y, 0.8 * y + 0.6 * noise, of_method)
        covered.append(low <= 0.8 <= high)
    assert 0.9 < np.mean(covered) < 0.985


def test_the_jackknife_needs_four_clusters_and_a_correlation() -> None:
    y = np.arange(8.0)
    assert np.isnan(jackknife_pearson(y, y**2, [0, 0, 0, 1, 1, 1, 2, 2])).all()
    assert np.isnan(jackknife_pearson(y, np.ones(8), [0, 0, 1, 1, 2, 2, 3, 3])).all()
