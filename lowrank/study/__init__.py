"""Studies: the work that a file asks for, what of it is missing, and doing it, here or by workers.

Workers are nothing but further calls of ``lowrank study run`` (or of ``lowrank.train``) on the same
store; they share the work by claiming it. A launcher starts them, shows what they say, and does the
last stages itself.
"""

from lowrank.study.stages import (
    SHARED,
    STAGES,
    Outcome,
    Plan,
    forget_failures,
    missing_training,
    new_run,
    plan_rows,
    register,
    run_study,
    status_rows,
    study_root,
    train_key,
)

__all__ = [
    "SHARED",
    "STAGES",
    "Outcome",
    "Plan",
    "forget_failures",
    "missing_training",
    "new_run",
    "plan_rows",
    "register",
    "run_study",
    "status_rows",
    "study_root",
    "train_key",
]
