"""Stores of every schema revision: upgraded, queried and reported from, on both databases."""

from __future__ import annotations

import copy
import gzip
import json
import shutil
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import stores

from lowrank.cli.main import run
from lowrank.errors import StoreError
from lowrank.report import write
from lowrank.store import Store, migrate, queries
from lowrank.store.engine import parse_url
from lowrank.store.records import DownstreamItem, Study
from lowrank.store.rows import record_types

HEAD = stores.revisions()[-1]
ARCHIVED = stores.archived_revisions()
BACKENDS = ["sqlite", pytest.param("postgresql", marks=pytest.mark.postgres)]
LITERATURE = "published_value"  # an upgrade loads the values that came with later versions
MAIN_TABLE = "perplexity.csv"
SAMPLE: dict[str, Any] = {
    "study": stores.STUDY,
    "metric": "ccbh",
    "quantity": "validation_perplexity",
    "method": "cola",
}
METRIC_OF = {"full_rank_differences": "validation_loss", "seed_variability": "validation_loss"}


@dataclass(frozen=True)
class Upgraded:
    """An archive restored on one database and upgraded, with what was seen on the way."""

    revision: str
    backend: str
    url: str
    refusal: str  # what opening it said before the upgrade; '' where it opened
    moved: tuple[str | None, str]
    before: stores.Content


def refusal(url: str) -> str:
    try:
        Store.open(url, read_only=True).close()
    except StoreError as error:
        return str(error)
    return ""


def place(revision: str, backend: str, folder: Path, server: Any) -> str:
    """Restore an archive on a database of either kind; return its URL."""
    url = stores.restore(revision, folder)
    if backend == "sqlite":
        return url
    target = str(server.create_database())
    stores.create_at(target, revision)
    stores.copy_rows(url, target)
    return target


