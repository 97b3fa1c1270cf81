"""Measuring: planning the missing values of a study, and computing each of them once.

The plan is the difference between the rows that the study's metric families (lenses) announce and
those that the store holds; there is no queue. Units are grouped so that a checkpoint is loaded and
verified once, and stored one by one.
"""

from lowrank.measure.plan import Task, plan, plan_rows
from lowrank.measure.stage import MeasureStage, MeasureSummary, Split, measure
from lowrank.work.selection import Selection

__all__ = [
    "MeasureStage",
    "MeasureSummary",
    "Selection",
    "Split",
    "Task",
    "measure",
    "plan",
    "plan_rows",
]
