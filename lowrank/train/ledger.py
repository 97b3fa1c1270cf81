"""The rows of a run on their way to the store: written in batches, kept while the
database is away.
"""

from __future__ import annotations

import time
from dataclasses import asdict
from typing import Any

from lowrank.errors import StoreAwayError
from lowrank.store import Store, records
from lowrank.store.claims import Claim
from lowrank.store.patience import PATIENCE, patiently

BATCH = 64  # rows of the training curve that are worth a transaction
# seconds between transactions: at a few milliseconds each, under 1% of the time of training
INTERVAL = 1.0
KINDS: dict[str, type[records.Record]] = {
    "curve": records.TrainingLog,
    "checkpoint": records.Checkpoint,
}


class Ledger:
    """Rows that are not stored yet, in order. Training goes on for ``patience`` seconds without its
    database.

    What is pending belongs into every resume point (:meth:`pending`), so that a kill meanwhile
    loses nothing either.
    """

    def __init__(
        self, store: Store, claim: Claim | None = None, patience: float = PATIENCE
    ) -> None:
        self.store, self.claim, self.patience = store, claim, patience
        self._rows: list[records.Record] = []
        self._tried = time.monotonic()
        self._away_since: float | None = None
        self._reason: StoreAwayError | None = None

    def add(self, row: records.Record) -> None:
        """Put a row down; nothing is written yet."""
        self._rows.append(row)

    def pending(self) -> list[dict[str, Any]]:
        """The rows that are not stored, as JSON values; :meth:`restore` takes them."""
        names = {kind: name for name, kind in KINDS.items()}
        return [{"kind": names[type(row)], "row": asdict(row)} for row in self._rows]

    def restore(self, pending: list[dict[str, Any]], **ids: int | None) -> None:
        """Take up what an earlier sitting of the run could not store; ``ids`` are those of the
        database of today.
        """
        for entry in pending:
            row = entry["row"] | {
                name: value for name, value in ids.items() if name in entry["row"]
            }
            self._rows.append(KINDS[entry["kind"]](**row))

    def due(self) -> bool:
        """Whether a transaction is worth its time."""
        enough = len(self._rows) >= BATCH or (bool(self._rows) and self._away_since is not None)
        return enough and time.monotonic() - self._tried >= INTERVAL

    def write(self) -> None:
        """Try to store everything, once; where the database is away, the rows stay and
        :meth:`overdue` may become true.
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
        """The database's last error, where it has been away for longer than ``patience``."""
        away = self._away_since is not None and time.monotonic() - self._away_since > self.patience
        return self._reason if away else None

    def drain(self) -> None:
        """Store everything, waiting for the database as long as its absence may last in all."""
        waited = 0.0 if self._away_since is None else time.monotonic() - self._away_since
        patiently(self._store, max(0.0, self.patience - waited))
        self._away_since = None

    def _store(self) -> None:
        """All pending rows in one transaction, in which the claim is confirmed (by itself where
        there are none).
        """
        if not self._rows:
            if self.claim is not None:
                self.claim.confirm()
            return
        with self.store.transaction():
            if self.claim is not None:
                self.claim.confirm()
            self.store.add_all(sorted(self._rows, key=lambda row: type(row).__name__))
        self._rows = []
