"""Downstream evaluation: which scores of a study are missing, and computing each of them once,
through lm-evaluation-harness.
"""

from lowrank.evaluate.execute import Outcome, evaluate
from lowrank.evaluate.plan import Selection, Unit, plan

__all__ = ["Outcome", "Selection", "Unit", "evaluate", "plan"]
