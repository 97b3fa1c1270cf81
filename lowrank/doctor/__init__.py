"""Finding what is wrong with environment, store and files of studies, saying what to do about it,
and mending it.

Nothing here raises for what it finds: each thing found is a :class:`Finding`.
"""

from lowrank.doctor.examine import environment, examine
from lowrank.doctor.finding import Finding

__all__ = ["Finding", "environment", "examine"]
