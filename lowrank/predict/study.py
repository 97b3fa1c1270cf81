"""All fits of a study: feature sets, selections, schemes and models, stored with their out-of-fold
predictions.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from lowrank.errors import UnknownNameError, UsageError
from lowrank.predict.crossval import (
    MODELS,
    CrossValidation,
    PredictError,
    Selection,
    cross_validate,
)
from lowrank.predict.features import (
    LOSS,
    SETS,
    TARGET,
    FeatureTable,
    about,
    feature_table,
    resolve_set,
)
from lowrank.predict.inference import PERMUTATIONS, bootstrap_pearson, permutation_p
from lowrank.predict.selection import KEPT, consistent, nested
from lowrank.progress import progress_bar
from lowrank.store import Store
from lowrank.store.records import Prediction, PredictorFit, Record, Study

SCHEMES = {
    "loso": ("size", "scale"),
    "lomo": ("method", "method"),
    "loro": ("run", "run"),
    "loseo": ("seed", "seed"),
}
"""Scheme → (what is left out, in words; column that names it)."""
SELECTIONS = {
    "fixed": "the features of the set",
    "all_rows": "chosen on all rows before cross-validation, as published",
    "nested": "chosen inside each training fold",
}
REVISION = 2
"""Revision of what a fit computes from its rows; 2: the permutation test exchanges the residuals of
the target on the loss.
"""
WITHOUT_REFERENCE = "/without_reference"
"""Suffix of a feature set without the rows that activations are compared with (CKA 1, L2 0 by
definition).
"""


FIGURES = {
    "scheme": "scheme",
    "feature_set": "features",
    "selection": "selection",
    "model": "model",
    "n": "rows",
    "n_excluded": "left out",
    "pearson": "Pearson",
    "pearson_low": "low",
    "pearson_high": "high",
    "spearman": "Spearman",
    "r2": "R²",
    "r2_in_sample": "R² in sample",
    "ranking_accuracy": "ranking",
    "permutation_p": "p",
}
"""The reported figures of a fit, in order: column → heading."""


@dataclass(frozen=True)
class Spec:
    """One fit to make."""

    feature_set: str
    selection: str
    scheme: str
    model: str
    without_reference: bool = False

    @property
    def stored_set(self) -> str:
        """The feature set as the fit's row names it."""
        return self.feature_set + (WITHOUT_REFERENCE if self.without_reference else "")


@dataclass
class PredictSummary:
    """The outcome of :func:`predict`: all fits of the present rows, how many of them are new, and
    notes on what is not used.
    """

    fits: list[PredictorFit] = field(default_factory=list)
    added: int = 0
    notes: list[str] = field(default_factory=list)


def predict(
    store: Store,
    study_name: str,
    *,
    feature_sets: Sequence[str] = tuple(SETS),
    schemes: Sequence[str] | None = None,
    models: Sequence[str] = MODELS,
    selections: Sequence[str] = tuple(SELECTIONS),
    protocol: str | None = None,
    every: int = 1,
    permutations: int = PERMUTATIONS,
    progress: bool = True,
) -> PredictSummary:
    """Fit and cross-validate predictors of the mean downstream score of a study's checkpoints, and
    store them.

    All fits use the same rows: checkpoints after step 0 with a target and every feature of the
    sets, so that sets can be compared; what is left out is counted in each fit and reported in the
    notes. ``schemes`` None means those that the study has groups for; ``protocol`` None, the
    study's preset. A fit of rows that have not changed is not repeated.

    Raises PredictError where there are no downstream scores, no complete row, or too few groups for
    a scheme asked for.
    """
    study = store.first(Study, name=study_name)
    if study is None or study.id is None:
        raise UsageError(
            f"the store {store.url_masked} has no study '{study_name}'; run it first: lowrank study run FILE"
        )
    table = feature_table(
        store, study_name, protocol or str(study.config.get("preset", "exact")), every
    )
    summary = PredictSummary()
    sets, table, excluded = prepared(table, feature_sets, summary.notes)
    specs = [
        s
        for s in planned(
            sets, usable_schemes(table, schemes, summary.notes), models, selections, table
        )
        if s.feature_set in sets
    ]
    for spec in progress_bar(specs, desc="predict", unit="fit", disable=None if progress else True):
        add_fit(
            store, study.id, spec, sets[spec.feature_set], table, excluded, permutations, summary
        )
    return summary


