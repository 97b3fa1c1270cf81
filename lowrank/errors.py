"""Errors that a user can mend: one sentence that names the offending thing and the mend.

The command line prints the sentence and exits with ``exit_status``; every other exception is a bug
and keeps its traceback.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class LowrankError(Exception):
    """Work that could not be done."""

    exit_status = 1


class UsageError(LowrankError):
    """A command line or a study file that asks for something that does not exist."""

    exit_status = 2


class ConfigError(UsageError):
    """A study file (or a ``--set``) with an unknown key, a wrong type or an impossible value."""


class UnknownNameError(UsageError):
    """A name that no registry knows."""

    def __init__(self, what: str, name: str, known: Iterable[str]) -> None:
        known = sorted(known)
        super().__init__(
            f"unknown {what} '{name}'{suggestion(name, known)}; known: {', '.join(known) or 'none'}"
        )


class DataError(LowrankError):
    """A corpus, tokenizer or evaluation set that cannot be read or is too small."""


class CheckpointError(LowrankError):
    """A checkpoint that is missing, incomplete, corrupt or of another shape."""


class DiskError(CheckpointError):
    """A folder that cannot be written for now (a full disk, a missing right): no work has failed,
    it goes on when it can be.
    """


class StoreError(LowrankError):
    """A database that cannot be reached, has another schema, or refuses a row."""


class StoreAwayError(StoreError):
    """A database that does not answer for now: stopped, unreachable, locked by others, or on a full
    disk.
    """


class ConflictError(StoreError):
    """A different value for a row that already exists; nothing is overwritten."""


class BusyError(LowrankError):
    """A unit of work that another process is doing."""


class ClaimLostError(LowrankError):
    """A unit of work whose lease lapsed and that another process may have taken over: stop, store
    nothing.
    """


class DivergedError(LowrankError):
    """A training loss or gradient that is no longer finite: a result, stored with the run."""

    def __init__(self, message: str, step: int, last_finite_loss: float | None) -> None:
        super().__init__(message)
        self.step = step
        self.last_finite_loss = last_finite_loss


def suggestion(name: str, known: Iterable[str]) -> str:
    """``"; did you mean 'x'?"`` for the nearest known name, or an empty string."""
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"; did you mean '{near[0]}'?" if near else ""
