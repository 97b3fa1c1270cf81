"""The store: frozen records in, frozen records out; sessions, locks and dialects stay inside."""

from __future__ import annotations

import copy
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from itertools import groupby, islice
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from lowrank.errors import StoreError
from lowrank.store import migrate, write
from lowrank.store.engine import create_engine, mask, parse_url, single, translated, writing
from lowrank.store.records import EvaluationSet, Protocol, Record, TrainingLog, WorkUnit
from lowrank.store.rows import RecordCodec, codec

R = TypeVar("R", bound=Record)
_PARAMETER_TYPES: dict[type, sa.types.TypeEngine[Any]] = {
    str: sa.String(),
    int: sa.BigInteger(),
    float: sa.Double(),
}
BATCH = 10_000  # rows of one INSERT
IN_CHUNK = 10_000  # values of one IN list; SQLite takes 32,766 parameters per statement


class Store:
    """One database of lowrank.

    A record is written under its natural key (``Record.key``). Writing a row again is fine when
    nothing but its ``volatile`` and ``mutable`` fields differ, and a ConflictError otherwise:
    nothing is ever overwritten, except mutable fields through :meth:`update` and :meth:`put`. Every
    call is one transaction, unless it stands inside ``with store.transaction():``, which makes one
    of all calls of that thread. Objects may be shared by threads.

    Errors: StoreError for a database that cannot be reached, is of another schema, or refuses a
    row, always as one sentence and with the password masked.
    """

    def __init__(self, url: sa.URL, *, read_only: bool) -> None:
        self._url, self.read_only = url, read_only
        self._reader = create_engine(url, read_only=True)
        self._engine = self._reader if read_only else create_engine(url)
        self._single = self._engine if read_only else single(self._engine)
        self._local = threading.local()
        self._guard: Callable[[], object] | None = None

    @classmethod
    def open(
        cls, url: str | os.PathLike[str], *, create: bool = False, read_only: bool = False
    ) -> Self:
        """Open the store at a SQLAlchemy URL or in an SQLite file.

        ``create`` makes the tables (and the folder of the file) where there are none; a database of
        an older or newer schema is an error that names the command, never upgraded here.
        ``read_only`` opens SQLite files on media that cannot be written, too.
        """
        parsed = parse_url(url)
        migrate.require_file(parsed, create and not read_only)
        if create and not read_only:
            migrate.create(parsed)
        store = cls(parsed, read_only=read_only)
        try:
            with translated(parsed), store._reader.connect() as connection:
                migrate.require_head(connection, mask(parsed))
        except BaseException:
            store.close()
            raise
        return store

    @property
    def url_masked(self) -> str:
        """The database as it may be shown."""
        return mask(self._url)

    @property
    def dialect(self) -> str:
        """``sqlite`` or ``postgresql``."""
        return self._url.get_backend_name()

    @property
    def file(self) -> Path | None:
        """The file of an SQLite store."""
        return Path(str(self._url.database)) if self.dialect == "sqlite" else None

    def close(self) -> None:
        """Close all connections."""
        self._engine.dispose()
        self._reader.dispose()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Store({self.url_masked!r})"

    # -- writing
    # ----------------------------------------------------------------------------------------------

    def add(self, record: R) -> R:
        """Store ``record`` and return it with its id: inserted, or found under its key and equal in
        every fixed field.
        """
        with self._writing() as connection:
            found = codec(type(record))
            return write.add(connection, found, self._completed(connection, record))

    def add_all(self, records: Iterable[Record]) -> int:
        """Add many records of any types in one transaction and return how many of them are new."""
        added = 0
        with self._writing() as connection:
            for record_type, group in groupby(records, type):
                while batch := [
                    self._completed(connection, record) for record in islice(group, BATCH)
                ]:
                    added += write.add_many(connection, codec(record_type), batch)
        return added

    def put(self, record: R) -> R:
        """Add ``record``, or set the mutable fields of the row that has its key to those of
        ``record``; return the stored record.
        """
        with self._writing() as connection:
            found = codec(type(record))
            stored = write.add(connection, found, self._completed(connection, record))
            return write.update(
                connection,
                found,
                stored.id,
                {name: getattr(record, name) for name in record.mutable},
            )

    def update(self, record_type: type[R], record_id: int | None, **changes: Any) -> R:
        """Set mutable fields of one row and return its record after the change."""
        fixed = sorted(changes.keys() - record_type.mutable)
        if fixed:
            raise StoreError(
                f"{codec(record_type).name}.{fixed[0]} does not change once it is written"
            )
        with self._writing() as connection:
            return write.update(connection, codec(record_type), record_id, changes)

    def forget_training_log(self, run_id: int | None, after_step: int) -> int:
        """Delete the training curve after ``after_step``, which a resumed run writes again, and
        return the number of points deleted.
        """
        log = codec(TrainingLog).table
        with self._writing() as connection:
            return connection.execute(
                sa.delete(log).where(log.c.run_id == run_id, log.c.step > after_step)
            ).rowcount

    def forget_unit(self, unit_key: str) -> int:
        """Delete the row of a finished unit of work, whose results remain, and return the number of
        rows deleted.
        """
        units = codec(WorkUnit).table
        with self._writing() as connection:
            return connection.execute(sa.delete(units).where(units.c.unit_key == unit_key)).rowcount

    @contextmanager
    def transaction(self) -> Iterator[Self]:
        """Make all calls of this thread inside one transaction; an error rolls all of them back."""
        with self._writing():
            yield self

    def guarded(self, guard: Callable[[], object]) -> Self:
        """Return this store with a guard: every transaction that writes calls ``guard`` first.

        An error that the guard raises undoes the transaction before anything is written. Both
        objects share connections and open transactions.
        """
        other = copy.copy(self)
        other._guard = guard
        return other

    # -- reading
    # ----------------------------------------------------------------------------------------------

    def find(self, record_type: type[R], **where: Any) -> list[R]:
        """Return the records whose columns equal ``where``, ordered by id; None means NULL, a list,
        tuple or set means any of its values.
        """
        return sorted(self.iterate(record_type, **where), key=lambda record: record.id or 0)

    def iterate(self, record_type: type[R], *, batch: int = 5_000, **where: Any) -> Iterator[R]:
        """Yield the records of :meth:`find`, holding ``batch`` of them at a time (ordered by id
        within each 10,000 values of a list).
        """
        return self._select(record_type, where, batch)

    def _select(
        self,
        record_type: type[R],
        where: Mapping[str, Any],
        batch: int = 0,
        limit: int | None = None,
    ) -> Iterator[R]:
        found = codec(record_type)
        query = sa.select(*found.columns).order_by(found.table.c.id).limit(limit)
        if limit is None:
            query = query.execution_options(yield_per=batch)
        with self._reading(single=limit is not None) as connection:
            for part in _conditions(found, where):
                for row in connection.execute(query.where(*part)):
                    yield found.decode(row)

    def first(self, record_type: type[R], **where: Any) -> R | None:
        """Return the record with the lowest id among those that :meth:`find` returns, or None."""
        found = self._select(record_type, where, limit=1)
        return min(found, key=lambda record: record.id or 0, default=None)

    def get(self, record_type: type[R], record_id: int | None) -> R:
        """Return the record with this id; raise StoreError if there is none."""
        record = self.first(record_type, id=record_id)
        if record is None:
            raise StoreError(f"the table '{codec(record_type).name}' has no row {record_id}")
        return record

    def count(self, record_type: type[R], **where: Any) -> int:
        """Return the number of records that :meth:`find` would return."""
        found = codec(record_type)
        query = sa.select(sa.func.count()).select_from(found.table)
        with self._reading(single=True) as connection:
            return sum(
                connection.execute(query.where(*part)).scalar_one()
                for part in _conditions(found, where)
            )

    def stored(self, records: Sequence[R]) -> list[R]:
        """Return the stored records that have the keys of ``records``, in the same order; raise
        StoreError if one is missing.
        """
        if not records:
            return []
        found = codec(type(records[0]))
        with self._reading() as connection:
            keys = [
                found.key_of(found.encode(self._completed(connection, record)))
                for record in records
            ]
            by_key = {
                found.key_of(found.encode(record)): record
                for record in write.lookup(connection, found, keys)
            }
        missing = [key for key in keys if key not in by_key]
        if missing:
            raise StoreError(f"the table '{found.name}' has no row with the key {missing[0]}")
        return [by_key[key] for key in keys]

    @contextmanager
    def snapshot(self) -> Iterator[Self]:
        """Make all reads of this thread inside see one moment of the database; nothing can be
        written inside.
        """
        if getattr(self._local, "connection", None) is not None:
            yield self  # an open transaction or snapshot sees one moment already
            return
        with translated(self._url), self._engine.connect() as connection:
            if self.dialect == "postgresql":
                connection = connection.execution_options(isolation_level="REPEATABLE READ")
            self._local.connection, self._local.snapshot = connection, True
            try:
                yield self
            finally:
                self._local.connection, self._local.snapshot = None, False

    def select(
        self,
        sql: str,
        params: Mapping[str, Any] | None = None,
        types: Mapping[str, type] | None = None,
    ) -> tuple[list[str], list[tuple[Any, ...]]]:
        """Return column names and rows of one statement with ``:name`` parameters; the database
        refuses a statement that writes.

        JSON comes as text and truth as 1 and 0, on both databases. ``types`` gives the Python type
        of parameters that may be None.
        """
        statement = sa.text(sql if params else sql.replace(":", "\\:"))
        for name, kind in (types or {}).items():
            statement = statement.bindparams(sa.bindparam(name, type_=_PARAMETER_TYPES[kind]))
        with translated(self._url), self._reader.connect() as connection:
            result = connection.execute(statement, dict(params or {}))
            if not result.returns_rows:
                raise StoreError("the statement gives no rows; only SELECT does")
            return list(result.keys()), list(map(tuple, result.fetchall()))

    # -- inside
    # ----------------------------------------------------------------------------------------------

    def connection(
        self, *, writes: bool = False, statements: int | None = None
    ) -> AbstractContextManager[Connection]:
        """Return the connection of this thread's transaction, or a new one. Only the modules of
        this package may call it.

        ``statements=1`` promises at most one statement per transaction, which saves PostgreSQL two
        round trips.
        """
        return (
            self._writing(single=statements == 1)
            if writes
            else self._reading(single=statements == 1)
        )

    @contextmanager
    def _writing(self, *, single: bool = False) -> Iterator[Connection]:
        if self.read_only:
            raise StoreError(f"the store {self.url_masked} is open for reading only")
        open_one = getattr(self._local, "connection", None)
        if open_one is not None:
            if getattr(self._local, "snapshot", False):
                raise StoreError("a snapshot is for reading; write before or after it")
            yield open_one
            return
        with (
            translated(self._url),
            writing(
                self._single if single and self._guard is None else self._engine
            ).begin() as connection,
        ):
            self._local.connection = connection
            try:
                if self._guard is not None:
                    self._guard()
                yield connection
            finally:
                self._local.connection = None

    @contextmanager
    def _reading(self, *, single: bool = False) -> Iterator[Connection]:
        open_one = getattr(self._local, "connection", None)
        if open_one is not None:
            yield open_one
            return
        with (
            translated(self._url),
            (self._single if single else self._engine).connect() as connection,
        ):
            yield connection

    def _completed(self, connection: Connection, record: R) -> R:
        """Return a protocol with its hash, and any other record as it is."""
        if not isinstance(record, Protocol):
            return record
        sets = codec(EvaluationSet).table
        content = None
        if record.evaluation_set_id is not None:
            content = connection.execute(
                sa.select(sets.c.sha256).where(sets.c.id == record.evaluation_set_id)
            ).scalar()
        found = write.protocol_hash(record, content)
        if record.parameters_hash not in ("", found):
            raise StoreError(
                f"the protocol '{record.name}' of lens '{record.lens}' has another parameters_hash than its fields; leave it empty"
            )
        return replace(record, parameters_hash=found)


