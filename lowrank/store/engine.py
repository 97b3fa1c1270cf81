"""Engines for the two databases: how URLs are read and shown, and how connections behave.

SQLite runs with a write-ahead log, so readers never wait for a writer, and every writing
transaction takes the write lock at once (``BEGIN IMMEDIATE``): a transaction that reads first and
writes later would fail with 'database is locked' whatever the timeout.
"""

from __future__ import annotations

import json
import math
import os
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote

import sqlalchemy as sa
from sqlalchemy.engine import URL, Connection, Engine, make_url
from sqlalchemy.exc import (
    ArgumentError,
    DBAPIError,
    DisconnectionError,
    NoSuchModuleError,
    OperationalError,
    SQLAlchemyError,
)
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from lowrank import logs
from lowrank.errors import StoreAwayError, StoreError

LOCK_TIMEOUT = 30.0  # seconds that a writer waits for another one on SQLite
CONNECT_TIMEOUT = 10  # seconds that PostgreSQL has to answer
IDLE = 1.0  # seconds after which an idle connection is tested before it is used
SECRET_PARAMETERS = ("password", "sslpassword", "passfile")
MASK = "***"
# Conditions that may be fixed while a call is retried.
PASSING = (
    "database is locked",
    "disk is full",
    "disk I/O error",
    "No space left on device",
)
UNREACHABLE = (
    "connection failed",
    "connection is bad",
    "unable to open database",
    "connection timeout",
    "failed to resolve host",
)
# Beginnings of SQLSTATE: connection exceptions; a server that stops, crashed or starts.
BROKEN_OFF = ("08", "57P0")
to_json = partial(
    json.dumps, allow_nan=False, sort_keys=True
)  # nan is not valid JSON in PostgreSQL
_READABLE = {
    sqlite3.SQLITE_SELECT,
    sqlite3.SQLITE_READ,
    sqlite3.SQLITE_FUNCTION,
    sqlite3.SQLITE_RECURSIVE,
    sqlite3.SQLITE_TRANSACTION,
}
_READABLE_PRAGMAS = {
    "table_info",
    "table_xinfo",
    "table_list",
    "index_list",
    "index_info",
    "foreign_key_list",
    "read_uncommitted",
}


def parse_url(text: str | os.PathLike[str]) -> URL:
    """Return a SQLAlchemy URL for a URL or for the path of an SQLite file; hide its passwords from
    the log.
    """
    text = os.fspath(text)
    if "://" not in text:
        return URL.create("sqlite", database=text)
    url = _parsed(text)
    logs.hide(*secrets(url))
    if url.drivername in ("postgresql", "postgres"):
        url = url.set(drivername="postgresql+psycopg")
    if url.drivername not in ("sqlite", "sqlite+pysqlite", "postgresql+psycopg"):
        raise StoreError(
            f"the database '{url.drivername}' is not supported; use sqlite:///FILE or postgresql://USER@HOST/NAME"
        )
    if url.get_backend_name() == "sqlite" and (url.database or ":memory:") == ":memory:":
        raise StoreError(
            "a store in memory would be gone with its process; give a file: sqlite:///FILE"
        )
    return url


def _parsed(text: str) -> URL:
    try:
        return make_url(text)
    except (ArgumentError, ValueError) as error:
        raise StoreError(
            "the database URL cannot be read; expected sqlite:///FILE or postgresql://USER@HOST/NAME"
        ) from error


def mask(url: URL) -> str:
    """Return ``url`` as text without any password, for messages."""
    hidden = {key: MASK for key in url.query if key.lower() in SECRET_PARAMETERS}
    return url.update_query_dict(hidden).render_as_string(hide_password=True)


def secrets(url: URL) -> list[str]:
    """Return the passwords in ``url``."""
    given = [
        url.password,
        *(value for key, value in url.query.items() if key.lower() in SECRET_PARAMETERS),
    ]
    return [str(secret) for secret in given if secret]


