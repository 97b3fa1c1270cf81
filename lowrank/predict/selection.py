"""Choosing features: those whose correlation with the target has one sign at every size, the strongest first."""

from __future__ import annotations

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from lowrank.predict.crossval import Floats, Selection, correlation

KEPT = 8  # as many as the published predictor has


def correlations(features: pd.DataFrame, target: Floats, sizes: ArrayLike) -> pd.DataFrame:
    """One row a feature: its correlation with the target at each size, their mean, and whether all signs agree.

    A size at which a feature or the target is constant says nothing about it and does not count.
    """
    labels = np.asarray(sizes, dtype=object)
    rows = {}
    for name in features.columns:
        values = features[name].to_numpy(dtype=float)
        by_size = {str(size): correlation(target[labels == size], values[labels == size]) for size in dict.fromkeys(labels)}
        known = [r for r in by_size.values() if np.isfinite(r)]
        agree = bool(known) and len({np.sign(r) for r in known}) == 1
        rows[name] = {**by_size, "pooled": correlation(target, values), "mean": float(np.mean(known)) if known else float("nan"), "consistent": agree}
    return pd.DataFrame.from_dict(rows, orient="index")


def consistent(features: pd.DataFrame, target: Floats, sizes: ArrayLike, keep: int = KEPT) -> list[str]:
    """The ``keep`` features of consistent sign with the largest mean |r|; the strongest alone where no sign is consistent."""
    table = correlations(features, target, sizes)
    table["strength"] = table["mean"].abs().fillna(-1.0)
    order = table.sort_values(["consistent", "strength"], ascending=False, kind="stable")
    chosen = list(order.index[order["consistent"]][:keep])
    return chosen or list(order.index[:1])


def nested(sizes: ArrayLike, fixed: tuple[str, ...] = (), keep: int = KEPT) -> Selection:
    """A selection for :func:`~lowrank.predict.crossval.cross_validate` that sees training rows alone.

    ``sizes`` are those of all rows; columns named ``fixed`` are always used, the others compete.
    """
    labels = np.asarray(sizes, dtype=object)

    def select(features: pd.DataFrame, target: Floats, rows: NDArray[np.intp]) -> list[str]:
        rivals = [name for name in features.columns if name not in fixed and features[name].nunique() > 1]
        chosen = consistent(features[rivals], target, labels[rows], keep) if rivals else []
        return [*(name for name in features.columns if name in fixed), *chosen]

    return select