def _conditions(
    found: RecordCodec[R], where: Mapping[str, Any]
) -> Iterator[list[sa.ColumnElement[bool]]]:
    """Yield WHERE clauses: several where a list of values is too long for one statement (rows are
    ordered by id within each).
    """
    plain: list[sa.ColumnElement[bool]] = []
    chunked: list[sa.ColumnElement[bool]] = []
    for name, value in where.items():
        if name not in found.table.c:
            raise StoreError(f"the table '{found.name}' has no column '{name}'")
        column = found.table.c[name]
        if isinstance(value, Sequence | set | frozenset) and not isinstance(value, str):
            values = sorted(set(value)) if None not in value else _refuse_null(found.name, name)
            parts: list[sa.ColumnElement[bool]] = [
                column.in_(values[i : i + IN_CHUNK]) for i in range(0, len(values), IN_CHUNK)
            ]
            if len(parts) == 1:
                plain.append(parts[0])
            elif not parts:
                plain.append(sa.false())
            elif chunked:
                raise StoreError(
                    f"'{found.name}' cannot be searched by two lists of more than {IN_CHUNK} values"
                )
            else:
                chunked = parts
        else:
            plain.append(column.is_(None) if value is None else column == value)
    yield from ([*plain, part] for part in chunked) if chunked else [plain]


def _refuse_null(table: str, column: str) -> list[Any]:
    raise StoreError(
        f"'{table}.{column}' cannot be searched by a list with None in it; search for None by itself"
    )
