"""Claiming units of work, so that any number of processes on any number of machines share them.

There is no queue: the plan is what is missing. One atomic statement claims a unit: it inserts the
unit's row, or takes over a row whose lease has expired by the database's own clock. A heartbeat
renews the lease while the work goes on. The row is deleted when the work is done; when the work
failed, it stays, with error and attempts. A claim means that nobody else *is doing* a unit, not
that nobody *has done* it: check after claiming whether the work is still missing.

A lease outlives a dead process by up to ``lease`` seconds. A successor on the same machine need not
wait: the owner's name identifies the process.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.functions import FunctionElement

from lowrank.errors import BusyError, ClaimLostError, StoreError
from lowrank.store.api import Store
from lowrank.store.owner import describe, is_dead, new_owner
from lowrank.store.schema import WorkUnit

LEASE = 120.0  # seconds; longer than a store may be away from a training run
HEARTBEATS_A_LEASE = 4
UNITS: Any = WorkUnit.__table__
# Owners of this process whose rows may exist although nothing works on their units.
_abandoned: set[str] = set()


class database_now(FunctionElement[float]):  # noqa: N801  (a function of SQL)
    """Seconds since the epoch by the database's clock, at this statement."""

    type = sa.Double()
    inherit_cache = True


_NOW = {
    "sqlite": "((julianday('now') - 2440587.5) * 86400.0)",
    "postgresql": "CAST(extract(epoch FROM clock_timestamp()) AS double precision)",
}
# As text (made of constants only): SQLAlchemy would compile an INSERT with ON CONFLICT each time.
_TAKE = {
    dialect: sa.text(f"""
        INSERT INTO work_unit (unit_key, kind, status, owner, lease_until, heartbeat_at, attempts, error,
            traceback, study_id)
        VALUES (:key, :kind, 'claimed', :owner, {now} + :lease, {now}, 1, '', '', :study)
        ON CONFLICT (unit_key) DO UPDATE SET
            owner = excluded.owner, kind = excluded.kind, lease_until = excluded.lease_until, heartbeat_at = excluded.heartbeat_at,
            attempts = work_unit.attempts + 1, error = '', traceback = ''
        WHERE work_unit.status = 'claimed' AND (work_unit.lease_until <= {now} OR work_unit.owner = :dead)
        RETURNING attempts
    """).bindparams(
        sa.bindparam("study", type_=sa.Integer()), sa.bindparam("lease", type_=sa.Double())
    )
    for dialect, now in _NOW.items()
}


@compiles(database_now, "sqlite")
def _now_of_sqlite(*_: Any, **__: Any) -> str:
    return _NOW["sqlite"]


@compiles(database_now, "postgresql")
def _now_of_postgresql(*_: Any, **__: Any) -> str:
    return _NOW["postgresql"]


class Claim:
    """One unit of work that this process holds."""

    def __init__(self, claims: Claims, unit_key: str, owner: str, attempts: int) -> None:
        self.unit_key, self.owner, self.attempts = unit_key, owner, attempts
        self._claims, self._lost, self._over = claims, threading.Event(), False

    @property
    def lost(self) -> bool:
        """Whether somebody else has the unit now, as far as the last heartbeat knows."""
        return self._lost.is_set()

    def check(self) -> None:
        """Raise :class:`ClaimLostError` where the claim is known to be lost, without a query."""
        if self.lost:
            raise ClaimLostError(
                f"the claim on '{self.unit_key}' was lost: its lease lapsed and another process took it over"
            )

    def confirm(self) -> None:
        """Renew the lease, or raise :class:`ClaimLostError`.

        Called in the transaction that stores results, it makes storing them and holding the claim
        one step: until the transaction ends, nobody can take the unit over.
        """
        if not self._claims.renew(self):
            self._lost.set()
        self.check()

    def give_up(self) -> None:
        """Mark the claim as lost because another process is still working on the unit (one that
        slept through its lease); the unit is tried again later.
        """
        self._lost.set()

    def fail(self, error: str) -> None:
        """Mark the unit as failed: its row stays, with the error."""
        self._claims.fail(self, error)
        self._over = True

    def finish(self) -> None:
        """Delete the row in the transaction of the last results, so that no moment has both or
        neither; raise :class:`ClaimLostError` where the claim is lost.
        """
        self._over = self._claims.release(self)
        if not self._over:
            self._lost.set()
        self.check()


