"""Reports: tables and figures from stored rows; nothing is computed here that a row
does not hold.
"""

from lowrank.report.writing import write

__all__ = ["write"]
