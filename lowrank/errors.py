"""Errors that a user can fix: one sentence that names what is wrong and how to fix it.

The command line prints the sentence and exits with the class's ``exit_status`` (1 unless noted);
any other exception is a bug and keeps its traceback. The whole tree, with the module of every class
that is not defined here:

    LowrankError
        UsageError                exit status 2
            ConfigError           exit status 2
            UnknownNameError      exit status 2
        DataError
        CheckpointError
            DiskError
        StoreError
            StoreAwayError
            ConflictError
        BusyError
        ClaimLostError
        DivergedError
        EvaluationError           lowrank.evaluate.errors
        MetricError               lowrank.metrics.base
        PredictError              lowrank.predict.crossval
        GroupError                lowrank.measure.group
            GroupStoreError       lowrank.measure.group, also a StoreError
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class LowrankError(Exception):
    """Base class of every error that a user can fix."""

    exit_status = 1


class UsageError(LowrankError):
    """Raised when a command line or a study file asks for something that does not exist."""

    exit_status = 2


class ConfigError(UsageError):
    """Raised for an unknown key, a wrong type or an impossible value in a study file or a
    ``--set``.
    """


class UnknownNameError(UsageError):
    """Raised for a name that is not registered; the message suggests the nearest known name."""

    def __init__(self, what: str, name: str, known: Iterable[str]) -> None:
        known = sorted(known)
        super().__init__(
            f"unknown {what} '{name}'{suggestion(name, known)}; known: {', '.join(known) or 'none'}"
        )


class DataError(LowrankError):
    """Raised when a corpus, tokenizer or evaluation set cannot be read or is too small."""


class CheckpointError(LowrankError):
    """Raised when a checkpoint is missing, incomplete, corrupt or of another architecture."""


class DiskError(CheckpointError):
    """Raised when a folder cannot be written for now: the disk is full, or a permission is missing.

    The work has not failed; it continues once the disk can be written.
    """


class StoreError(LowrankError):
    """Raised when a database cannot be reached, has another schema, or refuses a row."""


class StoreAwayError(StoreError):
    """Raised when a database does not answer for now.

    It is stopped, unreachable, locked by other processes, or on a full disk. Callers retry.
    """


class ConflictError(StoreError):
    """Raised when an existing row would get a different value; nothing is overwritten."""


class BusyError(LowrankError):
    """Raised when another process holds the claim on a unit of work."""


class ClaimLostError(LowrankError):
    """Raised when the lease on a unit of work has expired and another process may have claimed it.

    Stop working on the unit and store nothing.
    """


class DivergedError(LowrankError):
    """Raised when a training loss or a gradient is no longer finite.

    This is a result and is stored with the run. ``step`` is the update at which it happened,
    ``last_finite_loss`` the last finite training loss in nats per token, None if there was none.
    """

    def __init__(self, message: str, step: int, last_finite_loss: float | None) -> None:
        super().__init__(message)
        self.step = step
        self.last_finite_loss = last_finite_loss


def suggestion(name: str, known: Iterable[str]) -> str:
    """Return ``"; did you mean 'x'?"`` for the known name nearest to ``name``, or an empty
    string.
    """
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"; did you mean '{near[0]}'?" if near else ""
