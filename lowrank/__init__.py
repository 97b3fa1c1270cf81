"""Train, measure, evaluate and compare low-rank pre-training methods; every number
is a row in SQL.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from lowrank import moved

if TYPE_CHECKING:
    from lowrank.store.view import View

__version__ = "0.1.0"
moved.install()


def open(url_or_file: str | os.PathLike[str]) -> View:
    """A read-only view of a store: ``.query(name, **params)`` and ``.sql(text)`` give pandas
    frames.

    ``url_or_file`` is an SQLite file or a SQLAlchemy URL such as ``postgresql://user@host/name``. A
    StoreError says what is wrong with a database that is not there, cannot be reached or has
    another schema.
    """
    from lowrank.store.view import open_view

    return open_view(url_or_file)