class Claims:
    """Claims of one kind of work in one store; may be shared by threads."""

    def __init__(
        self, store: Store, kind: str, *, study_id: int | None = None, lease: float = LEASE
    ) -> None:
        self.store, self.kind, self.study_id, self.lease = store, kind, study_id, lease
        self._heart = _Heart(self)

    def claim(self, unit_key: str) -> Claim | None:
        """Claim the unit for this process; return None where another process holds it or where it
        has failed.
        """
        claim = self.take(unit_key)
        if claim is None:
            holder = self.holder(unit_key)
            if holder in _abandoned or is_dead(holder):
                claim = self.take(unit_key, holder)
        return claim

    def take(self, unit_key: str, from_dead: str = "") -> Claim | None:
        """Insert the unit's row, or take over one whose lease has expired or whose owner is
        ``from_dead``, in one statement.
        """
        owner = new_owner()
        values = {
            "key": unit_key,
            "kind": self.kind,
            "study": self.study_id,
            "owner": owner,
            "lease": self.lease,
            "dead": from_dead or "nobody",
        }
        try:
            with self.store.connection(writes=True, statements=1) as connection:
                attempts = connection.execute(
                    _TAKE[self.store.dialect], values
                ).scalar_one_or_none()
        except StoreError:
            _abandoned.add(owner)  # the connection broke: the row may exist
            raise
        return None if attempts is None else Claim(self, unit_key, owner, attempts)

    def holder(self, unit_key: str) -> str:
        """Return the owner of a unit's row, '' where there is none."""
        with self.store.connection(statements=1) as connection:
            found = connection.execute(
                sa.select(UNITS.c.owner).where(UNITS.c.unit_key == unit_key)
            ).scalar_one_or_none()
        return found or ""

    def taken(self) -> set[str]:
        """Return the keys of the units of this kind that are leased to owners not known to be dead,
        in one query.
        """
        return {key for key, dead in self.looked().items() if not dead}

    def looked(self) -> dict[str, str]:
        """Return the leased units of this kind: key -> owner where it is known to be dead,
        else ''.
        """
        running = (
            UNITS.c.kind == self.kind,
            UNITS.c.status == "claimed",
            UNITS.c.lease_until > database_now(),
        )
        with self.store.connection(statements=1) as connection:
            rows = connection.execute(
                sa.select(UNITS.c.unit_key, UNITS.c.owner).where(*running)
            ).all()
        return {key: owner if owner in _abandoned or is_dead(owner) else "" for key, owner in rows}

    def renew(self, claim: Claim) -> bool:
        """Extend the lease and return True, or False where another owner has the claim."""
        now = database_now()
        return self._change(
            claim, sa.update(UNITS).values(lease_until=now + self.lease, heartbeat_at=now)
        )

    def release(self, claim: Claim) -> bool:
        """Delete the row: the work is done, or another process may do it."""
        return self._change(claim, sa.delete(UNITS))

    def fail(self, claim: Claim, error: str) -> bool:
        """Keep the row with the error; the unit is not claimed again until :meth:`reopen`."""
        return self._change(
            claim, sa.update(UNITS).values(status="failed", owner="", lease_until=None, error=error)
        )

    def _change(self, claim: Claim, statement: Any) -> bool:
        own = (
            UNITS.c.unit_key == claim.unit_key,
            UNITS.c.owner == claim.owner,
            UNITS.c.status == "claimed",
        )
        with self.store.connection(writes=True, statements=1) as connection:
            return bool(connection.execute(statement.where(*own)).rowcount)

    def reopen(self) -> int:
        """Let the failed units of this kind (and study) be claimed again, keeping their attempts;
        return their number.
        """
        failed = [UNITS.c.kind == self.kind, UNITS.c.status == "failed"]
        if self.study_id is not None:
            failed.append(UNITS.c.study_id == self.study_id)
        change = sa.update(UNITS).values(status="claimed", owner="", lease_until=0.0).where(*failed)
        with self.store.connection(writes=True) as connection:
            return int(connection.execute(change).rowcount)

    def sweep(self) -> int:
        """Delete the rows of this kind (and study) whose owners have gone, and return their number.

        Call it when nothing is missing: a process that dies between storing its last result and
        releasing its claim leaves such a row, and so does a connection that breaks at either end of
        a claim.
        """
        own = [UNITS.c.kind == self.kind, UNITS.c.status == "claimed"]
        if self.study_id is not None:
            own.append(UNITS.c.study_id == self.study_id)
        with self.store.connection() as connection:
            over = UNITS.c.lease_until <= database_now()
            rows = connection.execute(
                sa.select(UNITS.c.unit_key, UNITS.c.owner, over).where(*own)
            ).all()
        dead = [
            (key, owner)
            for key, owner, lapsed in rows
            if lapsed or owner in _abandoned or is_dead(owner)
        ]
        if not dead:
            return 0
        gone = sa.delete(UNITS).where(
            sa.tuple_(UNITS.c.unit_key, UNITS.c.owner).in_(dead), UNITS.c.status == "claimed"
        )
        with self.store.connection(writes=True) as connection:
            return int(connection.execute(gone).rowcount)

    @contextmanager
    def hold(self, unit_key: str, from_dead: str | None = None) -> Iterator[Claim | None]:
        """Claim the unit and renew its lease while the block runs; yield None where it cannot be
        claimed. The claim is released at the end of the block.

        ``from_dead`` is its dead owner as :meth:`looked` returned it; with None this method looks
        itself.
        """
        claim = self.claim(unit_key) if from_dead is None else self.take(unit_key, from_dead)
        if claim is None:
            yield None
            return
        self._heart.add(claim)
        over = False
        try:
            yield claim
            over = claim._over  # only now: an error would have rolled it back
        finally:
            self._heart.remove(claim)
            if not over:
                _abandoned.add(claim.owner)
                with suppress(StoreError):  # where the store is away, the lease expires
                    self.release(claim)
                    _abandoned.discard(claim.owner)

    @contextmanager
    def require(self, unit_key: str, what: str) -> Iterator[Claim]:
        """Claim the unit as :meth:`hold` does; raise :class:`BusyError` where another process holds
        it.
        """
        with self.hold(unit_key) as claim:
            if claim is None:
                raise BusyError(
                    f"{what}: {describe(self.holder(unit_key))} is working on it; wait for it or stop it"
                )
            yield claim


class _Heart:
    """A thread that renews the leases of all claims held through a :class:`Claims`; it ends when
    none is held.
    """

    def __init__(self, claims: Claims) -> None:
        self._claims, self._held, self._lock = claims, set[Claim](), threading.Lock()
        self._thread: threading.Thread | None = None

    def add(self, claim: Claim) -> None:
        with self._lock:
            self._held.add(claim)
            if (
                self._thread is None or not self._thread.is_alive()
            ):  # a forked process has no thread
                self._thread = threading.Thread(
                    target=self._beat, name=f"heartbeat {self._claims.kind}", daemon=True
                )
                self._thread.start()

    def remove(self, claim: Claim) -> None:
        """Stop renewing the claim; no renewal of it is under way when this returns."""
        with self._lock:
            self._held.discard(claim)

    def _beat(self) -> None:
        while True:
            time.sleep(self._claims.lease / HEARTBEATS_A_LEASE)
            with self._lock:
                if not self._held:
                    self._thread = None
                    return
                for claim in list(self._held):
                    # Where the store is away, a later beat may reach it, and storing results
                    # confirms the claim again.
                    with suppress(StoreError):
                        if not self._claims.renew(claim) and not claim._over:
                            claim._lost.set()
                            self._held.discard(claim)
