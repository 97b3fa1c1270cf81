"""Predictors of downstream performance from stored rows, cross-validated by leaving out groups,
with intervals and permutation tests.
"""

from lowrank.predict.crossval import CrossValidation, PredictError, cross_validate
from lowrank.predict.study import FIGURES, SCHEMES, PredictSummary, predict

__all__ = [
    "FIGURES",
    "SCHEMES",
    "CrossValidation",
    "PredictError",
    "PredictSummary",
    "cross_validate",
    "predict",
]

Summary = PredictSummary  # the old name, which outsiders may import
