"""What can go wrong with one downstream task; the others go on."""

from __future__ import annotations

from lowrank.errors import LowrankError


class EvaluationError(LowrankError):
    """A task that cannot be loaded, or does not fit the model."""
