"""The feature table of a study: one row per checkpoint, from stored rows only."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from lowrank import metrics
from lowrank.errors import UnknownNameError
from lowrank.hashing import spaced_hash
from lowrank.metrics.base import MetricInfo
from lowrank.predict.crossval import PredictError
from lowrank.store import Store, queries

LOSS = "log_perplexity"  # ln of the perplexity: the validation loss, nats per token
TARGET = "downstream_mean"
PUBLISHED_GEOMETRY = (
    "ccbh",
    "activation_cka_mean",
    "activation_l2_mean",
    "stable_rank_dw",
    "effective_rank_dw",
    "threshold_rank_w",
    "spectral_gap_dw",
    "stable_rank_w",
)
"""The eight features of the published predictor (arXiv:2605.13652, table 6), chosen there on all
rows.
"""
SETS: dict[str, tuple[str, ...]] = {
    "loss_only": (LOSS,),
    "geometry_only": PUBLISHED_GEOMETRY,
    "loss_plus_geometry": (LOSS, *PUBLISHED_GEOMETRY),
}
KEYS = ["checkpoint_id", "run_id", "scale", "method", "variant", "seed", "step", "kind"]
IDENTITY = ["scale", "method", "variant", "seed", "step"]


@dataclass(frozen=True)
class FeatureTable:
    """The features of checkpoints.

    ``frame`` has :data:`KEYS`, the target, ``run`` and ``own_reference`` (the row is the one that
    its activations are compared with), and one column for each of ``features`` (nan where there is
    no finite value).
    """

    frame: pd.DataFrame
    features: tuple[str, ...]
    scores: tuple[str, ...]

    def complete(self, names: Sequence[str]) -> FeatureTable:
        """Return the rows whose target and ``names`` are finite."""
        kept = np.isfinite(self.frame[[TARGET, *names]].to_numpy(dtype=float)).all(axis=1)
        return FeatureTable(self.frame[kept].reset_index(drop=True), self.features, self.scores)

    def labels(self) -> list[str]:
        """Return a readable name for each row."""
        return [label(row) for row in self.frame[IDENTITY].itertuples(index=False, name=None)]

    def content_hash(self, names: Sequence[str], *settings: int) -> str:
        """Return the SHA-256 over all that a fit of ``names`` uses: keys, features and target in
        the order of the keys, and ``settings``.
        """
        rows = (
            self.frame.sort_values(IDENTITY)[[*IDENTITY, *names, TARGET]]
            .to_numpy(dtype=object)
            .tolist()
        )
        texts = [[v if isinstance(v, str) else repr(float(v)) for v in row] for row in rows]
        return spaced_hash([list(names), settings, texts])


def label(identity: tuple[str, str, str, int, int]) -> str:
    """Return a checkpoint's label, ``method-scale-s0 step 100``."""
    return f"{run_label(identity[:-1])} step {identity[-1]}"


def run_label(identity: tuple[str, str, str, int]) -> str:
    """Return a run's label, ``method-scale-s0``."""
    scale, method, variant, seed = identity
    return "-".join(part for part in (method, variant, scale, f"s{seed}") if part)


def feature_table(
    store: Store, study: str, protocol: str = "exact", every: int = 1
) -> FeatureTable:
    """Return the features of all checkpoints of a study after step 0 that have a downstream score;
    every aggregate metric is a feature.

    ``every`` keeps each run's every second, third … of these checkpoints, counted from the last
    one. Of several protocols of one name the newest counts for each metric; of several runs of one
    method, variant, scale and seed, the newest. Raises PredictError where nothing has been
    evaluated downstream.
    """
    columns, rows = queries.get("feature_values").run(store, {"study": study, "protocol": protocol})
    values = pd.DataFrame(rows, columns=columns)
    values = values[values["kind"] != "initial"]
    values = newest(values)
    values["value"] = pd.to_numeric(values["value"]).astype(float)
    values.loc[values["value_kind"] != "finite", "value"] = np.nan
    scores = values[values["role"].isin(["score", "primary"])]
    if scores.empty:
        raise PredictError(
            f"no checkpoint of the study '{study}' has a downstream score; run: lowrank evaluate FILE"
        )
    target = primary_scores(scores)
    features = values[values["role"].isin(["loss", "feature"])].copy()
    features["name"] = features["name"].map(names_of(features["name"]))
    features = features[features["name"].notna()]
    wide = features.pivot_table(
        index="checkpoint_id", columns="name", values="value", aggfunc="mean", dropna=False
    )
    own = features.groupby("checkpoint_id")["own_reference"].max()
    keys = values[KEYS].drop_duplicates("checkpoint_id").set_index("checkpoint_id")
    frame = keys.join(target, how="inner").join(wide).join(own)
    frame["run"] = [
        run_label(row) for row in frame[IDENTITY[:-1]].itertuples(index=False, name=None)
    ]
    # Ids differ between stores, so neither order nor names come from them.
    frame = thinned(frame.reset_index().sort_values(IDENTITY), every)
    return FeatureTable(
        frame.reset_index(drop=True),
        tuple(str(c) for c in wide.columns),
        tuple(sorted(set(scores["name"]))),
    )


