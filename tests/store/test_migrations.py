"""Schema versions on both databases: up, down, up; drift; databases of another schema or none."""

from __future__ import annotations

import ast
import csv
import dataclasses
import os
import subprocess
import sys
from importlib.resources import files
from pathlib import Path

import psycopg
import pytest
import sqlalchemy as sa
from alembic.script import ScriptDirectory

from lowrank.errors import StoreAwayError, StoreError
from lowrank.store import Store, migrate, schema
from lowrank.store.engine import create_engine, parse_url, translated, writing
from lowrank.store.records import PublishedValue, Study
from lowrank.store.rows import codec, record_types

CHECKOUT = Path(__file__).parents[2]
REVISIONS = sorted(Path(str(files("lowrank.migrations.versions"))).glob("[0-9]*.py"))


def execute(url: str, *statements: str) -> None:
    engine = create_engine(parse_url(url))
    with writing(engine).begin() as connection:
        for statement in statements:
            connection.execute(sa.text(statement))
    engine.dispose()


def names(url: str) -> set[str]:
    engine = create_engine(parse_url(url))
    with engine.connect() as connection:
        inspector = sa.inspect(connection)
        found = {*inspector.get_table_names(), *inspector.get_view_names()}
    engine.dispose()
    return found


def test_up_down_up(empty_url: str) -> None:
    url = parse_url(empty_url)
    views = {
        "checkpoint_view",
        "metric_view",
        "pair_view",
        "primary_metric_view",
        "current_run_view",
    }
    expected = {*schema.Base.metadata.tables, "alembic_version", *views}
    assert migrate.upgrade(url) == (None, migrate.head())
    assert names(empty_url) == expected
    migrate.check(url)
    assert migrate.downgrade(url, "base") == (migrate.head(), None)
    assert names(empty_url) == {"alembic_version"}
    assert migrate.upgrade(url) == (None, migrate.head())
    assert names(empty_url) == expected
    migrate.check(url)


def test_there_is_one_head() -> None:
    assert ScriptDirectory.from_config(migrate._config(None)).get_heads() == [migrate.head()]


@pytest.mark.parametrize("path", REVISIONS, ids=lambda path: path.stem)
def test_revisions_import_only_alembic_and_sqlalchemy(path: Path) -> None:
    imported = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            imported |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported.add((node.module or ".").partition(".")[0])
    assert imported <= {"__future__", "typing", "alembic", "sqlalchemy"}


@pytest.mark.parametrize("record_type", record_types(), ids=lambda cls: cls.__name__)
def test_columns_are_the_fields_of_the_records(record_type: type) -> None:
    table = schema.Base.metadata.tables[codec(record_type).name]
    fields = {field.name: field for field in dataclasses.fields(record_type)}
    kinds = {name for name in table.c.keys() if name.endswith("_kind")}  # noqa: SIM118 (a column collection)
    assert set(table.c.keys()) - kinds - {"reference_key"} == set(fields)
    assert {kind.removesuffix("_kind") for kind in kinds} <= set(fields)
    for name, field in fields.items():
        optional = "None" in str(field.type) and name != "id"
        assert table.c[name].nullable == (optional or f"{name}_kind" in kinds), name
    unique = next(c for c in table.constraints if isinstance(c, sa.UniqueConstraint))
    expected = [
        "reference_key" if name == "reference_checkpoint_id" else name for name in record_type.key
    ]
    assert [column.name for column in unique.columns] == expected


@pytest.mark.parametrize(
    "change",
    [
        "ALTER TABLE study ADD COLUMN colour VARCHAR",
        "CREATE TABLE extra (a INTEGER)",
        "DROP INDEX ix_metric_value_metric_layer_module",
    ],
)
def test_check_finds_drift(store: Store, store_url: str, change: str) -> None:
    execute(store_url, change)
    with pytest.raises(StoreError, match="models and migrations differ"):
        migrate.check(parse_url(store_url))


def test_published_values_are_loaded_once(empty_url: str) -> None:
    text = files("lowrank").joinpath("presets", "published.csv").read_text()
    expected = sum(1 for _ in csv.DictReader(text.splitlines()))
    for _ in range(2):
        migrate.upgrade(parse_url(empty_url))
        with Store.open(empty_url) as store:
            values = store.find(PublishedValue)
            assert len(values) == expected > 250
    perplexity = [
        v
        for v in values
        if v.quantity == "validation_perplexity" and (v.scale, v.method) == ("60m", "full_rank")
    ]
    assert [(v.value, v.source_table) for v in perplexity] == [(34.12, "1")]


def test_an_empty_database_is_made_on_request_only(empty_url: str) -> None:
    with pytest.raises(StoreError, match="lowrank db upgrade"):
        Store.open(empty_url)
    with Store.open(empty_url, create=True) as store:
        store.add(Study(name="demo", config={}, config_hash=""))
    with Store.open(empty_url, create=True) as store:
        assert store.count(Study) == 1


@pytest.mark.parametrize("create", [False, True])
def test_an_older_schema_names_the_command(
    store_url: str, monkeypatch: pytest.MonkeyPatch, create: bool
) -> None:
    monkeypatch.setattr(migrate, "_known", lambda: ["9999", REVISIONS[-1].name[:4]])
    with pytest.raises(
        StoreError,
        match=rf"older schema {REVISIONS[-1].name[:4]}, this lowrank needs 9999; .*lowrank db upgrade",
    ):
        Store.open(store_url, create=create)


@pytest.mark.parametrize("create", [False, True])
def test_a_newer_schema_asks_to_upgrade_lowrank(store_url: str, create: bool) -> None:
    execute(store_url, "UPDATE alembic_version SET version_num = '9999'")
    with pytest.raises(StoreError, match=r"schema 9999, which this lowrank .* upgrade lowrank"):
        Store.open(store_url, create=create)
    with pytest.raises(StoreError, match="upgrade lowrank"):
        migrate.upgrade(parse_url(store_url))


