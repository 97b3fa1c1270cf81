"""The predictor on the published values alone, which checks its arithmetic without training."""

from __future__ import annotations

import numpy as np
import pandas as pd

from lowrank.predict.crossval import CrossValidation, PredictError, cross_validate
from lowrank.store import Store
from lowrank.store.records import PublishedValue

PERPLEXITY, SCORE, CHANCE = "validation_perplexity", "zero_shot_percent", "random"


def published_rows(store: Store) -> pd.DataFrame:
    """Return one row for each published model: scale, method, log_perplexity, downstream_mean
    (percent, unweighted over tasks).
    """
    values = store.find(PublishedValue, quantity=[PERPLEXITY, SCORE])
    frame = pd.DataFrame(
        [(v.scale, v.method, v.quantity, v.item, v.value) for v in values],
        columns=["scale", "method", "quantity", "item", "value"],
    )
    losses = frame[frame["quantity"] == PERPLEXITY].groupby(["scale", "method"])["value"].mean()
    scores = (
        frame[(frame["quantity"] == SCORE) & (frame["method"] != CHANCE)]
        .groupby(["scale", "method"])["value"]
        .mean()
    )
    joined = (
        pd.DataFrame({"log_perplexity": np.log(losses), "downstream_mean": scores})
        .dropna()
        .reset_index()
    )
    if joined.empty:
        raise PredictError(
            "the store has no published perplexities and scores; load them with: lowrank db upgrade"
        )
    return joined


def published_check(store: Store) -> dict[str, CrossValidation]:
    """Return the cross-validations of the loss alone on the published final checkpoints, leaving
    out one size (``loso``) and one method (``lomo``).
    """
    rows = published_rows(store)
    return {
        scheme: cross_validate(rows[["log_perplexity"]], rows["downstream_mean"], rows[column])
        for scheme, column in (("loso", "scale"), ("lomo", "method"))
    }
