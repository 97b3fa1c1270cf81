"""Predictors of a stored study: rows in, rows out, once, and one sentence for what
cannot be done.
"""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from lowrank.errors import LowrankError, UnknownNameError, UsageError
from lowrank.predict import PredictError, cross_validate, predict
from lowrank.predict.features import LOSS, SETS, TARGET, feature_table
from lowrank.store import Store
from lowrank.store.records import Checkpoint, MetricValue, Prediction, PredictorFit

FAST: dict[str, Any] = {"permutations": 9, "progress": False, "models": ("linear",)}


@pytest.fixture
def study(factory: ModuleType, sqlite_store_url: str) -> Callable[..., Store]:
    """A store with a small synthetic study, whose specification may be changed."""

    def make(**changes: Any) -> Store:
        spec = factory.Synthetic(
            **{
                "methods": ("full_rank", "galore", "relora"),
                "steps": (0, 100, 200, 300),
                "layers": 2,
                "singular_values": 2,
                **changes,
            }
        )
        store = Store.open(sqlite_store_url)
        factory.fill(store, spec)
        return store

    return make


def test_fits_and_predictions_are_rows_and_made_once(study: Callable[..., Store]) -> None:
    store = study()
    first = predict(store, "demo", **FAST)
    assert first.added == len(first.fits) == store.count(PredictorFit) > 0
    again = predict(store, "demo", **FAST)
    assert again.added == 0
    assert [f.id for f in again.fits] == [f.id for f in first.fits]
    fit = store.first(
        PredictorFit,
        feature_set="loss_plus_geometry",
        selection="fixed",
        scheme="lomo",
        model="linear",
    )
    assert fit is not None
    rows = store.find(Prediction, fit_id=fit.id)
    assert len(rows) == fit.n == 33  # eleven runs that did not fail, three checkpoints after step 0
    assert {row.fold for row in rows} == {"full_rank", "galore", "relora"}
    assert fit.pearson == pytest.approx(
        np.corrcoef([r.target for r in rows], [r.predicted for r in rows])[0, 1]
    )
    assert fit.permutation_p is not None
    assert fit.pearson_low <= fit.pearson <= fit.pearson_high


def test_a_fit_is_that_of_the_public_function(study: Callable[..., Store]) -> None:
    store = study()
    predict(
        store,
        "demo",
        feature_sets=("geometry_only",),
        schemes=("loro",),
        selections=("fixed",),
        **FAST,
    )
    rows = feature_table(store, "demo").complete(SETS["geometry_only"])
    found = cross_validate(
        rows.frame[list(SETS["geometry_only"])], rows.frame[TARGET], rows.frame["run"]
    )
    fit = store.find(PredictorFit, feature_set="geometry_only")[0]
    assert (fit.pearson, fit.r2, fit.r2_in_sample) == pytest.approx(
        (found.pearson, found.r2, found.r2_in_sample)
    )


def test_new_rows_make_new_fits_and_leave_the_old(
    study: Callable[..., Store], factory: ModuleType
) -> None:
    store = study(seeds=(0,), failed=None)
    before = predict(store, "demo", feature_sets=("loss_only",), schemes=("lomo",), **FAST)
    spec = factory.Synthetic(
        methods=("full_rank", "galore", "relora"),
        steps=(0, 100, 200, 300),
        layers=2,
        singular_values=2,
        failed=None,
    )
    factory.fill(store, spec)
    after = predict(store, "demo", feature_sets=("loss_only",), schemes=("lomo",), **FAST)
    assert after.added == 1
    assert after.fits[0].n == 2 * before.fits[0].n
    assert store.count(PredictorFit) == 2


def test_the_reference_is_reported_with_and_without(study: Callable[..., Store]) -> None:
    store = study()
    summary = predict(
        store,
        "demo",
        feature_sets=("geometry_only",),
        schemes=("loso",),
        selections=("fixed",),
        **FAST,
    )
    sizes = {fit.feature_set: fit.n for fit in summary.fits}
    assert sizes == {"geometry_only": 33, "geometry_only/without_reference": 21}