def test_a_revision_that_is_not_known_is_refused(store_url: str) -> None:
    with pytest.raises(StoreError, match=r"no schema '0815'; known: base, .*0001"):
        migrate.downgrade(parse_url(store_url), "0815")


def test_a_failed_upgrade_leaves_nothing(empty_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_connection: object) -> int:
        raise StoreError("the values cannot be read")

    monkeypatch.setattr(migrate, "load_published", fail)
    with pytest.raises(StoreError, match="cannot be read"):
        migrate.upgrade(parse_url(empty_url))
    assert names(empty_url) == set()


def test_many_processes_may_create_one_store(empty_url: str) -> None:
    program = (
        "import sys; from lowrank.store import Store; Store.open(sys.argv[1], create=True).close()"
    )
    started = [
        subprocess.Popen(
            [sys.executable, "-c", program, empty_url], stderr=subprocess.PIPE, text=True
        )
        for _ in range(4)
    ]
    assert [process.communicate()[1] for process in started] == [""] * 4
    with Store.open(empty_url) as store:
        assert store.count(PublishedValue) > 250


SECRET = "hunter2"


@pytest.mark.parametrize(
    "url",
    [
        f"postgresql://me:{SECRET}@127.0.0.1:1/lowrank",
        f"postgresql://me@127.0.0.1:1/lowrank?password={SECRET}",
        f"postgres://me:{SECRET}@no-such-host.invalid/lowrank",
    ],
)
@pytest.mark.parametrize("create", [False, True])
def test_an_unreachable_server_keeps_the_password(url: str, create: bool) -> None:
    with pytest.raises(StoreError, match=r"cannot reach the database postgresql") as caught:
        Store.open(url, create=create)
    shown = "".join(
        str(e) for e in (caught.value, caught.value.__cause__, caught.value.__context__) if e
    )
    assert SECRET not in str(caught.value)
    assert "\n" not in str(caught.value)
    assert SECRET not in shown


def test_a_password_in_the_words_of_a_driver_is_masked() -> None:
    url = parse_url(f"postgresql://me:{SECRET}@host/x")
    with pytest.raises(StoreError) as caught, translated(url):
        raise sa.exc.OperationalError("SELECT 1", {}, Exception(f"cannot use password={SECRET}"))
    assert "password=***" in str(caught.value)
    assert SECRET not in str(caught.value)
    assert caught.value.__suppress_context__


@pytest.mark.parametrize(
    ("error", "away"),
    [
        (
            psycopg.OperationalError(
                "consuming input failed: server closed the connection unexpectedly"
            ),
            True,
        ),
        (psycopg.errors.AdminShutdown("terminating connection due to administrator command"), True),
        (psycopg.errors.CannotConnectNow("the database system is starting up"), True),
        (psycopg.errors.ConnectionFailure("connection lost"), True),
        (psycopg.errors.QueryCanceled("canceling statement due to user request"), False),
        (psycopg.errors.UndefinedTable("no such table"), False),
    ],
)
def test_a_server_that_breaks_off_is_away(error: psycopg.Error, away: bool) -> None:
    wrapper = (
        sa.exc.OperationalError
        if isinstance(error, psycopg.OperationalError)
        else sa.exc.ProgrammingError
    )
    with pytest.raises(StoreError) as caught, translated(parse_url("postgresql://me@host/x")):
        raise wrapper("SELECT 1", {}, error)
    assert isinstance(caught.value, StoreAwayError) == away


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("mysql://me@host/x", "'mysql' is not supported"),
        ("sqlite://", "in memory"),
        ("://nothing", "cannot be read"),
    ],
)
def test_urls_that_cannot_be(url: str, message: str) -> None:
    with pytest.raises(StoreError, match=message):
        Store.open(url, create=True)


def test_files_that_are_no_store(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"no store at .*lowrank db upgrade"):
        Store.open(tmp_path / "missing.db")
    assert not (tmp_path / "missing.db").exists()
    with pytest.raises(StoreError, match="is a folder"):
        Store.open(tmp_path, create=True)
    (tmp_path / "text.db").write_text(
        "a letter to a friend, longer than the header of a database file\n" * 20
    )
    with pytest.raises(StoreError, match="not a database"):
        Store.open(tmp_path / "text.db")
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match=r"folder .* cannot be made"):
        Store.open(tmp_path / "file" / "sub" / "lowrank.db", create=True)


@pytest.mark.parametrize("name", ["a b.db", "50%20#1?.db", "größe.sqlite"])
def test_file_names_are_only_names(tmp_path: Path, name: str) -> None:
    with Store.open(tmp_path / name, create=True) as store:
        store.add(Study(name="demo", config={}, config_hash=""))
        assert store.select("SELECT name FROM study") == (["name"], [("demo",)])
    with Store.open(tmp_path / name, read_only=True) as store:
        assert store.count(Study) == 1
    assert {path.name.removesuffix("-wal").removesuffix("-shm") for path in tmp_path.iterdir()} == {
        name
    }


def test_the_alembic_command_works_at_a_checkout(tmp_path: Path) -> None:
    environment = {**os.environ, "LOWRANK_DATABASE_URL": f"sqlite:///{tmp_path}/scratch.db"}
    for command in ("upgrade head", "check", "downgrade base"):
        call = [sys.executable, "-m", "alembic", *command.split()]
        done = subprocess.run(call, cwd=CHECKOUT, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    assert names(environment["LOWRANK_DATABASE_URL"]) == {"alembic_version"}
