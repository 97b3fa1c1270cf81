"""Measuring: which numbers of a study are missing, and computing each of them once.

The plan is the difference between the rows that the study's lenses announce and those that the
store holds; there is no queue. Work is grouped so that a checkpoint is loaded and verified once,
and stored unit by unit.
"""

from lowrank.measure.plan import Task, plan, plan_rows
from lowrank.measure.stage import MeasureSummary, Measuring, Split, measure
from lowrank.work.selection import Selection

__all__ = [
    "MeasureSummary",
    "Measuring",
    "Selection",
    "Split",
    "Task",
    "measure",
    "plan",
    "plan_rows",
]
