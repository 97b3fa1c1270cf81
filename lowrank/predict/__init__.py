"""Predictors of downstream performance from stored rows: cross-validated by whole groups, with what
a careful reader asks for.
"""

from lowrank.predict.crossval import CrossValidation, PredictError, cross_validate
from lowrank.predict.study import FIGURES, SCHEMES, Summary, predict

__all__ = [
    "FIGURES",
    "SCHEMES",
    "CrossValidation",
    "PredictError",
    "Summary",
    "cross_validate",
    "predict",
]
