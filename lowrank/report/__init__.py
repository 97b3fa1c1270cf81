"""Reports: tables and figures made only from stored rows; no metric is computed here."""

from lowrank.report.writing import write

__all__ = ["write"]