@contextmanager
def translated(url: URL) -> Iterator[None]:
    """Raise the errors of SQLAlchemy and of the drivers as a StoreError of one sentence that names
    the database, its password masked.
    """
    try:
        yield
    except SQLAlchemyError as error:
        reason = one_line(error.orig if isinstance(error, DBAPIError) else error)
        for secret in secrets(url):
            reason = reason.replace(secret, MASK)
        if "database is locked" in reason:
            reason += (
                f" (others wrote for {LOCK_TIMEOUT:.0f} seconds; for many writers use PostgreSQL)"
            )
        unreachable = _is_unreachable(error)
        kind = (
            StoreAwayError if unreachable or any(sign in reason for sign in PASSING) else StoreError
        )
        what = "cannot reach" if unreachable else "refused by"
        raise kind(f"{what} the database {mask(url)}: {reason}") from (
            None if secrets(url) else error
        )


def one_line(error: BaseException | None) -> str:
    """Return the message of an error as one line."""
    return (
        "; ".join(part.strip() for part in str(error).splitlines() if part.strip())
        or type(error).__name__
    )


def _is_unreachable(error: Exception) -> bool:
    if isinstance(error, PoolTimeoutError):
        return True
    if not isinstance(error, DBAPIError):
        return False
    return (
        error.connection_invalidated
        or _is_broken_off(error)
        or any(sign in str(error) for sign in UNREACHABLE)
    )


def _is_broken_off(error: DBAPIError) -> bool:
    """Return whether PostgreSQL closed the connection, or nothing answered (such errors have no
    SQLSTATE).

    SQLAlchemy recognises this for connections in use (``connection_invalidated``), but not for one
    that breaks while it is being opened.
    """
    state = getattr(error.orig, "sqlstate", "")
    return isinstance(error, OperationalError) and (state is None or state.startswith(BROKEN_OFF))


def create_engine(url: URL, *, read_only: bool = False, foreign_keys: bool = True) -> Engine:
    """Return an engine for ``url``; the database itself keeps the transactions of a read-only
    engine from writing.
    """
    if url.get_backend_name() == "sqlite":
        return _sqlite_engine(url, read_only, foreign_keys)
    try:
        return _postgresql_engine(url, read_only)
    except (ModuleNotFoundError, NoSuchModuleError) as error:
        raise StoreError(
            "PostgreSQL needs the driver psycopg; install it with: pip install 'lowrank[postgres]'"
        ) from error


def writing(engine: Engine) -> Engine:
    """Return the same engine, whose transactions take SQLite's write lock as they begin."""
    return engine.execution_options(lowrank_writes=True)


def single(engine: Engine) -> Engine:
    """Return the same engine for single statements, on PostgreSQL without BEGIN and COMMIT: one
    round trip instead of three.
    """
    return (
        engine.execution_options(isolation_level="AUTOCOMMIT")
        if engine.dialect.name == "postgresql"
        else engine
    )


def _postgresql_engine(url: URL, read_only: bool) -> Engine:
    # prepare_threshold=0: every statement of a reader is prepared, and a prepared text can hold
    # only one statement.
    connect: dict[str, Any] = {"connect_timeout": CONNECT_TIMEOUT}
    if read_only:
        connect |= {"prepare_threshold": 0, "cursor_factory": _binary_cursor()}
    engine = sa.create_engine(url, connect_args=connect, json_serializer=to_json)
    if read_only:
        _return_values_like_sqlite(engine)
    _refuse_forked(engine)
    _refuse_broken(engine)
    return engine.execution_options(postgresql_readonly=True) if read_only else engine


def _binary_cursor() -> Any:
    """Return a cursor class whose results come in PostgreSQL's binary format: for large tables of
    floats the text format takes a third of the time.
    """
    import psycopg

    class BinaryCursor(psycopg.Cursor[Any]):
        def __init__(self, *arguments: Any, **keywords: Any) -> None:
            super().__init__(*arguments, **keywords)
            self.format = psycopg.pq.Format.BINARY

    return BinaryCursor


