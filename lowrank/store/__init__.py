"""Every run, checkpoint and number as rows of SQLite or PostgreSQL.

The records that go in and come out are in :mod:`lowrank.store.records`, named queries in
:mod:`lowrank.store.queries`.
"""

from lowrank.store.api import Store
from lowrank.store.copy import copy_store, differences

__all__ = ["Store", "copy_store", "differences"]
