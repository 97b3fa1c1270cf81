"""Downstream evaluation: which scores of a study are missing, and computing each of them once,
through lm-evaluation-harness.
"""

from lowrank.evaluate.plan import Unit, plan
from lowrank.evaluate.stage import EvaluateSummary, Evaluating, evaluate
from lowrank.work.selection import Selection

__all__ = ["EvaluateSummary", "Evaluating", "Selection", "Unit", "evaluate", "plan"]
