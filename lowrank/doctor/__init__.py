"""Diagnose the environment, the store and the files of studies, and fix what can be fixed.

A problem that is found is never raised: each becomes a :class:`Finding`.
"""

from lowrank.doctor.examine import environment, examine
from lowrank.doctor.finding import Finding

__all__ = ["Finding", "environment", "examine"]
