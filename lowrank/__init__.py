"""Train, measure, evaluate and compare low-rank pre-training methods; every number is a row in SQL."""

__version__ = "0.1.0"