def prepared(
    table: FeatureTable, feature_sets: Sequence[str], notes: list[str]
) -> tuple[dict[str, tuple[str, ...]], FeatureTable, int]:
    """Return (sets that can be fitted, their common complete rows, number of rows left out); add a
    note on everything that is not used.
    """
    sets = {}
    for name in feature_sets:
        wanted = resolve_set(name, table.features)
        missing = [f for f in wanted if f not in table.features or table.frame[f].isna().all()]
        if missing and name not in SETS:
            raise PredictError(
                f"no checkpoint has a finite value of '{missing[0]}'; run: lowrank measure FILE"
            )
        if missing:
            notes.append(
                f"{name} cannot be fitted: no checkpoint has {', '.join(missing)}; run: lowrank measure FILE"
            )
        else:
            sets[name] = wanted
    union = list(dict.fromkeys(f for features in sets.values() for f in features))
    rows = table.complete(union)
    excluded = len(table.frame) - len(rows.frame)
    if not sets or rows.frame.empty:
        raise PredictError(
            f"no checkpoint has a downstream score and all of {', '.join(union) or 'the features'}; run: lowrank measure FILE"
        )
    if excluded:
        notes.append(lacking(table, union, excluded))
    partial = {
        f: int(rows.frame[f].isna().sum()) for f in rows.features if rows.frame[f].isna().any()
    }
    if partial and any(name in SETS and sets[name] != (LOSS,) for name in sets):
        listed = ", ".join(f"{f} ({n} of {len(rows.frame)})" for f, n in partial.items())
        notes.append(
            f"no candidates for selection, since some rows lack a finite value: {listed}; "
            "to include them, let their lenses measure every checkpoint in the study file and run: lowrank measure FILE"
        )
    for name in list(sets):
        constant = [f for f in sets[name] if rows.frame[f].nunique() == 1]
        if constant and name not in SETS:
            raise PredictError(
                f"the feature '{constant[0]}' has the same value in all {len(rows.frame)} rows and predicts nothing; leave it out"
            )
        if constant:
            notes.append(
                f"{name} is fitted without {', '.join(constant)}: the same value in all rows"
            )
            sets[name] = tuple(f for f in sets[name] if f not in constant)
        if not sets[name]:
            del sets[name]
    return sets, rows, excluded


def lacking(table: FeatureTable, names: Sequence[str], excluded: int) -> str:
    """Return a sentence that states which checkpoints lack which values."""
    broken = ~np.isfinite(table.frame[[TARGET, *names]].to_numpy(dtype=float))
    by_name = {
        name: int(broken[:, i].sum())
        for i, name in enumerate([TARGET, *names])
        if broken[:, i].any()
    }
    rows = [label for label, bad in zip(table.labels(), broken.any(axis=1), strict=True) if bad]
    shown = ", ".join(rows[:5]) + (f" and {len(rows) - 5} more" if len(rows) > 5 else "")
    what = ", ".join(f"{name} ({n})" for name, n in by_name.items())
    left_out = f"{excluded} of {len(table.frame)} checkpoints left out because they lack a finite {what}: {shown}"
    return f"{left_out}; what was never measured: lowrank measure FILE"


def usable_schemes(table: FeatureTable, asked: Sequence[str] | None, notes: list[str]) -> list[str]:
    """Return the schemes asked for, or those for which the rows have at least two groups."""
    usable = []
    for scheme in asked or SCHEMES:
        if scheme not in SCHEMES:
            raise UnknownNameError("scheme", scheme, SCHEMES)
        what, column = SCHEMES[scheme]
        found = sorted({str(v) for v in table.frame[column]})
        if len(found) >= 2:
            usable.append(scheme)
            continue
        sentence = f"leave-one-{what}-out ({scheme}) needs at least two {what}s; the rows have only '{found[0]}'"
        if asked:
            raise PredictError(sentence)
        notes.append(sentence)
    return usable


def planned(
    sets: dict[str, tuple[str, ...]],
    schemes: Sequence[str],
    models: Sequence[str],
    selections: Sequence[str],
    table: FeatureTable,
) -> list[Spec]:
    """Return every sensible combination: a set without geometry has nothing to select, and a single
    feature no penalty to tune.
    """
    for name in selections:
        if name not in SELECTIONS:
            raise UnknownNameError("selection", name, SELECTIONS)
    has_reference = (
        bool(table.frame["own_reference"].fillna(0).any())
        and not table.frame["own_reference"].fillna(0).all()
    )
    specs = []
    for scheme in schemes:
        for feature_set, features in sets.items():
            geometry = any(f != LOSS for f in features)
            chosen = [s for s in selections if s == "fixed" or (geometry and feature_set in SETS)]
            fits = [(s, m) for s in chosen for m in models if len(features) > 1 or m == models[0]]
            specs += [Spec(feature_set, s, scheme, m) for s, m in fits]
            if (
                has_reference
                and "fixed" in selections
                and any(about(f).against_baseline for f in features)
            ):
                specs.append(Spec(feature_set, "fixed", scheme, models[0], without_reference=True))
    return specs


