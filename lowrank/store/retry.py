"""Retrying calls while a database is away: stopped for maintenance, out of reach, locked by others,
or on a full disk.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

from lowrank.errors import StoreAwayError

T = TypeVar("T")
RETRY_SECONDS = 60.0
FIRST_PAUSE, LONGEST_PAUSE = 0.1, 2.0  # seconds


def with_retry(call: Callable[[], T], seconds: float = RETRY_SECONDS) -> T:
    """Return ``call()``, retried for up to ``seconds`` seconds while the database is away.

    Raises the last StoreAwayError after that; any other error is raised at once. Use it only for
    calls that may be repeated: a connection that breaks during COMMIT leaves open whether the rows
    are stored, and storing a row again under its key is harmless.
    """
    deadline, pause = time.monotonic() + seconds, FIRST_PAUSE
    while True:
        try:
            return call()
        except StoreAwayError:
            if time.monotonic() + pause > deadline:
                raise
        time.sleep(pause)
        pause = min(2 * pause, LONGEST_PAUSE)


patiently, PATIENCE = with_retry, RETRY_SECONDS  # the old names, which outsiders may import
