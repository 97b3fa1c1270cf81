"""Pivots: a query's header makes a wide table of another query."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from types import ModuleType
from typing import Any

import pytest

from lowrank.errors import StoreError, UnknownNameError
from lowrank.store import Store, queries, records

HEADER = "-- description: a\n-- param: study text\n-- param: protocol text default 'exact'\n"
LINE = "-- pivot: checkpoint_metrics by checkpoint_id: metric -> value"
SELECT = """
SELECT c.step, checkpoint_metrics.*, c.checkpoint_id
FROM checkpoint_view AS c
LEFT JOIN checkpoint_metrics ON checkpoint_metrics.checkpoint_id = c.checkpoint_id
WHERE c.study = 'demo' ORDER BY c.step"""
ODD = 'it\'s a "name": 5% of :study'  # nothing in a name is read as SQL


@pytest.fixture
def measured(store: Store) -> Store:
    """Two checkpoints; of the metric ``a`` the first has two values, of an odd one the last."""
    study = store.add(records.Study(name="demo", config={}, config_hash="x"))
    run = store.add(
        records.Run(
            study_id=study.id or 0, config_hash="r", method="m", scale="s", seed=0, data_seed=0,
            init_seed=0,
        )
    )  # fmt: skip
    points = [
        store.add(
            records.Checkpoint(
                run_id=run.id or 0, step=step, kind="training", tokens_seen=0, path=f"c{step}",
                sha256=str(step), bytes=1,
            )
        )
        for step in (0, 10)
    ]  # fmt: skip
    protocol = store.add(records.Protocol(name="exact", lens="any", metric_revision=1))
    first, last = (point.id or 0 for point in points)
    for point, reference, metric, value in (
        (first, None, "a", 1.0),
        (first, last, "a", 2.0),
        (last, None, ODD, 4.0),
        (last, None, "a", None),
    ):
        store.add(
            records.MetricValue(
                checkpoint_id=point, protocol_id=protocol.id or 0, metric=metric, value=value,
                reference_checkpoint_id=reference,
            )
        )  # fmt: skip
    return store


@pytest.fixture
def declared(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """What the function ``room:columns`` gives."""
    found = {"b": "later", "a": "first"}
    room = ModuleType("room")
    room.columns = lambda: found  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "room", room)
    return found


def ask(store: Store, line: str, select: str = SELECT) -> tuple[list[str], list[Any]]:
    query = queries.parse("mine", f"{HEADER}{line}{select}")
    columns, rows = query.run(store, {"study": "demo"})
    return columns, [row[:-1] for row in rows] if columns[-1] == "checkpoint_id" else rows


def test_names_that_are_found_are_columns(measured: Store) -> None:
    columns, rows = ask(measured, LINE)
    assert columns == ["step", "a", ODD, "checkpoint_id"]
    assert rows == [(0, 1.5, None), (10, None, 4.0)]


def test_declared_names_are_columns_by_the_names_that_they_are_given(
    measured: Store, declared: Mapping[str, str]
) -> None:
    columns, rows = ask(measured, f"{LINE}, columns room:columns")
    assert columns == ["step", *declared.values(), "checkpoint_id"]
    assert rows == [(0, None, 1.5), (10, None, None)]
    columns, rows = ask(measured, f"{LINE}, columns room:columns and found")
    assert columns == ["step", *declared.values(), ODD, "checkpoint_id"]
    assert rows == [(0, None, 1.5, None), (10, None, None, 4.0)]


def test_many_names_and_few_give_the_same(measured: Store, declared: dict[str, str]) -> None:
    """They are looked up in different ways."""
    few = ask(measured, f"{LINE}, columns room:columns")[1]
    declared |= {f"name {i}": f"name {i}" for i in range(30)}
    many = ask(measured, f"{LINE}, columns room:columns")[1]
    assert [row[:3] for row in many] == few
    assert {value for row in many for value in row[3:]} == {None}


def test_mean_and_number_are_over_all_names(measured: Store, declared: Mapping[str, str]) -> None:
    select = SELECT.replace(
        "checkpoint_metrics.*,",
        "checkpoint_metrics.*, checkpoint_metrics.mean, checkpoint_metrics.n,",
    )
    columns, rows = ask(measured, f"{LINE}, columns room:columns", select)
    assert columns == ["step", *declared.values(), "mean", "n", "checkpoint_id"]
    assert rows == [(0, None, 1.5, 1.5, 2), (10, None, None, 4.0, 1)]


def test_without_a_name_there_is_no_column(measured: Store, declared: dict[str, str]) -> None:
    declared.clear()
    assert ask(measured, f"{LINE}, columns room:columns") == (
        ["step", "checkpoint_id"],
        [(0,), (10,)],
    )


def test_a_statement_may_define_tables(measured: Store) -> None:
    select = f"\nWITH one AS (SELECT 1 AS n){SELECT}".replace("c.step,", "one.n,", 1).replace(
        "WHERE", "CROSS JOIN one WHERE"
    )
    assert ask(measured, LINE, select)[1] == [(1, 1.5, None), (1, None, 4.0)]


def test_two_columns_of_one_name_are_an_error(measured: Store, declared: dict[str, str]) -> None:
    declared["a"] = "step"
    with pytest.raises(StoreError, match="'mine' has two columns 'step'; rename"):
        ask(measured, f"{LINE}, columns room:columns")


def test_wrong_lines_are_named() -> None:
    with pytest.raises(
        StoreError, match=r"sql/mine\.sql: the pivot 'x' is malformed; write it as: QUERY by"
    ):
        queries.parse("mine", f"{HEADER}-- pivot: x{SELECT}")
    with pytest.raises(UnknownNameError, match="did you mean 'checkpoint_metrics'"):
        queries.parse("mine", f"{HEADER}{LINE.replace('metrics', 'metrcs')}{SELECT}")
    with pytest.raises(StoreError, match="'protocol' is declared or used, not both"):
        queries.parse("mine", f"-- description: a\n-- param: study text\n{LINE}{SELECT}")


def test_another_study_adds_neither_column_nor_row(measured: Store) -> None:
    before = ask(measured, LINE)
    study = measured.add(records.Study(name="other", config={}, config_hash="y"))
    run = measured.add(
        records.Run(
            study_id=study.id or 0, config_hash="o", method="m", scale="s", seed=0, data_seed=0,
            init_seed=0,
        )
    )  # fmt: skip
    point = measured.add(
        records.Checkpoint(
            run_id=run.id or 0, step=0, kind="training", tokens_seen=0, path="o", sha256="o",
            bytes=1,
        )
    )  # fmt: skip
    (protocol,) = measured.find(records.Protocol)
    for metric in ("a", "elsewhere"):
        measured.add(
            records.MetricValue(
                checkpoint_id=point.id or 0, protocol_id=protocol.id or 0, metric=metric, value=9.0
            )
        )
    assert ask(measured, LINE) == before
    by_itself = queries.get("checkpoint_metrics")
    assert {row[0] for row in by_itself.run(measured, {"study": "other"})[1]} == {point.id}
