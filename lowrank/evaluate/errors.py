"""Errors of a single downstream task, which do not stop the others."""

from __future__ import annotations

from lowrank.errors import LowrankError


class EvaluationError(LowrankError):
    """A task that cannot be loaded, or does not fit the model."""