def _return_values_like_sqlite(engine: Engine) -> None:
    """Make results those of SQLite: JSON as text, truth as 1 and 0, exact decimals as floats."""
    from psycopg.types.bool import BoolBinaryLoader
    from psycopg.types.numeric import NumericBinaryLoader
    from psycopg.types.string import TextBinaryLoader

    class Truth(BoolBinaryLoader):
        def load(self, data: Any) -> Any:
            return int(super().load(data))

    class Float(NumericBinaryLoader):
        def load(self, data: Any) -> Any:
            return float(super().load(data))

    class JsonbText(TextBinaryLoader):
        def load(self, data: Any) -> Any:
            return super().load(data[1:])  # after the byte of its version

    @sa.event.listens_for(engine, "connect")
    def register(connection: Any, _record: Any) -> None:
        loaders = {"bool": Truth, "numeric": Float, "json": TextBinaryLoader, "jsonb": JsonbText}
        for name, loader in loaders.items():
            connection.adapters.register_loader(name, loader)


def _sqlite_engine(url: URL, read_only: bool, foreign_keys: bool) -> Engine:
    connect: dict[str, Any] = {"timeout": LOCK_TIMEOUT}
    target = _read_only_url(url) if read_only else url
    engine = sa.create_engine(target, connect_args=connect, json_serializer=to_json)

    @sa.event.listens_for(engine, "connect")
    def configure(connection: sqlite3.Connection, record: Any) -> None:
        connection.isolation_level = None  # transactions begin below, not inside the driver
        # Not every build of SQLite has exp.
        connection.create_function("exp", 1, _exp, deterministic=True)
        if read_only:
            connection.set_authorizer(_only_reading)
        else:
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute("PRAGMA synchronous=NORMAL")
            connection.execute(
                "PRAGMA foreign_keys=ON" if foreign_keys else "PRAGMA foreign_keys=OFF"
            )

    @sa.event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        writes = connection.get_execution_options().get("lowrank_writes", False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")

    _refuse_forked(engine)
    return engine


def _refuse_forked(engine: Engine) -> None:
    """Make a forked process open its own connections: two processes on one socket or file lock
    would interfere.
    """

    @sa.event.listens_for(engine, "connect")
    def remember(_connection: Any, record: Any) -> None:
        record.info["pid"] = os.getpid()

    @sa.event.listens_for(engine, "checkout")
    def compare(_connection: Any, record: Any, proxy: Any) -> None:
        if record.info["pid"] != os.getpid():
            record.dbapi_connection = proxy.dbapi_connection = None
            raise DisconnectionError("opened before a fork")


def _refuse_broken(engine: Engine) -> None:
    """Test a connection before use if it has been idle for a while; testing every time would double
    the round trips.
    """

    @sa.event.listens_for(engine, "checkin")
    def remember(_connection: Any, record: Any) -> None:
        record.info["used"] = time.monotonic()

    @sa.event.listens_for(engine, "checkout")
    def ping(connection: Any, record: Any, _proxy: Any) -> None:
        if time.monotonic() - record.info.get("used", math.inf) > IDLE:
            try:
                engine.dialect.do_ping(connection)
            except engine.dialect.loaded_dbapi.Error as error:  # type: ignore[attr-defined]
                raise DisconnectionError("broken while it was idle") from error


def _exp(value: float | None) -> float | None:
    return None if value is None else math.exp(value)


def _only_reading(action: int, name: str | None, *_details: str | None) -> int:
    allowed = action in _READABLE or (action == sqlite3.SQLITE_PRAGMA and name in _READABLE_PRAGMAS)
    return sqlite3.SQLITE_OK if allowed else sqlite3.SQLITE_DENY


def _read_only_url(url: URL) -> URL:
    """Return the URL that opens the file for reading; as immutable on a medium that cannot be
    written, where there cannot be a writer either.
    """
    path = Path(str(url.database)).absolute()
    immutable = (
        not os.access(path.parent, os.W_OK) and not path.with_name(path.name + "-wal").exists()
    )
    mode = "immutable=1" if immutable else "mode=ro"
    return url.set(database=f"file:{quote(str(path))}", query={}).update_query_string(
        f"{mode}&uri=true"
    )