def add_fit(
    store: Store,
    study_id: int,
    spec: Spec,
    features: tuple[str, ...],
    table: FeatureTable,
    excluded: int,
    permutations: int,
    summary: PredictSummary,
) -> None:
    """Make one fit, unless the store has it for the same rows."""
    rows = table
    if spec.without_reference:
        kept = table.frame["own_reference"].fillna(0) == 0
        rows = FeatureTable(table.frame[kept].reset_index(drop=True), table.features, table.scores)
    candidates = features if spec.selection == "fixed" else selectable(rows, features)
    key = {
        "study_id": study_id,
        "feature_set": spec.stored_set,
        "selection": spec.selection,
        "scheme": spec.scheme,
        "model": spec.model,
        "target": TARGET,
        "input_hash": rows.content_hash(
            candidates, REVISION, tested(spec, candidates, permutations)
        ),
    }
    known = store.first(PredictorFit, **key)
    if known is not None:
        summary.fits.append(known)
        return
    try:
        record, predictions = fitted(spec, key, candidates, rows, excluded, permutations)
    except PredictError as error:
        summary.notes.append(
            f"{spec.stored_set}, {spec.selection}, {spec.scheme}, {spec.model}: {error}"
        )
        return
    with store.transaction():
        stored = store.add(record)
        store.add_all(predictions_of(stored, predictions))
    summary.fits.append(stored)
    summary.added += 1


def tested(spec: Spec, candidates: tuple[str, ...], permutations: int) -> int:
    """Return how many permutations test what a fit's geometry adds to the loss; 0 where there is
    nothing to test.
    """
    wanted = (
        LOSS in candidates
        and len(candidates) > 1
        and spec.selection == "fixed"
        and spec.model == "linear"
    )
    return permutations if wanted else 0


def selectable(rows: FeatureTable, features: tuple[str, ...]) -> tuple[str, ...]:
    """Return the candidates of a selection: geometry that is finite in all rows and not constant,
    and the loss where the set has it.
    """
    frame = rows.frame
    full = [
        f
        for f in rows.features
        if np.isfinite(frame[f].to_numpy(dtype=float)).all() and frame[f].nunique() > 1
    ]
    return tuple(
        f for f in full if (LOSS in features if f == LOSS else about(f).role == "geometry")
    )


def fitted(
    spec: Spec,
    key: dict[str, Any],
    candidates: tuple[str, ...],
    rows: FeatureTable,
    excluded: int,
    permutations: int,
) -> tuple[PredictorFit, tuple[FeatureTable, CrossValidation]]:
    """Return the record of a fit, and the rows and cross-validation that its predictions
    come from.
    """
    frame, column = rows.frame, SCHEMES[spec.scheme][1]
    fixed = tuple(f for f in candidates if f == LOSS)
    names: tuple[str, ...] = candidates
    select: Selection | None = None
    if spec.selection == "all_rows":
        rivals = [f for f in candidates if f not in fixed]
        names = (
            *fixed,
            *consistent(frame[rivals], frame[TARGET].to_numpy(dtype=float), frame["scale"]),
        )
    elif spec.selection == "nested":
        select = nested(frame["scale"], fixed)
    X, y, groups, runs = (
        frame[list(names)],
        frame[TARGET].to_numpy(dtype=float),
        frame[column].astype(str),
        frame["run"],
    )
    result = cross_validate(X, y, groups, spec.model, select=select, inner_groups=runs)
    low, high = bootstrap_pearson(y, result.predicted, runs)
    draws, added = tested(spec, candidates, permutations), [f for f in names if f not in fixed]
    p = (
        permutation_p(X[list(fixed)], X[added], y, groups, runs, permutations=draws)
        if draws
        else None
    )
    details = {
        **_per_fold(result),
        "clusters": int(runs.nunique()),
        "interval": "percentile bootstrap over runs, 95%",
        "permutations": draws,
        "kept_features": KEPT if select else len(names),
        "without_reference": spec.without_reference,
    }
    record = PredictorFit(
        **key,
        features={"names": list(names)},
        n=len(frame),
        n_excluded=excluded,
        pearson=plain(result.pearson),
        pearson_low=plain(low),
        pearson_high=plain(high),
        spearman=plain(result.spearman),
        r2=plain(result.r2),
        r2_in_sample=plain(result.r2_in_sample),
        ranking_accuracy=plain(result.ranking_accuracy),
        permutation_p=p,
        details=details,
    )
    return record, (rows, result)


def predictions_of(fit: PredictorFit, made: tuple[FeatureTable, CrossValidation]) -> list[Record]:
    """Return one record per checkpoint."""
    rows, result = made
    assert fit.id is not None
    columns = zip(
        rows.labels(),
        rows.frame["checkpoint_id"],
        result.fold,
        rows.frame[TARGET],
        result.predicted,
        strict=True,
    )
    return [
        Prediction(
            fit_id=fit.id,
            row_label=label,
            checkpoint_id=int(checkpoint),
            fold=str(fold),
            target=float(target),
            predicted=float(predicted),
        )
        for label, checkpoint, fold, target, predicted in columns
    ]


def plain(value: Any) -> Any:
    """Return a value that JSON and the store can hold: None for one that is not finite."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _per_fold(result: CrossValidation) -> dict[str, Any]:
    """Return the figures of each fold as JSON values."""
    folds = result.per_fold.items()
    return {"per_fold": {fold: {k: plain(v) for k, v in values.items()} for fold, values in folds}}
