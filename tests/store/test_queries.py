"""Named queries: headers, parameters, the same answers on both databases, frames."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import lowrank
from lowrank.errors import StoreError, UsageError
from lowrank.store import Store, queries, records

REQUIRED: dict[str, Any] = {
    "study": "demo",
    "metric": "ccbh",
    "quantity": "validation_perplexity",
    "a": 2,
    "b": 2,
    "method": "cola",
}


@pytest.fixture
def full(store: Store, populate: Callable[..., None]) -> Store:
    """A store with rows in every table."""
    populate(store)
    return store


def required(query: queries.Query) -> dict[str, Any]:
    return {
        parameter.name: REQUIRED[parameter.name]
        for parameter in query.parameters
        if parameter.required
    }


@pytest.fixture(scope="module")
def both(
    tmp_path_factory: pytest.TempPathFactory,
    postgres_server: Any,
    postgres_template: str,
    populate: Callable[..., None],
) -> Iterator[tuple[Store, Store]]:
    """The same rows in SQLite and in PostgreSQL, for tests that only read."""
    url = postgres_server.create_database(postgres_template)
    with (
        Store.open(tmp_path_factory.mktemp("both") / "lowrank.db", create=True) as one,
        Store.open(url) as other,
    ):
        populate(one)
        populate(other)
        yield one, other
    postgres_server.drop_database(url)


@pytest.mark.parametrize("name", queries.names())
def test_every_query_answers_alike_on_both_databases(both: tuple[Store, Store], name: str) -> None:
    query = queries.get(name)
    (columns, rows), others = (query.run(store, required(query)) for store in both)
    assert repr((columns, rows)) == repr(others)
    assert len(set(columns)) == len(columns)
    assert rows or name in EMPTY_IN_THE_SAMPLE
    strange = {
        p.name: {"text": "no such", "integer": 1, "real": 1.0}[p.type] for p in query.parameters
    }
    for store in both:
        assert not strange or query.run(store, strange)[1] == []


# no layers, one seed, one method; tests/report and tests/evaluate fill them
EMPTY_IN_THE_SAMPLE = {"downstream_methods", "layer_values", "seed_variability"}


def test_perplexity_stands_beside_the_published_one(full: Store) -> None:
    columns, rows = queries.get("perplexity").run(full, {"study": "demo"})
    found = {row[columns.index("method")]: dict(zip(columns, row, strict=True)) for row in rows}
    assert set(found) == {"full_rank", "galore"}
    assert found["galore"]["perplexity"] == pytest.approx(math.exp(3.0))
    assert found["galore"]["published_perplexity"] == 34.91
    assert found["galore"]["difference"] == pytest.approx(math.exp(3.0) - 34.91)


def test_status_counts_measured_checkpoints(full: Store) -> None:
    columns, rows = queries.get("status").run(full, {})
    row = dict(zip(columns, rows[0], strict=True))
    assert (row["checkpoints"], row["last_step"], row["lens"], row["measured"]) == (
        2,
        2,
        "spectral",
        1,
    )


def test_a_pair_is_seen_from_both_ends(full: Store) -> None:
    one, other = [c for c in full.find(records.Checkpoint) if c.step == 2]
    protocol = full.find(records.Protocol)[0]
    keys = {
        "checkpoint_id": one.id or 0,
        "reference_checkpoint_id": other.id,
        "protocol_id": protocol.id or 0,
    }
    full.add_all(
        [
            records.MetricValue(**keys, metric="imbh", value=0.5),
            records.MetricValue(**keys, metric="activation_l2", value=2.0),
        ]
    )
    _, rows = full.select(
        "SELECT metric, method, other_method, value FROM pair_view ORDER BY metric, method"
    )
    assert rows == [
        ("activation_l2", "full_rank", "galore", 2.0),
        ("imbh", "full_rank", "galore", 0.5),
        ("imbh", "galore", "full_rank", 0.5),
    ]


@pytest.mark.parametrize(
    ("name", "given", "message"),
    [
        ("perplexty", {}, "unknown query 'perplexty'; did you mean 'perplexity'"),
        ("perplexity", {"stdy": "x"}, "has no parameter 'stdy'; did you mean 'study'"),
        ("metric_trajectory", {}, "needs the parameter 'metric'"),
        ("checkpoints", {"seed": "many"}, "'seed' is an integer, not 'many'"),
        ("checkpoints", {"seed": 1.5}, "'seed' is an integer, not 1.5"),
        ("checkpoints", {"seed": True}, "'seed' is an integer, not True"),
        ("checkpoints", {"study": 3}, "'study' is a text, not 3"),
    ],
)
def test_wrong_parameters_are_named(
    sqlite_store: Store, name: str, given: dict[str, object], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        queries.get(name).run(sqlite_store, given)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("SELECT 1", "header"),
        ("-- description: a\n-- note: b\nSELECT 1", "header"),
        ("-- description: a\n-- param: x string\nSELECT :x", "is malformed"),
        ("-- description: a\n-- param: x text\nSELECT 1", "'x' is declared or used"),
        ("-- description: a\nSELECT :y", "'y' is declared or used"),
    ],
)
def test_headers_that_are_wrong_are_named(text: str, message: str) -> None:
    with pytest.raises(StoreError, match=rf"sql/mine\.sql: .*{message}"):
        queries.parse("mine", text)


def test_defaults_have_the_declared_type() -> None:
    text = (
        "-- description: a\n-- param: a integer default -2\n-- param: b text default 'x'\n-- param: c real default 0.5\n"
        "-- param: d integer default null\nSELECT :a, :b, :c, :d"
    )
    query = queries.parse("mine", text)
    assert query.bind({}) == {"a": -2, "b": "x", "c": 0.5, "d": None}
    assert query.bind({"a": "3", "c": 1, "d": np.int64(7)}) == {"a": 3, "b": "x", "c": 1.0, "d": 7}


def test_open_gives_frames(full: Store, store_url: str) -> None:
    with lowrank.open(store_url) as view:
        frame = view.query("metric_trajectory", metric="metric_2", study="demo")
        assert frame["value"].tolist() == [math.inf, math.inf]
        assert frame["value_kind"].tolist() == ["inf", "inf"]
        values = view.sql(
            "SELECT value, value_kind FROM metric_value WHERE metric LIKE 'metric%' ORDER BY metric, id"
        )
        assert values["value"].tolist()[:2] == [1.0, 1.0]
        assert np.isnan(values["value"].to_numpy()[[2, 8]]).all()
        assert values["value_kind"].tolist()[2::2] == ["nan", "inf", "-inf", "absent"]
        assert view.sql("SELECT count(*) AS n FROM run WHERE method = :m", m="galore")[
            "n"
        ].tolist() == [1]
        assert "perplexity" in set(view.queries()["query"])
        with pytest.raises(StoreError):
            view.sql("DELETE FROM study")


def test_open_reads_a_file_on_a_medium_that_cannot_be_written(
    sqlite_store_url: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    with Store.open(sqlite_store_url) as store:
        store.add(records.Study(name="demo", config={}, config_hash=""))
    monkeypatch.setattr("os.access", lambda *_: False)
    before = sorted(path.name for path in tmp_path.iterdir())
    with lowrank.open(sqlite_store_url.removeprefix("sqlite:///")) as view:
        assert view.sql("SELECT name FROM study")["name"].tolist() == ["demo"]
        assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_importing_lowrank_stays_light() -> None:
    import subprocess

    program = "import sys, lowrank; print([m for m in ('torch', 'sqlalchemy', 'pandas', 'click') if m in sys.modules])"
    assert (
        subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True, check=True
        ).stdout
        == "[]\n"
    )


def test_values_have_the_types_of_sqlite_on_both_databases(store: Store) -> None:
    """A column of JSON may begin with a number or with nothing; truth, decimals and whole numbers
    are plain numbers.
    """
    casts = {
        "sqlite": """
            SELECT 1 AS place, NULL AS js, NULL AS truth, NULL AS number, 0.1 AS real UNION ALL
            SELECT 2, '3', 1, 2.5, 0.1 UNION ALL SELECT 3, '{"a": "ü"}', 0, 1e3, 0.1""",
        "postgresql": """
            SELECT 1 AS place, CAST(NULL AS json) AS js, CAST(NULL AS boolean) AS truth, CAST(NULL AS numeric) AS number,
                   CAST(0.1 AS double precision) AS real UNION ALL
            SELECT 2, '3', true, 2.5, 0.1 UNION ALL SELECT 3, '{"a": "ü"}', false, 1e3, 0.1""",
    }
    _, rows = store.select(f"SELECT * FROM ({casts[store.dialect]}) AS x ORDER BY place")
    assert rows == [
        (1, None, None, None, 0.1),
        (2, "3", 1, 2.5, 0.1),
        (3, '{"a": "ü"}', 0, 1000.0, 0.1),
    ]
    assert [type(value) for value in rows[2]] == [int, str, int, float, float]
    if store.dialect == "postgresql":
        counted = """SELECT '{"a": 1}'::jsonb AS js, count(*) AS n, sum(x) AS total FROM (VALUES (1), (2)) AS v(x)"""
        assert store.select(counted)[1] == [('{"a": 1}', 2, 3)]
