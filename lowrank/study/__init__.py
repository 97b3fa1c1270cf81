"""Studies: planning the work of a study file and doing what is missing of it, alone or by workers.

A worker is another call of ``lowrank study run`` (or of ``lowrank.train``) on the same store;
workers share the work by claiming it. A launcher starts them, shows what they print, and does the
last stages itself.
"""

from lowrank.study.plan import Plan, new_run, register, status_rows, study_root
from lowrank.study.stages import STAGES, Outcome, StudyStage, forget_failures, plan_rows, run_study
from lowrank.study.training import MissingRun, TrainStage, missing_training, train_key, train_run

__all__ = [
    "STAGES",
    "MissingRun",
    "Outcome",
    "Plan",
    "StudyStage",
    "TrainStage",
    "forget_failures",
    "missing_training",
    "new_run",
    "plan_rows",
    "register",
    "run_study",
    "status_rows",
    "study_root",
    "train_key",
    "train_run",
]
