"""Planning and storing: what is missing is found, computed once and stored once."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lowrank.measure import Selection, measure, plan
from lowrank.store import records

SPECTRA = "[{lens: spectra, variants: [main]}]"
Make = Callable[..., Any]


def rows(study: Any) -> list[tuple[Any, ...]]:
    """All metric rows by content."""
    return sorted(study.store.select(
        "SELECT checkpoint_id, reference_checkpoint_id, protocol_id, metric, layer, module, value, note FROM metric_value"
    )[1], key=str)


def test_spectra_of_every_method_are_stored_once(make_study: Make) -> None:
    tiny = make_study("full_rank", "cola", "sltrain", "relora", metrics=SPECTRA)
    tasks = plan(tiny.store, tiny.study, tiny.root)
    assert len(tasks) == 4 * (3 + 2 + 1)  # three checkpoints, two steps between them, last against first
    first = measure(tiny.store, tiny.study, tiny.root, progress=False)
    assert first.failed == []
    assert first.units == len(tasks)
    assert first.loads == 4 * 3, "every checkpoint is loaded once"
    stored = rows(tiny)
    cells = (2 + 1) * (7 + 1)
    assert len(stored) == 4 * (3 * 4 + 2 * 6) * cells
    assert plan(tiny.store, tiny.study, tiny.root) == []
    again = measure(tiny.store, tiny.study, tiny.root, progress=False)
    assert (again.units, again.rows, again.loads) == (0, 0, 0)
    assert rows(tiny) == stored
    protocol = tiny.store.first(records.Protocol, lens="spectra")
    assert (protocol.name, protocol.space, protocol.precision, protocol.evaluation_set_id) == ("exact", "dense", "float64", None)
    assert tiny.store.first(records.Provenance) is not None


@pytest.mark.parametrize("table", ["metric_value", "singular_value"])
def test_a_deleted_row_comes_back_alone(make_study: Make, table: str, tmp_path: Path) -> None:
    tiny = make_study("full_rank", metrics=SPECTRA)
    measure(tiny.store, tiny.study, tiny.root, progress=False)
    before = rows(tiny), tiny.store.select(f"SELECT * FROM {table} ORDER BY id")[1]
    with sqlite3.connect(tmp_path / "lowrank.db") as connection:
        connection.execute(f"DELETE FROM {table} WHERE id = 5")
    connection.close()
    assert len(plan(tiny.store, tiny.study, tiny.root)) == 1
    outcome = measure(tiny.store, tiny.study, tiny.root, progress=False)
    assert (outcome.units, outcome.rows, outcome.failed) == (1, 1, [])
    after = rows(tiny), tiny.store.select(f"SELECT * FROM {table} ORDER BY id")[1]
    assert before[0] == after[0]
    assert {row[1:-1] for row in before[1]} == {row[1:-1] for row in after[1]}


def test_only_what_is_selected_is_measured(make_study: Make) -> None:
    tiny = make_study("full_rank", "cola", metrics=SPECTRA)
    measure(tiny.store, tiny.study, tiny.root, Selection(methods=("cola",), steps=(10,)), progress=False)
    measured = tiny.store.select(
        "SELECT DISTINCT r.method, c.step FROM metric_value m "
        "JOIN checkpoint c ON c.id = m.checkpoint_id JOIN run r ON r.id = c.run_id"
    )[1]
    assert measured == [("cola", 10)]


EVERYTHING = """
- {lens: spectra}
- {lens: interpolation, settings: {points: 5}}
- {lens: activations}
- {lens: landscape, settings: {directions: 2, components: [1, 5, 20]}}
- {lens: curvature, settings: {probes: 2, iterations: 3}}
"""


def test_all_lenses_end_to_end(make_study: Make) -> None:
    tiny = make_study("full_rank", "galore", "cola", "relora", metrics=EVERYTHING)
    import time
    s=time.time()
    tasks = plan(tiny.store, tiny.study, tiny.root)
    print(time.time()-s, len(tasks))
    first = measure(tiny.store, tiny.study, tiny.root, progress=False)
    print(time.time()-s)
    assert first.failed == []
    assert first.blocked == []
    assert first.units == len(tasks)
    assert first.loads == 4 * 3, "every checkpoint is loaded once"
    assert plan(tiny.store, tiny.study, tiny.root) == []