def test_the_three_selections_differ_in_what_they_see(study: Callable[..., Store]) -> None:
    store = study()
    summary = predict(store, "demo", feature_sets=("geometry_only",), schemes=("lomo",), **FAST)
    by = {fit.selection: fit for fit in summary.fits if "/" not in fit.feature_set}
    assert set(by) == {"fixed", "all_rows", "nested"}
    assert tuple(by["fixed"].features["names"]) == SETS["geometry_only"]
    assert len(by["all_rows"].features["names"]) == 8
    assert all(len(fold["features"]) == 8 for fold in by["nested"].details["per_fold"].values())
    assert LOSS not in by["nested"].features["names"]


def test_values_that_are_not_finite_are_left_out_and_counted(
    study: Callable[..., Store], factory: ModuleType
) -> None:
    store = study(lenses=frozenset({"spectra", "activations", "downstream"}), failed=None)
    last = {}
    for checkpoint in store.find(Checkpoint):
        last[checkpoint.run_id, checkpoint.step] = checkpoint
    protocol = store.find(MetricValue, metric="stable_rank_w")[0].protocol_id
    for (_, step), checkpoint in last.items():
        value = (
            float("nan")
            if checkpoint.run_id == 1 and step == 100
            else 1.0 + checkpoint.run_id + step / 100
        )
        if step:
            store.add(
                MetricValue(
                    checkpoint_id=checkpoint.id or 0,
                    protocol_id=protocol,
                    metric="ccbh",
                    value=value,
                )
            )
    summary = predict(store, "demo", schemes=("lomo",), selections=("fixed",), **FAST)
    assert {fit.n_excluded for fit in summary.fits} == {1}
    (note,) = (n for n in summary.notes if "left out" in n)
    assert "1 of 36 checkpoints" in note
    assert "ccbh (1)" in note
    assert "full_rank-nano-s0 step 100" in note
    assert "lowrank measure" in note


def test_a_missing_lens_is_reported_and_the_loss_still_fitted(
    study: Callable[..., Store],
) -> None:
    store = study(lenses=frozenset({"spectra", "downstream"}))
    summary = predict(store, "demo", **FAST)
    assert {fit.feature_set for fit in summary.fits} == {"loss_only"}
    assert any("ccbh" in note and "lowrank measure FILE" in note for note in summary.notes)


def test_one_seed_is_reported_or_refused(study: Callable[..., Store]) -> None:
    store = study(seeds=(0,), failed=None)
    summary = predict(store, "demo", feature_sets=("loss_only",), **FAST)
    assert {fit.scheme for fit in summary.fits} == {"loso", "lomo", "loro"}
    assert any("at least two seeds; the rows have only '0'" in note for note in summary.notes)
    with pytest.raises(PredictError, match="leave-one-seed-out"):
        predict(store, "demo", schemes=("loseo",), **FAST)


@pytest.mark.parametrize(
    ("arguments", "error", "sentence"),
    [
        ({"feature_sets": ("log_perplexity,ccbhh",)}, UnknownNameError, "did you mean 'ccbh'"),
        ({"schemes": ("lomoo",)}, UnknownNameError, "unknown scheme 'lomoo'"),
        ({"selections": ("best",)}, UnknownNameError, "unknown selection"),
        (
            {"protocol": "published"},
            PredictError,
            "no checkpoint has a finite value|cannot be fitted|no checkpoint has",
        ),
        (
            {"feature_sets": ("log_perplexity,constant",)},
            PredictError,
            "'constant' has the same value in all",
        ),
    ],
)
def test_bad_arguments_are_one_sentence(
    study: Callable[..., Store], arguments: dict[str, Any], error: type[LowrankError], sentence: str
) -> None:
    store = study()
    protocol = store.find(MetricValue, metric="stable_rank_w")[0].protocol_id
    store.add_all(
        MetricValue(checkpoint_id=c.id or 0, protocol_id=protocol, metric="constant", value=2.0)
        for c in store.find(Checkpoint)
    )
    if "protocol" in arguments:
        arguments = {**arguments, "feature_sets": ("geometry_only",)}
    with pytest.raises(error, match=sentence):
        predict(store, "demo", **{**FAST, **arguments})
    assert store.count(PredictorFit) == 0


