"""Cross-validation, selection and inference against scikit-learn, brute force and the published
numbers.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from sklearn.linear_model import LinearRegression, Ridge
from sklearn.model_selection import GroupKFold, LeaveOneGroupOut, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from lowrank.errors import UnknownNameError
from lowrank.predict import PredictError, cross_validate
from lowrank.predict.crossval import (
    INNER_FOLDS,
    PENALTIES,
    GroupedRidge,
    Selection,
    ranking_accuracy,
)
from lowrank.predict.inference import bootstrap_pearson, exchange, out_of_fold_r2, permutation_p
from lowrank.predict.published import published_check, published_rows
from lowrank.predict.selection import consistent, correlations, nested
from lowrank.store import Store


def problem(
    rows: int = 48, columns: int = 3, groups: int = 4, seed: int = 0
) -> tuple[pd.DataFrame, np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    X = pd.DataFrame(
        generator.normal(size=(rows, columns)), columns=[f"f{i}" for i in range(columns)]
    )
    y = X.to_numpy() @ np.arange(1, columns + 1) + generator.normal(size=rows)
    return X, y, np.arange(rows) % groups


def test_published_values_alone_give_the_published_correlations(sqlite_store_url: str) -> None:
    with Store.open(sqlite_store_url) as store:
        rows, found = published_rows(store), published_check(store)
    assert len(rows) == 18
    assert round(found["loso"].pearson, 3) == 0.919
    assert round(found["lomo"].pearson, 3) == 0.921
    assert round(found["loso"].r2_in_sample, 3) == round(found["lomo"].r2_in_sample, 3) == 0.889
    assert round(found["loso"].r2, 3) == 0.829
    assert round(found["lomo"].r2, 3) == 0.845


def test_linear_predictions_are_scikit_learns() -> None:
    X, y, groups = problem()
    found = cross_validate(X, y, groups)
    pipeline = make_pipeline(StandardScaler(), LinearRegression())
    np.testing.assert_allclose(
        found.predicted,
        cross_val_predict(pipeline, X, y, groups=groups, cv=LeaveOneGroupOut()),
        rtol=1e-12,
    )
    assert found.r2_in_sample == pytest.approx(pipeline.fit(X, y).score(X, y))
    assert found.pearson == pytest.approx(stats.pearsonr(y, found.predicted).statistic)
    assert found.spearman == pytest.approx(stats.spearmanr(y, found.predicted).statistic)
    assert [found.per_fold[str(g)]["rows"] for g in range(4)] == [12] * 4


@pytest.mark.parametrize(
    "select", [None, nested(np.arange(48) // 16, keep=1)], ids=["fixed", "nested"]
)
@pytest.mark.parametrize("model", ["linear", "ridge"])
def test_a_group_is_predicted_without_its_targets(model: str, select: Selection | None) -> None:
    X, y, groups = problem()
    changed = np.where(
        groups == 2, 1000.0 * X["f0"], y
    )  # in this group alone another feature would be chosen
    before, after = (
        cross_validate(X, target, groups, model, select=select) for target in (y, changed)
    )
    np.testing.assert_array_equal(before.predicted[groups == 2], after.predicted[groups == 2])
    assert not np.allclose(before.predicted[groups != 2], after.predicted[groups != 2])


@pytest.mark.parametrize("model", ["linear", "ridge"])
def test_standardisation_ignores_the_left_out_group(model: str) -> None:
    X, y, groups = problem()
    changed = X.copy()
    changed.loc[np.flatnonzero(groups == 2)[0]] *= 1e6
    before, after = (cross_validate(table, y, groups, model).predicted for table in (X, changed))
    np.testing.assert_array_equal(before[groups == 2][1:], after[groups == 2][1:])


def test_the_ridge_chooses_the_penalty_of_a_grid_search() -> None:
    X, y, groups = problem(rows=40, columns=12, groups=8, seed=3)
    Z = StandardScaler().fit_transform(X)
    own = GroupedRidge().fit(Z, y, groups)
    folds = GroupKFold(INNER_FOLDS)
    sums = dict.fromkeys(PENALTIES, 0.0)
    for train, test in folds.split(Z, y, groups):
        for a in PENALTIES:
            sums[a] += float(
                ((Ridge(a).fit(Z[train], y[train]).predict(Z[test]) - y[test]) ** 2).sum()
            )
    assert own.alpha_ == min(sums, key=sums.__getitem__)
    np.testing.assert_allclose(own.predict(Z), Ridge(own.alpha_).fit(Z, y).predict(Z))


def test_arrays_of_one_dimension_are_one_feature() -> None:
    X, y, groups = problem(columns=1)
    np.testing.assert_array_equal(
        cross_validate(X["f0"].to_numpy(), y, groups).predicted,
        cross_validate(X, y, groups).predicted,
    )


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"groups": np.zeros(48)}, "at least two groups; there is only 0.0"),
        ({"f0": np.ones(48)}, "'f0' has the same value in all 48 rows"),
        ({"f1": np.r_[np.nan, np.arange(47.0)]}, "'f1' is not finite in 1 of 48 rows"),
        ({"y": np.r_[np.inf, np.arange(47.0)]}, "the target is not finite in 1 of 48 rows"),
        ({"groups": np.arange(47)}, "must have the same rows"),
    ],
)
def test_bad_input_is_one_sentence(change: dict[str, np.ndarray], sentence: str) -> None:
    X, y, groups = problem()
    for name in ("f0", "f1"):
        X[name] = change.get(name, X[name])
    with pytest.raises(PredictError, match=sentence):
        cross_validate(X, change.get("y", y), change.get("groups", groups))


def test_unknown_models_and_empty_features() -> None:
    X, y, groups = problem()
    with pytest.raises(UnknownNameError, match="did you mean 'linear'"):
        cross_validate(X, y, groups, "linaer")
    with pytest.raises(PredictError, match="no feature"):
        cross_validate(X[[]], y, groups)


def test_ranking_accuracy_counts_pairs() -> None:
    y, p = np.array([1.0, 2.0, 2.0, 3.0]), np.array([0.5, 0.5, 0.7, 0.6])
    pairs = [(i, j) for i in range(4) for j in range(i) if y[i] != y[j]]
    expected = np.mean(
        [0.5 if p[i] == p[j] else float((y[i] > y[j]) == (p[i] > p[j])) for i, j in pairs]
    )
    assert ranking_accuracy(y, p) == pytest.approx(expected)
    assert np.isnan(ranking_accuracy(np.ones(3), np.arange(3.0)))


def test_selection_requires_one_sign_at_every_size() -> None:
    generator = np.random.default_rng(1)
    y, sizes = generator.normal(size=90), np.repeat(["60m", "130m", "350m"], 30)
    flipped = np.where(sizes == "350m", -y, y)
    X = pd.DataFrame(
        {
            "flips": flipped,
            "weak": y + generator.normal(0, 3, 90),
            "strong": -y + generator.normal(0, 0.3, 90),
        }
    )
    table = correlations(X, y, sizes)
    assert list(table["consistent"]) == [False, True, True]
    assert table.loc["weak", "60m"] == pytest.approx(
        stats.pearsonr(X["weak"][:30], y[:30]).statistic
    )
    assert consistent(X, y, sizes) == ["strong", "weak"]
    assert consistent(X[["flips"]], y, sizes) == ["flips"]


def test_nested_selection_does_not_reward_noise() -> None:
    """Features chosen on all rows predict a random target; chosen inside each fold they cannot."""
    generator = np.random.default_rng(5)
    y, groups, sizes = (
        generator.normal(size=60),
        np.repeat(np.arange(6), 10),
        np.tile(["a", "b"], 30),
    )
    noise = pd.DataFrame(generator.normal(size=(60, 400)), columns=[f"n{i}" for i in range(400)])
    chosen = consistent(noise, y, sizes)
    leaked = cross_validate(noise[chosen], y, groups)
    honest = cross_validate(noise, y, groups, select=nested(sizes))
    assert leaked.pearson > 0.45
    assert honest.pearson < 0.2
    assert all(len(fold["features"]) == 8 for fold in honest.per_fold.values())


def test_the_bootstrap_draws_complete_runs() -> None:
    generator = np.random.default_rng(2)
    runs = np.repeat(np.arange(8), 6)
    y = generator.normal(size=8)[runs] + 0.1 * generator.normal(size=48)
    p = y + generator.normal(size=8)[runs]
    low, high = bootstrap_pearson(y, p, runs, resamples=300, seed=4)
    drawn = np.random.default_rng(4).integers(8, size=(300, 8))
    brute = [
        np.corrcoef(
            np.concatenate([y[runs == r] for r in row]), np.concatenate([p[runs == r] for r in row])
        )[0, 1]
        for row in drawn
    ]
    assert (low, high) == pytest.approx(tuple(np.percentile(brute, [2.5, 97.5])))
    alone = bootstrap_pearson(y, p, np.arange(48), resamples=300, seed=4)
    assert high - low > 1.5 * (alone[1] - alone[0])
    assert np.isnan(bootstrap_pearson(y[:12], p[:12], runs[:12])).all()


def test_many_targets_at_once_give_the_figures_of_one_by_one() -> None:
    X, y, groups = problem(columns=4)
    X["twice"] = 2 * X["f0"]  # singular: both take the least-norm solution
    targets = np.stack([y, y[::-1]], axis=1)
    expected = [cross_validate(X, target, groups).r2 for target in targets.T]
    np.testing.assert_allclose(
        out_of_fold_r2(X.to_numpy(), targets, groups.astype(object)), expected, rtol=1e-8
    )


def hand_r2(X: np.ndarray, y: np.ndarray, groups: np.ndarray) -> float:
    """Out-of-fold R² of least squares by normal equations, written for this test alone."""
    predicted = np.empty(len(y))
    for group in np.unique(groups):
        left = groups == group
        A = np.column_stack([np.ones((~left).sum()), X[~left]])
        predicted[left] = np.column_stack([np.ones(left.sum()), X[left]]) @ np.linalg.solve(
            A.T @ A, A.T @ y[~left]
        )
    return float(1 - ((y - predicted) ** 2).sum() / ((y - y.mean()) ** 2).sum())


def test_the_p_value_is_that_of_exchanging_residuals_by_hand() -> None:
    generator = np.random.default_rng(3)
    runs, groups = np.repeat(np.arange(6), 4).astype(object), np.repeat(np.arange(3), 8)
    loss, geometry = generator.normal(size=(24, 1)), generator.normal(size=(24, 2))
    y = loss[:, 0] + 0.5 * geometry[:, 0] + generator.normal(size=24)
    line = np.polynomial.Polynomial.fit(loss[:, 0], y, 1)(loss[:, 0])
    gains, draws = [], np.random.default_rng(8)
    for k in range(40):
        order = np.arange(6) if k == 0 else draws.permutation(6)
        target = line + (y - line).reshape(6, 4)[order].ravel()
        gains.append(
            hand_r2(np.hstack([loss, geometry]), target, groups) - hand_r2(loss, target, groups)
        )
    expected = (1 + sum(g >= gains[0] for g in gains[1:])) / 40
    frames = pd.DataFrame(loss), pd.DataFrame(geometry)
    assert permutation_p(*frames, y, groups, runs, permutations=39, seed=8) == pytest.approx(
        expected
    )


def test_the_test_keeps_its_level_where_geometry_only_identifies_the_group() -> None:
    """Features that differ between groups and say nothing about the target: small p values are as
    rare as they should be.
    """
    found = []
    for seed in range(40):
        generator = np.random.default_rng(seed)
        runs = np.repeat(np.arange(12), 5)
        loss = generator.normal(size=60)
        geometry = pd.DataFrame(
            {
                "g": 3.0 * (runs % 3)
                + generator.normal(size=12)[runs]
                + 0.3 * generator.normal(size=60)
            }
        )
        y = loss + generator.normal(size=12)[runs] + 0.3 * generator.normal(size=60)
        found.append(
            permutation_p(
                pd.DataFrame({"loss": loss}),
                geometry,
                y,
                runs % 3,
                runs,
                permutations=39,
                seed=seed,
            )
        )
    assert 0.35 < np.mean(found) < 0.65
    assert np.mean(np.array(found) <= 0.1) <= 0.2


def test_runs_of_different_length_are_not_exchanged() -> None:
    runs = np.array(["a"] * 3 + ["b"] * 2 + ["c"] * 3, dtype=object)
    for seed in range(8):
        order = exchange(runs, np.random.default_rng(seed))
        assert sorted(order) == list(range(8))
        assert list(order[3:5]) == [3, 4]
        assert list(order[:3]) in ([0, 1, 2], [5, 6, 7])


def test_two_rows_have_no_correlation() -> None:
    X, y, _ = problem(rows=6, columns=1)
    found = cross_validate(X, y, np.array([0, 0, 1, 1, 1, 1]))
    assert np.isnan(found.per_fold["0"]["pearson"])
    assert found.per_fold["1"]["pearson"] == pytest.approx(
        np.corrcoef(y[2:], found.predicted[2:])[0, 1]
    )


@pytest.mark.parametrize(("weight", "adds"), [(1.0, True), (0.0, False)])
def test_the_permutation_test_sees_what_geometry_adds(weight: float, adds: bool) -> None:
    generator = np.random.default_rng(7)
    runs = np.repeat(np.arange(12), 5).astype(object)
    loss, extra = generator.normal(size=60), generator.normal(size=60)
    y = loss + weight * extra + 0.3 * generator.normal(size=60)
    geometry = pd.DataFrame({"g": 0.8 * loss + extra})
    p = permutation_p(
        pd.DataFrame({"loss": loss}), geometry, y, runs.astype(int) % 3, runs, permutations=99
    )
    assert (p == 0.01) if adds else (p > 0.05)
