"""Writing the rows of a training run: in batches, and kept in memory while the database is away."""

from __future__ import annotations

import time
from dataclasses import asdict
from typing import Any, TypeVar

from lowrank.errors import StoreAwayError
from lowrank.store import Store, records
from lowrank.store.retry import RETRY_SECONDS, with_retry

R = TypeVar("R", bound=records.Record)
BATCH = 64  # rows of the training log that are worth a transaction
# Seconds between transactions: at a few milliseconds each, under 1% of the time of training.
INTERVAL = 1.0
KINDS: dict[str, type[records.Record]] = {
    "curve": records.TrainingLog,
    "checkpoint": records.Checkpoint,
}


class RunWriter:
    """The rows of a run that are not stored yet, in order.

    Training goes on for up to ``retry_seconds`` seconds while the database is away. Pending rows
    belong in every resume point (:meth:`pending`), so that a kill during that time loses nothing
    either.
    """

    def __init__(self, store: Store, retry_seconds: float = RETRY_SECONDS) -> None:
        self.store, self.limit = store, retry_seconds
        self._rows: list[records.Record] = []
        self._tried = time.monotonic()
        self._away_since: float | None = None
        self._reason: StoreAwayError | None = None

    def add(self, row: records.Record) -> None:
        """Add a row to those that the next :meth:`write` stores."""
        self._rows.append(row)

    def pending(self) -> list[dict[str, Any]]:
        """Return the rows that are not stored yet, as JSON values for :meth:`restore`."""
        names = {kind: name for name, kind in KINDS.items()}
        return [{"kind": names[type(row)], "row": asdict(row)} for row in self._rows]

    def restore(self, pending: list[dict[str, Any]], **ids: int | None) -> None:
        """Add the rows that an earlier session of the run could not store.

        ``ids`` replaces the columns of these names, whose ids may differ in the database of today.
        """
        for entry in pending:
            row = entry["row"] | {
                name: value for name, value in ids.items() if name in entry["row"]
            }
            self._rows.append(KINDS[entry["kind"]](**row))

    def due(self) -> bool:
        """Return whether enough rows are pending for a transaction to be worth its time."""
        away = self._away_since is not None
        enough = len(self._rows) >= BATCH or (bool(self._rows) and away)
        return enough and time.monotonic() - self._tried >= INTERVAL

    def write(self) -> None:
        """Try once to store all pending rows.

        Where the database is away, the rows stay pending and :meth:`overdue` may return its error.
        """
        try:
            self._store()
        except StoreAwayError as error:
            self._away_since = self._away_since or time.monotonic()
            self._reason = error
        else:
            self._away_since = None
        self._tried = time.monotonic()

    def overdue(self) -> StoreAwayError | None:
        """Return the database's last error if it has been away longer than ``limit`` seconds."""
        if self._away_since is None or time.monotonic() - self._away_since <= self.limit:
            return None
        return self._reason

    def drain(self) -> None:
        """Store all pending rows, retrying until the database has been away for the limit."""
        waited = 0.0 if self._away_since is None else time.monotonic() - self._away_since
        with_retry(self._store, max(0.0, self.limit - waited))
        self._away_since = None

    def add_now(self, record: R) -> R:
        """Store one record at once, retrying while the database is away; return it with its id."""
        return with_retry(lambda: self.store.add(record))

    def update_run(self, run_id: int | None, **columns: Any) -> records.Run:
        """Set columns of the run's row at once, retrying while the database is away; return it."""
        return with_retry(lambda: self.store.update(records.Run, run_id, **columns))

    def forget_curve(self, run_id: int | None, after_step: int) -> None:
        """Delete the training log after ``after_step``, which a resumed run writes again."""
        with_retry(lambda: self.store.forget_training_log(run_id, after_step=after_step))

    def _store(self) -> None:
        """Store all pending rows in one transaction.

        A guarded store confirms its claim in it, even if no row is pending.
        """
        with self.store.transaction():
            self.store.add_all(sorted(self._rows, key=lambda row: type(row).__name__))
        self._rows = []