def test_nothing_evaluated_names_the_command(study: Callable[..., Store]) -> None:
    with pytest.raises(PredictError, match="run: lowrank evaluate FILE"):
        predict(study(lenses=frozenset({"spectra"})), "demo", **FAST)


def test_an_unknown_study_is_refused(sqlite_store_url: str) -> None:
    with Store.open(sqlite_store_url) as store, pytest.raises(UsageError, match="no study 'demo'"):
        predict(store, "demo", **FAST)


def test_more_permutations_are_another_fit(study: Callable[..., Store]) -> None:
    store = study()
    given: dict[str, Any] = {
        "feature_sets": ("loss_plus_geometry",),
        "schemes": ("lomo",),
        "selections": ("fixed",),
    }
    first = predict(store, "demo", **given, **FAST)
    second = predict(store, "demo", **given, **{**FAST, "permutations": 19})
    assert second.added == 2  # with and without the reference
    assert {fit.details["permutations"] for fit in first.fits} == {9}
    assert {fit.details["permutations"] for fit in second.fits} == {19}


def test_activations_go_by_their_mean_and_by_their_metric(study: Callable[..., Store]) -> None:
    store = study()
    given: dict[str, Any] = {"schemes": ("lomo",), "selections": ("fixed",)}
    one = predict(store, "demo", feature_sets=("activation_cka_mean",), **given, **FAST).fits
    other = predict(store, "demo", feature_sets=("activation_cka",), **given, **FAST).fits
    assert [fit.features for fit in one] == [fit.features for fit in other]
    assert one[0].features["names"] == ["activation_cka_mean"]
    assert [fit.pearson for fit in one] == [fit.pearson for fit in other]


def test_a_feature_of_some_rows_is_no_candidate_and_reported(study: Callable[..., Store]) -> None:
    store = study()
    protocol = store.find(MetricValue, metric="stable_rank_w")[0].protocol_id
    some = store.find(Checkpoint, step=300)[0]
    store.add(
        MetricValue(
            checkpoint_id=some.id or 0, protocol_id=protocol, metric="hessian_trace", value=2.0
        )
    )
    summary = predict(store, "demo", feature_sets=("geometry_only",), schemes=("lomo",), **FAST)
    (note,) = (n for n in summary.notes if "no candidates for selection" in n)
    assert "hessian_trace (32 of 33)" in note
    assert all("hessian_trace" not in fit.features["names"] for fit in summary.fits)


def test_a_loss_on_other_text_is_no_geometry(study: Callable[..., Store]) -> None:
    store = study()
    protocol = store.find(MetricValue, metric="stable_rank_w")[0].protocol_id
    store.add_all(
        MetricValue(
            checkpoint_id=c.id or 0,
            protocol_id=protocol,
            metric="held_out_loss",
            value=c.validation_loss,
        )
        for c in store.find(Checkpoint)
    )
    fits = predict(store, "demo", feature_sets=("geometry_only",), schemes=("lomo",), **FAST).fits
    assert {fit.selection for fit in fits} == {"fixed", "all_rows", "nested"}
    assert all("held_out_loss" not in fit.features["names"] for fit in fits)
    (asked,) = predict(
        store,
        "demo",
        feature_sets=("held_out_loss",),
        schemes=("lomo",),
        selections=("fixed",),
        **FAST,
    ).fits
    assert asked.features["names"] == ["held_out_loss"]


def test_every_second_checkpoint_counts_from_the_last(study: Callable[..., Store]) -> None:
    table = feature_table(study(), "demo", every=2)
    assert set(table.frame["step"]) == {100, 300}
