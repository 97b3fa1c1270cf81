"""The store's contract, on both databases."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest

from lowrank.errors import ConflictError, StoreError
from lowrank.store import Store, records
from lowrank.store.records import (
    Checkpoint,
    EvaluationSet,
    MetricValue,
    Protocol,
    Run,
    Study,
    TrainingLog,
)

NON_FINITE = [math.nan, math.inf, -math.inf]


@pytest.fixture
def run(store: Store) -> Run:
    """A run in a study."""
    study = store.add(Study(name="demo", config={"seeds": [0]}, config_hash="one"))
    return store.add(make_run(study))


@pytest.fixture
def checkpoint(store: Store, run: Run) -> Checkpoint:
    """The first checkpoint of the run."""
    return store.add(make_checkpoint(run))


@pytest.fixture
def protocol(store: Store) -> Protocol:
    """A protocol without an evaluation set."""
    return store.add(
        Protocol(name="exact", lens="spectral", metric_revision=1, parameters={"threshold": 0.1})
    )


def make_run(study: Study, **fields: object) -> Run:
    base = Run(
        study_id=study.id or 0,
        config_hash="c",
        method="galore",
        scale="tiny",
        seed=0,
        data_seed=2**47,
        init_seed=0,
    )
    return replace(base, **fields)  # type: ignore[arg-type]


def make_checkpoint(run: Run, step: int = 0, **fields: object) -> Checkpoint:
    base = Checkpoint(
        run_id=run.id or 0,
        step=step,
        kind="training",
        tokens_seen=2**40,
        path=f"runs/{step}",
        sha256="ab",
        bytes=10,
    )
    return replace(base, **fields)  # type: ignore[arg-type]


def value(checkpoint: Checkpoint, protocol: Protocol, **fields: object) -> MetricValue:
    base = MetricValue(
        checkpoint_id=checkpoint.id or 0,
        protocol_id=protocol.id or 0,
        metric="stable_rank_w",
        value=1.5,
    )
    return replace(base, **fields)  # type: ignore[arg-type]


def test_a_record_comes_back_with_an_id_and_as_it_was(store: Store, run: Run) -> None:
    assert run.id is not None
    assert store.get(Run, run.id) == run
    assert run.data_seed == 2**47


def test_writing_the_same_row_again_is_fine(store: Store, checkpoint: Checkpoint) -> None:
    assert store.add(replace(checkpoint, id=None)).id == checkpoint.id
    assert store.add_all([checkpoint, checkpoint]) == 0
    assert store.count(Checkpoint) == 1


@pytest.mark.parametrize("bulk", [False, True])
def test_another_value_names_table_key_and_both_values(
    store: Store, checkpoint: Checkpoint, bulk: bool
) -> None:
    other = replace(checkpoint, bytes=11)
    with pytest.raises(
        ConflictError,
        match=rf"'checkpoint' already has bytes = 10 for run_id={checkpoint.run_id}, step=0; .* 11",
    ):
        store.add_all([make_checkpoint_after(checkpoint), other]) if bulk else store.add(other)
    assert store.find(Checkpoint) == [checkpoint]


def make_checkpoint_after(checkpoint: Checkpoint) -> Checkpoint:
    return replace(checkpoint, id=None, step=checkpoint.step + 1)


def test_a_batch_that_contradicts_itself_is_refused(store: Store, run: Run) -> None:
    with pytest.raises(ConflictError, match="bytes = 1 "):
        store.add_all([make_checkpoint(run, bytes=1), make_checkpoint(run, bytes=2)])
    assert store.count(Checkpoint) == 0


def test_volatile_and_mutable_fields_are_no_conflict(store: Store, run: Run) -> None:
    done = store.update(Run, run.id or 0, status="done", peak_memory_bytes=2**40)
    assert store.add(replace(run, id=None)) == done
    with pytest.raises(ConflictError, match="method"):
        store.add(replace(run, method="fira"))


def test_fields_that_are_fixed_cannot_be_updated(store: Store, run: Run) -> None:
    with pytest.raises(StoreError, match=r"run\.method does not change"):
        store.update(Run, run.id or 0, method="fira")
    with pytest.raises(StoreError, match="no row 12345"):
        store.update(Run, 12345, status="done")


def test_put_extends_a_study(store: Store) -> None:
    first = store.put(Study(name="demo", config={"seeds": [0]}, config_hash="one"))
    second = store.put(Study(name="demo", config={"seeds": [0, 1]}, config_hash="two"))
    assert (second.id, second.config, second.config_hash) == (first.id, {"seeds": [0, 1]}, "two")
    assert store.find(Study) == [second]


@pytest.mark.parametrize("number", [*NON_FINITE, 0.1, 0.0, 5e-324, 1.7976931348623157e308])
def test_floats_survive(
    store: Store, checkpoint: Checkpoint, protocol: Protocol, number: float
) -> None:
    written = store.add(value(checkpoint, protocol, value=number, standard_error=number))
    found = store.find(MetricValue)[0]
    assert repr((found.value, found.standard_error)) == repr((number, number))
    assert store.add(replace(written, id=None)) == found or math.isnan(number)


def test_a_non_finite_value_conflicts_with_every_other(store: Store, run: Run) -> None:
    point = TrainingLog(run_id=run.id or 0, step=1, loss=math.nan, learning_rate=0.1)
    store.add(point)
    store.add(point)
    for other in (math.inf, 1.0):
        with pytest.raises(ConflictError, match="loss = nan"):
            store.add(replace(point, loss=other))


def test_kinds_stand_beside_values(
    store: Store, checkpoint: Checkpoint, protocol: Protocol
) -> None:
    numbers = [1.0, *NON_FINITE, None]
    store.add_all(
        value(checkpoint, protocol, metric=f"m{i}", value=number)
        for i, number in enumerate(numbers)
    )
    _, rows = store.select("SELECT value, value_kind FROM metric_value ORDER BY metric")
    assert rows == [(1.0, "finite"), (None, "nan"), (None, "inf"), (None, "-inf"), (None, "absent")]
    assert [v.metric for v in store.find(MetricValue, value_kind=["nan", "absent"])] == ["m1", "m4"]


def test_missing_references_do_collide(
    store: Store, checkpoint: Checkpoint, protocol: Protocol
) -> None:
    store.add(value(checkpoint, protocol))
    with pytest.raises(ConflictError):
        store.add(value(checkpoint, protocol, value=2.0))
    other = store.add(replace(checkpoint, id=None, step=1))
    assert (
        store.add_all([value(checkpoint, protocol, value=2.0, reference_checkpoint_id=other.id)])
        == 1
    )
    assert store.count(MetricValue) == 2


def test_numbers_that_must_be_finite_are_refused(
    store: Store, checkpoint: Checkpoint, protocol: Protocol
) -> None:
    point = records.CurvePoint(
        checkpoint_id=checkpoint.id or 0,
        protocol_id=protocol.id or 0,
        curve="random",
        position=0,
        offset_value=math.nan,
        mean=1.0,
    )
    with pytest.raises(StoreError, match=r"curve_point\.offset_value is nan"):
        store.add(point)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"step": "three"}, r"checkpoint\.step cannot hold 'three'"),
        ({"step": 1.5}, r"checkpoint\.step cannot hold 1\.5"),
        ({"path": None}, r"checkpoint\.path must have a value"),
        ({"path": "a\0b"}, "NUL"),
        ({"kind": "latest"}, r"refuses a row of 'checkpoint'.*kind"),
        ({"run_id": 999}, r"refuses a row of 'checkpoint'"),
    ],
)
def test_wrong_values_are_one_sentence(
    store: Store, run: Run, fields: dict[str, object], message: str
) -> None:
    with pytest.raises(StoreError, match=message) as caught:
        store.add(make_checkpoint(run, **fields))
    assert "\n" not in str(caught.value)
    assert store.count(Checkpoint) == 0


@pytest.mark.parametrize("parameters", [{"x": math.nan}, {"x": {1, 2}}])
def test_json_that_no_database_can_hold_is_refused(
    store: Store, parameters: dict[str, object]
) -> None:
    with pytest.raises(StoreError, match="JSON"):
        store.add(Protocol(name="exact", lens="spectral", metric_revision=1, parameters=parameters))
    with pytest.raises(StoreError, match=r"study\.config cannot hold"):
        store.add(Study(name="demo", config=parameters, config_hash=""))


def test_a_protocol_is_known_by_its_content(store: Store) -> None:
    sets = [
        store.add(
            EvaluationSet(
                name="v",
                dataset_fingerprint="f",
                split="validation",
                seed=0,
                examples=1,
                tokens=9,
                max_length=8,
                packing=True,
                tokenizer_hash="t",
                sha256=sha,
            )
        )
        for sha in ("aa", "bb")
    ]
    base = Protocol(name="exact", lens="landscape", metric_revision=1, evaluation_set_id=sets[0].id)
    variants = [
        base,
        replace(base, evaluation_set_id=sets[1].id),
        replace(base, metric_revision=2),
        replace(base, name="published"),
        replace(base, direction_seed=7),
        replace(base, parameters={"n": 1}),
        replace(base, space="dense"),
        replace(base, precision="bfloat16"),
        replace(base, normalization="filter"),
        replace(base, lens="spectral"),
    ]
    stored = [store.add(protocol) for protocol in variants]
    assert len({protocol.parameters_hash for protocol in stored}) == len(variants)
    assert store.add(base) == stored[0]
    with pytest.raises(StoreError, match="hash"):
        store.add(replace(stored[0], id=None, metric_revision=9))


def test_find_takes_scalars_none_and_sequences(store: Store, run: Run) -> None:
    store.add_all(
        make_checkpoint(run, step, validation_loss=1.0 if step else None) for step in range(5)
    )
    steps = [
        [c.step for c in store.find(Checkpoint, **where)]
        for where in (
            {"step": 3},
            {"validation_loss": None},
            {"step": (4, 1)},
            {"step": []},
            {"run_id": run.id, "step": {2}},
            {},
        )
    ]
    assert steps == [[3], [0], [1, 4], [], [2], [0, 1, 2, 3, 4]]
    assert store.first(Checkpoint, step=77) is None
    with pytest.raises(StoreError, match="no column 'stepp'"):
        store.find(Checkpoint, stepp=1)


def test_find_takes_more_values_than_a_statement(store: Store, run: Run) -> None:
    store.add_all(make_checkpoint(run, step) for step in range(10))
    assert [c.step for c in store.find(Checkpoint, step=range(3, 12_000))] == [3, 4, 5, 6, 7, 8, 9]


def test_a_transaction_is_all_or_nothing(store: Store, run: Run) -> None:
    with pytest.raises(ConflictError):
        _add_then_contradict(store, run)
    assert store.count(Checkpoint) == 0


def _add_then_contradict(store: Store, run: Run) -> None:
    with store.transaction():
        store.add(make_checkpoint(run))
        assert store.count(Checkpoint) == 1
        store.add(make_checkpoint(run, bytes=99))


def test_a_resumed_run_forgets_the_end_of_its_curve(store: Store, run: Run) -> None:
    store.add_all(
        TrainingLog(run_id=run.id or 0, step=step, loss=1.0, learning_rate=0.1)
        for step in range(10)
    )
    assert store.forget_training_log(run.id or 0, after_step=6) == 3
    assert [point.step for point in store.find(TrainingLog)] == list(range(7))


@pytest.mark.parametrize(
    "statement",
    [
        "DELETE FROM study",
        "INSERT INTO study (name) VALUES ('x')",
        "CREATE TABLE x (a INT)",
        "DROP TABLE study",
        "WITH gone AS (SELECT 1) UPDATE study SET name = 'x'",
        "SELECT 1; DELETE FROM study",
        "SELECT 1; SELECT 2",
        "VACUUM",
        "DELETE FROM study RETURNING id",
        "UPDATE study SET name = 'x' RETURNING id",
    ],
)
def test_select_is_refused_by_the_database_where_it_writes(
    store: Store, run: Run, statement: str
) -> None:
    with pytest.raises(StoreError, match="refused by the database"):
        store.select(statement)
    assert store.count(Study) == 1
    assert store.select("SELECT count(*) FROM study")[1] == [(1,)]


def test_select_requires_rows(store: Store, run: Run) -> None:
    with pytest.raises(StoreError, match="gives no rows"):
        store.select("COMMIT")
    assert store.select("SELECT count(*) FROM study")[1] == [(1,)]


@pytest.mark.parametrize(
    "statement",
    [
        "ATTACH DATABASE '{folder}/other.db' AS other",
        "VACUUM INTO '{folder}/other.db'",
        "PRAGMA journal_mode=DELETE",
    ],
)
def test_select_touches_no_other_file_on_sqlite(
    sqlite_store: Store, tmp_path: Path, statement: str
) -> None:
    with pytest.raises(StoreError):
        sqlite_store.select(statement.format(folder=tmp_path))
    assert not (tmp_path / "other.db").exists()


def test_select_binds_parameters_and_keeps_colons(store: Store, run: Run) -> None:
    assert store.select("SELECT name FROM study WHERE name = :name", {"name": "demo"}) == (
        ["name"],
        [("demo",)],
    )
    assert store.select("SELECT 'a :b 100%' AS text, 7 % 4 AS rest") == (
        ["text", "rest"],
        [("a :b 100%", 3)],
    )


def test_a_read_only_store_refuses_writing(store: Store, store_url: str) -> None:
    with Store.open(store_url, read_only=True) as reader:
        assert reader.count(records.PublishedValue) == store.count(records.PublishedValue) > 250
        with pytest.raises(StoreError, match="reading only"):
            reader.add(Study(name="x", config={}, config_hash=""))


def test_records_read_only_are_those_that_were_written(store: Store, store_url: str) -> None:
    written = store.add(
        Study(name="mine", config={"a": [1, {"b": "ü"}], "c": None}, config_hash="x")
    )
    with Store.open(store_url, read_only=True) as reader:
        assert reader.first(Study, name="mine") == written
        assert reader.get(Study, written.id) == written
        assert reader.find(Study) == [written]
        with reader.snapshot():
            assert reader.first(Study) == written


def test_a_traceback_comes_and_goes_with_its_failure(store: Store, run: Run) -> None:
    assert run.traceback == ""
    failed = store.update(Run, run.id, status="failed", error="why", traceback="where\n ΔW")
    assert (failed.error, failed.traceback) == ("why", "where\n ΔW")
    unit = records.WorkUnit(unit_key="a", kind="measure", status="failed", traceback="where")
    assert store.put(unit).traceback == "where"
    assert store.put(replace(unit, status="claimed", traceback="")).traceback == ""
