"""Waiting for a database that is away: stopped for maintenance, out of reach, locked by others, on
a disk that is full.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

from lowrank.errors import StoreAwayError

T = TypeVar("T")
PATIENCE = 60.0  # seconds
FIRST_PAUSE, LONGEST_PAUSE = 0.1, 2.0


def patiently(call: Callable[[], T], patience: float = PATIENCE) -> T:
    """``call()``, tried again while the database is away, for ``patience`` seconds; then its
    StoreAwayError is raised.

    For what may be repeated: a connection that breaks during COMMIT does not tell whether the rows
    are there, and writing a row again under its key is harmless.
    """
    deadline, pause = time.monotonic() + patience, FIRST_PAUSE
    while True:
        try:
            return call()
        except StoreAwayError:
            if time.monotonic() + pause > deadline:
                raise
        time.sleep(pause)
        pause = min(2 * pause, LONGEST_PAUSE)
