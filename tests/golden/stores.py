"""Archives of filled databases, one for each schema revision.

``stores/store_NNNN.db.gz`` is a genuine SQLite database of lowrank at revision NNNN with rows in
every table: the synthetic study of tests/report/factory.py under the fixed study file
``stores/study.yaml``, predictors fitted to it, and by ``_filled.py`` what a study that goes well
does not have: values that are nan, infinite or absent, and runs that are planned, running,
cancelled, failed, imported or superseded. ``store_NNNN.json`` is its manifest: columns, natural
key, number of rows and hash of the canonical content of each table. ``answers.json`` holds what
the named queries and ``lowrank study status`` answer once each archive is upgraded to the newest
revision.

The archive of the newest revision is written by the code of its time, and never again once a
later revision exists. Those of 0001, 0002 and 0003 were derived from that of 0004 by the
migrations' own downgrade: these revisions differ in an index and in views alone. The last code
of each of them makes the same schema to the letter, and from ``_filled.py`` the same rows, but
for the last digits of fits and, at 0001, other fingerprints of the runs.

For PostgreSQL, :func:`create_at` makes the tables at a revision and :func:`copy_rows` copies the
rows of the file.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import math
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from _filled import STUDY, STUDY_FILE, build, tidy
from alembic import command

# All that the archives need of lowrank, but for how they are filled: what moves is followed here.
from lowrank.store import Store, migrate, queries
from lowrank.store.engine import create_engine, parse_url, writing
from lowrank.study import Plan, status_rows

ARCHIVE = "stores"
HERE = Path(__file__).resolve().parent
FOLDER = HERE / "stores"
ANSWERS = FOLDER / "answers.json"
REVISIONS = HERE.parents[1] / "migrations" / "versions"
REGENERATE = "python tests/golden/regenerate.py stores --write"

STATUS = "study status"  # the answer of the command, beside those of the queries
ASKED: dict[str, dict[str, Any]] = {
    "perplexity": {"study": STUDY},
    "runs": {"study": STUDY},
    "features": {"study": STUDY},
    "metric_trajectory": {"study": STUDY, "metric": "ccbh", "method": "galore"},
}
TOLERANCE = 1e-12  # of answers, relative: an average may be summed in another order
FIT_TOLERANCE = 1e-6  # of rows made anew, relative: another BLAS gives fits other last digits

Answers = dict[str, dict[str, Any]]  # query -> {"columns": [...], "rows": [[...], ...]}
Content = dict[str, dict[str, str]]  # table -> natural key as JSON -> values as JSON
Shape = dict[str, dict[str, list[str]]]  # table -> {"key": columns, "columns": the others}


# -- the archives ----------------------------------------------------------------------------------


def revisions() -> list[str]:
    """List the schema revisions of migrations/versions, the oldest first."""
    return sorted(path.name.partition("_")[0] for path in REVISIONS.glob("[0-9]*.py"))


def archived_revisions() -> list[str]:
    """List the revisions that have an archive, the oldest first."""
    return sorted(path.name[6:-6] for path in FOLDER.glob("store_*.db.gz"))


def archive(revision: str) -> Path:
    """Give the path of the archived database of ``revision``."""
    return FOLDER / f"store_{revision}.db.gz"


def manifest(revision: str) -> dict[str, dict[str, Any]]:
    """Read the manifest of an archive: table -> key, columns, rows (a number) and sha256."""
    path = FOLDER / f"store_{revision}.json"
    found: dict[str, dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))["tables"]
    return found


def restore(revision: str, folder: Path) -> str:
    """Unpack the archive of ``revision`` into ``folder``; return the URL of the SQLite file."""
    path = folder / f"store_{revision}.db"
    path.write_bytes(gzip.decompress(archive(revision).read_bytes()))
    return f"sqlite:///{path}"


def expected_answers() -> dict[str, Answers]:
    """Read the archived answers: revision -> query -> columns and rows."""
    groups = json.loads(ANSWERS.read_text(encoding="utf-8")) if ANSWERS.exists() else []
    return {revision: group["answers"] for group in groups for revision in group["revisions"]}


# -- canonical content -----------------------------------------------------------------------------


def reflected(connection: sa.Connection) -> list[sa.Table]:
    """Reflect the tables of lowrank as the database has them, a table after those that it refers
    to.
    """
    metadata = sa.MetaData()
    metadata.reflect(connection)
    return [table for table in metadata.sorted_tables if table.name != migrate.VERSION_TABLE]


def stored_columns(table: sa.Table) -> list[sa.Column[Any]]:
    """List the columns that are written, without those that the database computes."""
    return [column for column in table.columns if column.computed is None]


def shape_of(url: str) -> Shape:
    """Read natural keys and other columns of each table from a database.

    A computed column of a key (``reference_key``) stands for the reference to a checkpoint that
    it is computed from.
    """
    found: Shape = {}
    with connected(url) as connection:
        inspector = sa.inspect(connection)
        for table in reflected(connection):
            unique = inspector.get_unique_constraints(table.name)[0]["column_names"]
            key = [str(n) if n != "reference_key" else "reference_checkpoint_id" for n in unique]
            others = [c.name for c in stored_columns(table) if c.name not in {"id", *key}]
            found[table.name] = {"key": key, "columns": sorted(others)}
    return found


def content_of(url: str, shape: Mapping[str, Mapping[str, Any]]) -> Content:
    """Read the rows of the tables and columns of ``shape``; ids are replaced by the natural keys
    that they stand for.

    Raises KeyError where a table or a column is not there.
    """
    found: Content = {}
    keys: dict[str, dict[int, list[Any]]] = {}
    with connected(url) as connection:
        tables = reflected(connection)
        missing = sorted(shape.keys() - {table.name for table in tables})
        if missing:
            raise KeyError(f"the database has no table '{missing[0]}'")
        for table in tables:
            if table.name in shape:
                found[table.name] = _rows(connection, table, shape[table.name], keys)
    return found


def _rows(
    connection: sa.Connection,
    table: sa.Table,
    shape: Mapping[str, Any],
    keys: dict[str, dict[int, list[Any]]],
) -> dict[str, str]:
    """Read one table; its own keys by id are added to ``keys``."""
    names = [*shape["key"], *shape["columns"]]
    lost = [name for name in names if name not in table.columns]
    if lost:
        raise KeyError(f"the table '{table.name}' has no column '{lost[0]}'")
    parents = {
        name: reference.column.table.name
        for name in names
        for reference in table.c[name].foreign_keys
    }
    own, rows, split = keys.setdefault(table.name, {}), {}, len(shape["key"])
    for identity, *values in connection.execute(
        sa.select(table.c.id, *(table.c[n] for n in names))
    ):
        for place, name in enumerate(names):
            if name in parents and values[place] is not None:
                values[place] = keys[parents[name]][values[place]]
        own[identity] = values[:split]
        rows[canonical(values[:split])] = canonical(values[split:])
    return rows


def canonical(value: Any) -> str:
    """Write a value as JSON that is the same for equal values."""
    return json.dumps(
        value, sort_keys=True, allow_nan=False, ensure_ascii=False, separators=(",", ":")
    )


def digest(rows: Mapping[str, str]) -> str:
    """Hash the rows of one table, whatever their order."""
    lines = "\n".join(f"{key} {rows[key]}" for key in sorted(rows))
    return hashlib.sha256(lines.encode()).hexdigest()


def described(url: str) -> dict[str, dict[str, Any]]:
    """Describe a database as a manifest does."""
    shape = shape_of(url)
    content = content_of(url, shape)
    return {
        name: {**shape[name], "rows": len(content[name]), "sha256": digest(content[name])}
        for name in sorted(shape)
    }


@contextmanager
def connected(url: str) -> Iterator[sa.Connection]:
    """Open one transaction on a database of either kind, whatever its schema."""
    engine = create_engine(parse_url(url), foreign_keys=False)
    try:
        with writing(engine).begin() as connection:
            yield connection
    finally:
        engine.dispose()


# -- the same rows on PostgreSQL -------------------------------------------------------------------


def create_at(url: str, revision: str) -> None:
    """Make the tables of ``revision`` in an empty database, and no rows."""
    with connected(url) as connection:
        command.upgrade(migrate._config(connection), revision)


def copy_rows(source: str, target: str) -> None:
    """Copy every row, ids included, between two databases of one revision; the target's counters go
    on after them.
    """
    with connected(source) as here, connected(target) as there:
        tables = {table.name: table for table in reflected(there)}
        for table in reflected(here):
            columns = stored_columns(table)
            rows = [dict(row._mapping) for row in here.execute(sa.select(*columns))]
            if rows:
                there.execute(sa.insert(tables[table.name]), rows)
            if there.dialect.name == "postgresql":
                counter = sa.func.pg_get_serial_sequence(table.name, "id")
                last = sa.select(sa.func.max(tables[table.name].c.id)).scalar_subquery()
                there.execute(sa.select(sa.func.setval(counter, last)))


# -- answers ---------------------------------------------------------------------------------------


def answers_of(url: str) -> Answers:
    """Ask a database at the newest revision what ``answers.json`` holds."""
    plan = Plan.of(STUDY_FILE)
    with Store.open(url, read_only=True) as store:
        found = {name: queries.get(name).run(store, given) for name, given in ASKED.items()}
        lines = list(status_rows(store, plan))
    found[STATUS] = (list(lines[0]), [tuple(line.values()) for line in lines])
    return {
        name: {"columns": columns, "rows": [list(row) for row in rows]}
        for name, (columns, rows) in found.items()
    }


def unlike(expected: Answers, found: Answers) -> Iterator[str]:
    """Say of each query how two answers differ, in one sentence a query; numbers agree to 12
    digits.

    Columns that ``found`` has beyond those of ``expected`` are no difference: a new metric or a
    task of the store adds one. Those that are expected have to be there, in their order.
    """
    for name in sorted(expected.keys() | found.keys()):
        old, new = expected.get(name), found.get(name)
        if old is None or new is None:
            yield f"'{name}' is answered {'now' if old is None else 'in the archive'} only"
        elif (kept := [c for c in new["columns"] if c in old["columns"]]) != old["columns"]:
            changed = sorted({*old["columns"]} - {*kept}) or "in another order"
            yield f"'{name}' has other columns: {changed}"
        elif len(old["rows"]) != len(new["rows"]):
            yield f"'{name}' has {len(old['rows'])} and {len(new['rows'])} rows"
        else:
            places = [new["columns"].index(column) for column in kept]
            rows = [[row[place] for place in places] for row in new["rows"]]
            pairs = enumerate(zip(old["rows"], rows, strict=True))
            cells = (
                (i, c, a, b) for i, p in pairs for c, a, b in zip(old["columns"], *p, strict=True)
            )
            for row, column, a, b in cells:
                if not same(a, b):
                    yield f"'{name}', row {row}: {column} is {a!r} and {b!r}"
                    break


def same(one: Any, other: Any, tolerance: float = TOLERANCE) -> bool:
    """Compare two values of JSON: floats to a relative ``tolerance``, everything else exactly."""
    if isinstance(one, float) and isinstance(other, float):
        return math.isclose(one, other, rel_tol=tolerance, abs_tol=1e-300)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(
            same(a, b, tolerance) for a, b in zip(one, other, strict=True)
        )
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(
            same(one[key], other[key], tolerance) for key in one
        )
    return type(one) is type(other) and bool(one == other)


# -- what regenerate.py calls ----------------------------------------------------------------------


@dataclass(frozen=True)
class State:
    """The content at the newest revision, and the answers of every archive; ``file``: the database,
    gzipped.
    """

    revision: str
    content: Content
    answers: dict[str, Answers]
    file: bytes


def current() -> State:
    """Build the database of the newest revision with today's code; ask it and each older archive,
    upgraded.
    """
    head = revisions()[-1]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        path = folder / "built.db"
        build(path)
        packed = gzip.compress(path.read_bytes(), 9, mtime=0)
        url = f"sqlite:///{path}"
        answers = {revision: answers_of(url) for revision in revisions()}
        for revision in archived_revisions():
            if revision != head:
                older = restore(revision, folder)
                migrate.upgrade(parse_url(older))
                answers[revision] = answers_of(older)
        return State(head, content_of(url, shape_of(url)), answers, packed)


def archived() -> State | None:
    """Read the archive of the newest revision and the archived answers; None where that revision
    has none yet.
    """
    head = revisions()[-1]
    if not archive(head).exists():
        return None
    with tempfile.TemporaryDirectory() as name:
        content = content_of(restore(head, Path(name)), manifest(head))
    return State(head, content, expected_answers(), archive(head).read_bytes())


def differences(old: State, new: State) -> Iterator[str]:
    """Say one sentence for each row and each answer that differs, the archived value first."""
    for table in sorted(old.content.keys() | new.content.keys()):
        ours, theirs = old.content.get(table, {}), new.content.get(table, {})
        for key in sorted(ours.keys() | theirs.keys()):
            if key not in ours or key not in theirs:
                yield f"{table} {key}: only {'today' if key not in ours else 'in the archive'}"
            elif not same(json.loads(ours[key]), json.loads(theirs[key]), FIT_TOLERANCE):
                yield f"{table} {key}: {ours[key]} and {theirs[key]}"
    for revision in sorted(old.answers.keys() | new.answers.keys()):
        for sentence in unlike(old.answers.get(revision, {}), new.answers.get(revision, {})):
            yield f"revision {revision}: {sentence}"


def write(new: State) -> None:
    """Write the archive of the newest revision and all answers; archives of older revisions are
    never rewritten.

    An archive with the same rows stays as it is. An older revision without an archive gets one
    by downgrade.
    """
    FOLDER.mkdir(exist_ok=True)
    old = archived()
    if old is None or old.content != new.content:
        _save(new.revision, new.file)
    for revision in sorted(set(revisions()) - set(archived_revisions())):
        with tempfile.TemporaryDirectory() as name:
            path = Path(name) / "derived.db"
            path.write_bytes(gzip.decompress(new.file))
            migrate.downgrade(parse_url(f"sqlite:///{path}"), revision)
            tidy(path)
            _save(revision, gzip.compress(path.read_bytes(), 9, mtime=0))
    groups: list[dict[str, Any]] = []
    for revision, answers in sorted(new.answers.items()):
        alike = next(
            (group for group in groups if not list(unlike(group["answers"], answers))), None
        )
        if alike is None:
            groups.append({"revisions": [revision], "answers": answers})
        else:
            alike["revisions"].append(revision)
    text = json.dumps(groups, allow_nan=False, ensure_ascii=False).replace("], [", "],\n[")
    ANSWERS.write_text(text + "\n", encoding="utf-8")


def _save(revision: str, packed: bytes) -> None:
    archive(revision).write_bytes(packed)
    with tempfile.TemporaryDirectory() as name:
        tables = described(restore(revision, Path(name)))
    lines = ",\n".join(
        f"  {json.dumps(table)}: {json.dumps(found)}" for table, found in tables.items()
    )
    text = f'{{"revision": "{revision}", "tables": {{\n{lines}\n}}}}\n'
    (FOLDER / f"store_{revision}.json").write_text(text, encoding="utf-8")