def names_of(found: Iterable[str]) -> dict[str, str]:
    """Return {metric: feature} for the metrics of ``found`` that are features of one checkpoint;
    see :class:`~lowrank.metrics.base.MetricInfo`.
    """
    infos = map(metrics.about, dict.fromkeys(found))
    return {info.name: info.feature for info in infos if info.role != "pair"}


def about(feature: str) -> MetricInfo:
    """Return the declaration of the metric whose aggregate ``feature`` is."""
    by_feature = {info.feature: info for info in metrics.declared().values()}
    return by_feature.get(feature) or metrics.about(feature)


def columns() -> dict[str, str]:
    """Return {metric: feature} of the wide table: the eight of the published predictor, then all
    others that a lens declares.
    """
    every = names_of(metrics.declared())
    return {**published_columns(), **every}


def published_columns() -> dict[str, str]:
    """Return {metric: feature} of the published predictor."""
    return {about(feature).name: feature for feature in PUBLISHED_GEOMETRY}


def newest(values: pd.DataFrame) -> pd.DataFrame:
    """Return, for each name, the rows of its newest protocol."""
    return values[
        values["protocol_id"] == values.groupby("name")["protocol_id"].transform("max")
    ].copy()


def primary_scores(scores: pd.DataFrame) -> pd.Series[float]:
    """Return the unweighted mean over tasks of each task's primary metric, for checkpoints that
    have every task.
    """
    parts = scores["name"].str.rsplit(":", n=1, expand=True)
    scores = scores.assign(
        task=parts[0], metric=parts[1], is_primary=(scores["role"] == "primary").astype(int)
    )
    rows = primary_rows(scores)
    by_task = rows.pivot_table(
        index="checkpoint_id", columns="task", values="value", aggfunc="mean", dropna=False
    )
    return by_task.mean(axis=1, skipna=False).rename(TARGET)


def primary_rows(scores: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of each task's primary metric: the one that their protocol names
    (``is_primary``).

    Where a protocol names none for a task, as for scores written into the store by other means, the
    primary metric is accuracy, or else the first metric by name.
    """
    named = scores.groupby(["protocol_id", "task"])["is_primary"].transform("max").astype(bool)
    rank = scores["metric"].where(scores["metric"] != "acc", "")
    first = rank == rank.groupby([scores["protocol_id"], scores["task"]]).transform("min")
    return scores[scores["is_primary"].astype(bool) | (first & ~named)]


def thinned(frame: pd.DataFrame, every: int) -> pd.DataFrame:
    """Return every ``every``-th checkpoint of each run, counted from its last."""
    if every < 1:
        raise PredictError(f"every {every}-th checkpoint cannot be kept; give 1 or more")
    from_end = frame.groupby("run_id")["step"].rank(ascending=False).astype(int) - 1
    return frame[from_end % every == 0]


def resolve_set(name: str, known: Sequence[str]) -> tuple[str, ...]:
    """Return the features of a set: one of :data:`SETS`, or known names joined by commas. Raises
    UnknownNameError.
    """
    if name in SETS:
        return SETS[name]
    parts = [part.strip() for part in name.split(",") if part.strip()]
    names = tuple(metrics.about(part).feature for part in parts)
    for part in names:
        if part not in known:
            raise UnknownNameError("feature or feature set", part, [*SETS, *known])
    return names
