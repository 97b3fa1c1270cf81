"""Checking a database for damage and leftovers, and removing leftovers."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any
from urllib.parse import quote

import sqlalchemy as sa

from lowrank.store import records, schema
from lowrank.store.api import Store
from lowrank.store.claims import UNITS, database_now
from lowrank.store.owner import is_dead

USERS: tuple[Any, ...] = (
    schema.MetricValue,
    schema.CurvePoint,
    schema.SingularValue,
    schema.DownstreamScore,
    schema.DownstreamItem,
)


def damage(store: Store) -> list[str]:
    """Return what SQLite finds wrong with its pages and references; nothing for PostgreSQL, which
    checks its pages itself.
    """
    path = store.file
    if path is None:
        return []
    with sqlite3.connect(f"file:{quote(str(path.absolute()))}?mode=ro", uri=True) as connection:
        try:
            pages = [str(row[0]) for row in connection.execute("PRAGMA integrity_check(5)")]
            broken = connection.execute("PRAGMA foreign_key_check").fetchall()
        except sqlite3.DatabaseError as error:
            return [str(error)]
    lost = [
        f"{table}: row {row} refers to a row of '{parent}' that is not there"
        for table, row, parent, _ in broken[:5]
    ]
    return [page for page in pages if page != "ok"] + lost


def size(store: Store) -> int:
    """Return the size of the database in bytes."""
    path = store.file
    if path is not None:
        parts = (path, Path(f"{path}-wal"))
        return sum(part.stat().st_size for part in parts if part.exists())
    return int(store.select("SELECT pg_database_size(current_database())")[1][0][0])


def dead_claims(store: Store) -> list[records.WorkUnit]:
    """Return the claims whose lease has expired by the database's clock, or whose process is known
    to have ended.
    """
    with store.connection() as connection:
        now = float(connection.execute(sa.select(database_now())).scalar_one())
    claimed = store.find(records.WorkUnit, status="claimed")
    return [unit for unit in claimed if (unit.lease_until or 0.0) <= now or is_dead(unit.owner)]


def drop_claim(store: Store, unit: records.WorkUnit) -> bool:
    """Delete the row of a dead claim and return True, unless another process has taken it over
    meanwhile.
    """
    own = (
        UNITS.c.unit_key == unit.unit_key,
        UNITS.c.owner == unit.owner,
        UNITS.c.status == "claimed",
    )
    with store.connection(writes=True) as connection:
        return bool(connection.execute(sa.delete(UNITS).where(*own)).rowcount)


def _unused() -> list[sa.ColumnElement[bool]]:
    protocol = schema.Protocol
    return [~sa.exists().where(user.protocol_id == protocol.id) for user in USERS]


def unused_protocols(store: Store) -> list[records.Protocol]:
    """Return the protocols under which no value is stored."""
    with store.connection() as connection:
        ids = list(connection.execute(sa.select(schema.Protocol.id).where(*_unused())).scalars())
    return store.find(records.Protocol, id=ids) if ids else []


def drop_protocol(store: Store, protocol: records.Protocol) -> bool:
    """Delete a protocol under which no value is stored and return True; one that has come into use
    meanwhile is kept.
    """
    with store.connection(writes=True) as connection:
        return bool(
            connection.execute(
                sa.delete(schema.Protocol).where(schema.Protocol.id == protocol.id, *_unused())
            ).rowcount
        )