@pytest.fixture(scope="module", params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> str:
    """Name one kind of database."""
    return str(request.param)


@pytest.fixture(scope="module", params=ARCHIVED)
def upgraded(
    request: pytest.FixtureRequest, backend: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Upgraded]:
    """Upgrade each archive on each kind of database, once for all tests, which only read it."""
    revision = request.param
    server = request.getfixturevalue("postgres_server") if backend == "postgresql" else None
    url = place(revision, backend, tmp_path_factory.mktemp("store"), server)
    refused = refusal(url)
    before = stores.content_of(url, stores.manifest(revision))
    moved = migrate.upgrade(parse_url(url))
    yield Upgraded(revision, backend, url, refused, moved, before)
    if server is not None:
        server.drop_database(url)


@pytest.fixture(scope="module")
def answers() -> dict[str, stores.Answers]:
    """Read the archived answers once."""
    return stores.expected_answers()


def test_every_revision_has_an_archive() -> None:
    lacking = sorted(set(stores.revisions()) - set(ARCHIVED))
    assert not lacking, (
        f"the schema revision {lacking[0]} has no archived store; make it with: {stores.REGENERATE}"
    )
    strange = sorted(set(ARCHIVED) - set(stores.revisions()))
    assert not strange, (
        f"an archived store has the revision {strange[0]}, which migrations/versions does not have"
    )
    assert set(stores.expected_answers()) == set(ARCHIVED)
    assert max(stores.archive(revision).stat().st_size for revision in ARCHIVED) < 300_000  # bytes


@pytest.mark.parametrize("revision", ARCHIVED)
def test_an_archive_is_what_its_manifest_says(revision: str, tmp_path: Path) -> None:
    url = stores.restore(revision, tmp_path)
    assert stores.described(url) == stores.manifest(revision)
    with stores.connected(url) as connection:
        assert migrate.current(connection) == revision


def test_the_archive_has_rows_of_every_kind(tmp_path: Path) -> None:
    stores.restore(HEAD, tmp_path)
    connection = sqlite3.connect(tmp_path / f"store_{HEAD}.db")

    def distinct(table: str, column: str) -> set[str]:
        return {value for (value,) in connection.execute(f"SELECT DISTINCT {column} FROM {table}")}

    found = stores.manifest(HEAD)
    assert len(found) == len(record_types())
    assert {name: table["rows"] for name, table in found.items() if not table["rows"]} == {}
    assert distinct("run", "status") == {"planned", "running", "done", "failed", "cancelled"}
    assert distinct("run", "kind") == {"trained", "imported"}
    assert distinct("checkpoint", "kind") == {"initial", "training", "final", "imported"}
    assert distinct("metric_value", "value_kind") == {"finite", "nan", "inf", "-inf", "absent"}
    assert {"nan", "inf", "absent"} <= distinct("metric_value", "standard_error_kind")
    assert distinct("work_unit", "status") == {"claimed", "failed"}
    absent = "SELECT count(*) FROM metric_value WHERE value_kind = 'absent' AND note <> ''"
    assert connection.execute(absent).fetchone()[0] > 0
    connection.close()


def test_an_older_store_names_the_command(upgraded: Upgraded) -> None:
    if upgraded.revision == HEAD:
        assert upgraded.refusal == ""
    else:
        assert f"older schema {upgraded.revision}, this lowrank needs {HEAD}" in upgraded.refusal
        assert upgraded.refusal.endswith("lowrank db upgrade")
        assert "\n" not in upgraded.refusal


def test_an_upgrade_reaches_the_newest_schema_without_drift(upgraded: Upgraded) -> None:
    assert upgraded.moved == (upgraded.revision, HEAD)
    migrate.check(parse_url(upgraded.url))


def test_an_upgrade_keeps_every_row(upgraded: Upgraded) -> None:
    shape = stores.manifest(upgraded.revision)
    for table, rows in upgraded.before.items():
        assert (len(rows), stores.digest(rows)) == (shape[table]["rows"], shape[table]["sha256"]), (
            table
        )
    after = stores.content_of(upgraded.url, shape)
    after[LITERATURE] = {key: after[LITERATURE][key] for key in upgraded.before[LITERATURE]}
    for table, rows in upgraded.before.items():
        assert after[table] == rows, table


def test_a_new_row_gets_an_id_of_its_own(upgraded: Upgraded) -> None:
    """The counters of ids go on after the copied rows, and every column that an upgrade added has a
    value.
    """
    with Store.open(upgraded.url) as store, pytest.raises(Undo), store.transaction():
        for record_type in record_types():
            assert store.count(record_type) == len(store.find(record_type))
        study = store.add(Study(name="another", config={}, config_hash=""))
        assert study.id is not None
        assert study.id > 1
        raise Undo


class Undo(Exception):  # noqa: N818  (no error: it takes a transaction back)
    """Take back what a test wrote."""


def parameters(query: queries.Query, items: list[int]) -> dict[str, Any]:
    """Choose a value for each parameter that must be given."""
    first, *_, last = items
    sample = {
        **SAMPLE,
        "a": first,
        "b": last,
        "metric": METRIC_OF.get(query.name, SAMPLE["metric"]),
    }
    wanted = [p.name for p in query.parameters if p.required]
    unknown = [name for name in wanted if name not in sample]
    assert not unknown, f"the query '{query.name}' needs '{unknown[0]}'; give a value in SAMPLE"
    return {name: sample[name] for name in wanted}


def test_every_named_query_runs(upgraded: Upgraded) -> None:
    with Store.open(upgraded.url, read_only=True) as store:
        items = sorted({item.checkpoint_id for item in store.iterate(DownstreamItem)})
        for name in queries.names():
            query = queries.get(name)
            columns, rows = query.run(store, parameters(query, items))
            assert len(set(columns)) == len(columns), name
            assert rows, name


def test_answers_are_the_archived_ones(
    upgraded: Upgraded, answers: dict[str, stores.Answers]
) -> None:
    expected = answers[upgraded.revision]
    assert set(expected) == {*stores.ASKED, stores.STATUS}
    assert list(stores.unlike(expected, stores.answers_of(upgraded.url))) == []


def test_study_status_tells_the_runs(
    upgraded: Upgraded, answers: dict[str, stores.Answers], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["study", "status", str(stores.STUDY_FILE), "--json", "--db", upgraded.url]) == 0
    shown = json.loads(capsys.readouterr().out)
    expected = answers[upgraded.revision][stores.STATUS]
    for name in (
        "method",
        "scale",
        "seed",
        "status",
        "step",
        "checkpoints",
        "metric_values",
        "error",
    ):
        place = expected["columns"].index(name)
        assert [row[name] for row in shown] == [row[place] for row in expected["rows"]], name
    states = {row["status"] for row in shown}
    assert states == {"planned", "running", "done", "failed", "cancelled"}


@pytest.fixture(scope="module")
def main_table(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Give the main table of the report of the newest archive."""
    folder = tmp_path_factory.mktemp("report")
    return reported(stores.restore(HEAD, folder), folder / "report")


@pytest.mark.parametrize("revision", ARCHIVED)
def test_the_report_shows_the_same_main_table(
    revision: str, main_table: str, tmp_path: Path
) -> None:
    lines = [line.split(",") for line in main_table.splitlines()]
    assert [line[1] for line in lines].count("full_rank") == 2
    if revision != HEAD:
        url = stores.restore(revision, tmp_path)
        migrate.upgrade(parse_url(url))
        assert reported(url, tmp_path / "report") == main_table


@pytest.mark.postgres
def test_the_report_on_postgresql_shows_the_same_main_table(
    main_table: str, tmp_path: Path, postgres_server: Any
) -> None:
    url = place(ARCHIVED[0], "postgresql", tmp_path, postgres_server)
    migrate.upgrade(parse_url(url))
    assert reported(url, tmp_path / "report") == main_table
    postgres_server.drop_database(url)


def reported(url: str, out: Path) -> str:
    """Write the report as the command does; return its main table.

    PNG and PDF files stay empty: they take most of the time, and no row reaches them but through
    the SVG files.
    """
    with pytest.MonkeyPatch.context() as patch, Store.open(url, read_only=True) as store:
        for kind in ("png", "pdf"):
            patch.setattr(f"lowrank.report.writing.{kind}", lambda _figure: b"")
        write(store, stores.STUDY, out, progress=False)
    assert stores.STUDY in (out / "index.html").read_text(encoding="utf-8")
    return (out / "tables" / MAIN_TABLE).read_text(encoding="utf-8")


def test_todays_code_stores_what_is_archived() -> None:
    old, new = stores.archived(), stores.current()
    assert old is not None, (
        f"the schema revision {HEAD} has no archived store; make it with: {stores.REGENERATE}"
    )
    assert list(stores.differences(old, new)) == [], f"where that is meant: {stores.REGENERATE}"


def test_differences_are_named() -> None:
    old = stores.archived()
    assert old is not None
    new = copy.deepcopy(old)
    new.answers[HEAD] = copy.deepcopy(new.answers[HEAD])  # equal answers are one object
    (key, values), (other, _) = list(new.content["run"].items())[:2]
    new.content["run"][key] = values.replace("done", "failed")
    del new.content["run"][other]
    answer = new.answers[HEAD]["perplexity"]
    answer["rows"][0][answer["columns"].index("perplexity")] *= 1 + 1e-9
    found = list(stores.differences(old, new))
    assert len(found) == 3
    assert any(other in line and "only in the archive" in line for line in found)
    assert any("'perplexity', row 0: perplexity" in line for line in found)


def test_a_column_more_is_no_difference_and_one_less_is(answers: dict[str, stores.Answers]) -> None:
    old = answers[HEAD]
    new = copy.deepcopy(old)
    wide = new["features"]
    for row in (wide["columns"], *wide["rows"]):
        row.insert(20, "new")
    assert list(stores.unlike(old, new)) == []
    assert list(stores.unlike(new, old)) == ["'features' has other columns: ['new']"]
    wide["columns"][8:10] = wide["columns"][9:7:-1]
    assert list(stores.unlike(old, new)) == ["'features' has other columns: in another order"]


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE metric_value SET value = value + 1e-9 WHERE value = 12.5",
        "DELETE FROM work_unit WHERE id = 1",
        "UPDATE prediction SET checkpoint_id = 3 WHERE id = 1",
    ],
)
def test_a_changed_row_changes_the_hash(change: str, tmp_path: Path) -> None:
    url = stores.restore(HEAD, tmp_path)
    connection = sqlite3.connect(tmp_path / f"store_{HEAD}.db")
    with connection:
        assert connection.execute(change).rowcount == 1
    connection.close()
    found, expected = stores.described(url), stores.manifest(HEAD)
    assert sum(found[table] != expected[table] for table in expected) == 1


def test_a_lost_column_is_named(tmp_path: Path) -> None:
    url = stores.restore(HEAD, tmp_path)
    connection = sqlite3.connect(tmp_path / f"store_{HEAD}.db")
    connection.execute("ALTER TABLE downstream_score DROP COLUMN chance")
    connection.close()
    with pytest.raises(KeyError, match=r"'downstream_score' has no column 'chance'"):
        stores.content_of(url, stores.manifest(HEAD))


def test_writing_leaves_older_archives_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where they are damaged; only what is missing is derived, and equal rows leave the newest
    as it is.
    """
    folder = tmp_path / "stores"
    shutil.copytree(stores.FOLDER, folder)
    monkeypatch.setattr(stores, "FOLDER", folder)
    monkeypatch.setattr(stores, "ANSWERS", folder / "answers.json")
    old = stores.archived()
    assert old is not None
    first, second = ARCHIVED[:2]
    stores.archive(first).write_bytes(b"damaged")
    stores.archive(second).unlink()
    kept = stores.archive(HEAD).read_bytes()
    stores.write(old)
    assert stores.archive(first).read_bytes() == b"damaged"
    assert stores.archive(HEAD).read_bytes() == kept
    assert gzip.decompress(stores.archive(second).read_bytes())
    url = stores.restore(second, tmp_path)
    assert stores.described(url) == stores.manifest(second)
    assert stores.expected_answers() == old.answers
