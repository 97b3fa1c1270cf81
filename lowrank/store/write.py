"""Writing rows under natural keys: insert new rows, compare those that exist, overwrite nothing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields
from functools import cache
from typing import Any, TypeVar, cast

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import Connection
from sqlalchemy.exc import DataError, IntegrityError

from lowrank.errors import ConflictError, StoreError
from lowrank.hashing import spaced_hash
from lowrank.store.engine import one_line
from lowrank.store.records import Protocol, Record
from lowrank.store.rows import RecordCodec, codec, same_value, shown

R = TypeVar("R", bound=Record)
Row = dict[str, Any]
Key = tuple[Any, ...]
# Keys of one look-up: a key has up to seven columns, and SQLite takes 32,766 parameters.
KEY_CHUNK = 2_000


def protocol_hash(protocol: Protocol, evaluation_set_sha256: str | None) -> str:
    """Return the SHA-256 over every field of a protocol, with the content hash of its evaluation
    set in place of the id.
    """
    body = {
        f.name: getattr(protocol, f.name)
        for f in fields(protocol)
        if f.name not in ("id", "parameters_hash")
    }
    body["evaluation_set_id"] = evaluation_set_sha256
    try:
        return spaced_hash(body)
    except (TypeError, ValueError) as error:
        raise StoreError(
            f"the parameters of protocol '{protocol.name}' of lens '{protocol.lens}' are not JSON: {error}"
        ) from error


def add(connection: Connection, codec: RecordCodec[R], record: R) -> R:
    """Return the stored record under the key of ``record``, inserted where there was none."""
    row = codec.encode(record)
    with _refusals(codec.name):
        new = connection.execute(
            _insert(connection, codec).returning(*codec.columns), row
        ).one_or_none()
    if new is not None:
        return codec.decode(new)
    stored = next(lookup(connection, codec, [codec.key_of(row)]))
    require_same(codec, codec.encode(stored), row)
    return stored


def add_many(connection: Connection, codec: RecordCodec[R], records: Sequence[R]) -> int:
    """Insert new records, compare the others with their rows, and return the number of new rows."""
    rows = _by_key(codec, map(codec.encode, records))
    if not rows:
        return 0
    added = _insert_new(connection, codec, list(rows.values()))
    if added < len(rows):
        for stored in lookup(connection, codec, list(rows)):
            found = codec.encode(stored)
            require_same(codec, found, rows[codec.key_of(found)])
    return added


def update(
    connection: Connection, codec: RecordCodec[R], record_id: int | None, changes: Mapping[str, Any]
) -> R:
    """Set fields of one row and return its record after the change."""
    row: Row = {}
    for name, value in changes.items():
        codec.encode_field(codec.field(name), value, row)
    table = codec.table
    if row:
        with _refusals(codec.name):
            connection.execute(sa.update(table).where(table.c.id == record_id), row)
    stored = connection.execute(
        sa.select(*codec.columns).where(table.c.id == record_id)
    ).one_or_none()
    if stored is None:
        raise StoreError(f"the table '{codec.name}' has no row {record_id}")
    return codec.decode(stored)


def lookup(connection: Connection, codec: RecordCodec[R], keys: Sequence[Key]) -> Iterator[R]:
    """Yield the stored records under ``keys``, in any order."""
    query = sa.select(*codec.columns)
    for start in range(0, len(keys), KEY_CHUNK):
        chunk = keys[start : start + KEY_CHUNK]
        for row in connection.execute(query.where(sa.tuple_(*codec.conflict).in_(chunk))):
            yield codec.decode(row)


def require_same(codec: RecordCodec[R], stored: Row, given: Row) -> None:
    """Raise a ConflictError that names table, key and both values, where a fixed field differs."""
    for name in codec.fixed:
        one, other = codec.value(stored, name), codec.value(given, name)
        if not same_value(one, other):
            key = ", ".join(
                f"{column}={value}"
                for column, value in zip(codec.record_type.key, codec.key_of(given), strict=True)
            )
            raise ConflictError(
                f"'{codec.name}' already has {name} = {shown(one)} for {key}; it was not replaced by {shown(other)}"
            )


def _by_key(codec: RecordCodec[R], rows: Iterator[Row]) -> dict[Key, Row]:
    """Return rows by natural key; raise ConflictError for one key with two values."""
    found: dict[Key, Row] = {}
    for row in rows:
        twin = found.setdefault(codec.key_of(row), row)
        if twin is not row:
            require_same(codec, twin, row)
    return found


def _insert_new(connection: Connection, codec: RecordCodec[R], rows: list[Row]) -> int:
    """Insert the rows whose keys are new and return their number; leave existing rows unchanged."""
    statement = _insert(connection, codec).inline()
    with _refusals(codec.name):
        # The driver alone takes half the time for a large batch.
        if connection.dialect.name == "sqlite" and codec.is_plain:
            text, names = _driver_insert(cast(Any, codec.record_type))
            values = [tuple([row[name] for name in names]) for row in rows]
            return int(
                connection.exec_driver_sql(
                    text, values, execution_options={"preserve_rowcount": True}
                ).rowcount
            )
        return int(
            connection.execute(statement.execution_options(preserve_rowcount=True), rows).rowcount
        )


@cache
def _driver_insert(record_type: Any) -> tuple[str, list[str]]:
    """Return the statement for SQLite's driver and the order of its parameters."""
    found = codec(record_type)
    insert = (
        sqlite.insert(found.table)
        .on_conflict_do_nothing(index_elements=list(found.conflict))
        .inline()
    )
    compiled = insert.compile(dialect=sqlite.dialect(), column_keys=sorted(found.written))
    return str(compiled), list(compiled.positiontup or ())


def _insert(connection: Connection, codec: RecordCodec[R]) -> Any:
    """Return an INSERT that leaves a row unchanged whose key exists already."""
    insert: Any = {"sqlite": sqlite.insert, "postgresql": postgresql.insert}[
        connection.dialect.name
    ]
    return insert(codec.table).on_conflict_do_nothing(index_elements=list(codec.conflict))


@contextmanager
def _refusals(table: str) -> Iterator[None]:
    """Raise what a constraint refuses as a StoreError of one sentence that names the table."""
    try:
        yield
    except (IntegrityError, DataError) as error:
        raise StoreError(
            f"the database refuses a row of '{table}': {one_line(error.orig)}"
        ) from error
