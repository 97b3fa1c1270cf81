"""Downstream evaluation: planning the missing scores of a study, and computing each of them once
through lm-evaluation-harness.
"""

from lowrank.evaluate.plan import MissingScores, plan
from lowrank.evaluate.stage import EvaluateStage, EvaluateSummary, evaluate
from lowrank.work.selection import Selection

__all__ = ["EvaluateStage", "EvaluateSummary", "MissingScores", "Selection", "evaluate", "plan"]
