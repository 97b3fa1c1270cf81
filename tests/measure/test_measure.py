"""Planning and storing: what is missing is found, computed once and stored once."""

from __future__ import annotations

import json
import shutil
import sqlite3
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from lowrank import checkpoint, methods
from lowrank.cli.main import run
from lowrank.config import load_study, resolve_runs
from lowrank.config.schema import ModelShape
from lowrank.errors import ConfigError, UnknownNameError, UsageError
from lowrank.measure import Selection, measure, plan
from lowrank.measure.cache import CheckpointCache
from lowrank.measure.lengths import spectrum_lengths
from lowrank.methods.base import create
from lowrank.metrics.base import place
from lowrank.models import build
from lowrank.store import records

SPECTRA = "[{lens: spectra, variants: [main]}]"
Make = Callable[..., Any]
EVERYTHING = """
- {lens: spectra}
- {lens: interpolation, settings: {points: 5}}
- {lens: activations}
- {lens: landscape, settings: {directions: 2, components: [1, 5, 20]}}
- {lens: curvature, settings: {probes: 2, iterations: 3}}
"""


def rows(study: Any) -> list[tuple[Any, ...]]:
    """Return all metric rows by content."""
    return sorted(
        study.store.select(
            "SELECT checkpoint_id, reference_checkpoint_id, protocol_id, metric, layer, module, value, note FROM metric_value"
        )[1],
        key=str,
    )


def test_spectra_of_every_method_are_stored_once(make_study: Make) -> None:
    tiny = make_study("full_rank", "cola", "sltrain", "relora", metrics=SPECTRA)
    tasks = plan(tiny.store, tiny.study, tiny.root)
    assert len(tasks) == 4 * (
        3 + 2 + 1
    )  # three checkpoints, two steps between them, last against first
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
    assert (protocol.name, protocol.space, protocol.precision, protocol.evaluation_set_id) == (
        "exact",
        "dense",
        "float64",
        None,
    )
    assert tiny.store.first(records.Provenance) is not None


def every_row(study: Any) -> dict[str, set[tuple[Any, ...]]]:
    """Return all result rows by table, without ids and provenance."""
    found = {}
    for table in TABLES:
        columns, stored = study.store.select(f"SELECT * FROM {table}")
        kept = [i for i, name in enumerate(columns) if name not in ("id", "provenance_id")]
        found[table] = {tuple(row[i] for i in kept) for row in stored}
    return found


LENSES = (
    "SELECT DISTINCT p.lens FROM protocol p JOIN {table} t ON t.protocol_id = p.id ORDER BY p.lens"
)
TABLES = ("metric_value", "curve_point", "singular_value")
WHOLE = {  # the columns that a curve or a spectrum has in common
    "curve_point": "checkpoint_id, reference_key, protocol_id, curve",
    "metric_value": "checkpoint_id, reference_key, protocol_id",
    "singular_value": "checkpoint_id, reference_key, protocol_id, matrix, layer, module",
}


def delete(study: Any, table: str, where: str) -> None:
    with study.store.connection(writes=True) as connection:
        assert connection.exec_driver_sql(f"DELETE FROM {table} WHERE {where}").rowcount > 0


def test_all_lenses_are_measured_and_any_deleted_rows_come_back_exactly_and_alone(
    make_study: Make,
) -> None:
    tiny = make_study("full_rank", "cola", metrics=EVERYTHING)
    tasks = plan(tiny.store, tiny.study, tiny.root)
    first = measure(tiny.store, tiny.study, tiny.root, progress=False)
    assert (first.failed, first.blocked, first.units) == ([], [], len(tasks))
    assert first.loads == 2 * 3, "every checkpoint is loaded once"
    whole = every_row(tiny)
    stored = [
        (table, lens)
        for table in TABLES
        for (lens,) in tiny.store.select(LENSES.format(table=table))[1]
    ]
    assert {lens for _, lens in stored} == {
        "activations",
        "curvature",
        "interpolation",
        "landscape",
        "spectra",
    }
    for kind in (
        "id = (SELECT MIN(t.id) {own})",  # the first
        "id = (SELECT MAX(t.id) {own})",  # the last
        "id IN (SELECT MAX(t.id) {own} GROUP BY {columns})",  # the last of every curve and spectrum
        "id = (SELECT t.id {own} ORDER BY t.id LIMIT 1 OFFSET (SELECT COUNT(*) / 2 {own}))",
        "({plain}) IN (SELECT {columns} {own} ORDER BY t.id LIMIT 1)",  # a whole curve or spectrum
    ):
        for table, lens in stored:
            own = f"FROM {table} t JOIN protocol p ON p.id = t.protocol_id WHERE p.lens = '{lens}'"
            columns = ", ".join(f"t.{name}" for name in WHOLE[table].split(", "))
            delete(tiny, table, kind.format(own=own, columns=columns, plain=WHOLE[table]))
        lost = sum(len(whole[name] - rows) for name, rows in every_row(tiny).items())
        outcome = measure(tiny.store, tiny.study, tiny.root, progress=False)
        assert (outcome.failed, outcome.rows) == ([], lost), kind
        assert every_row(tiny) == whole, kind
    assert plan(tiny.store, tiny.study, tiny.root) == []


@pytest.mark.parametrize("name", methods.names())
def test_the_planner_knows_how_many_singular_values_a_method_has(name: str) -> None:
    shape = ModelShape(
        hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2, rank=4
    )
    settings = {"rank": 4} if "rank" in methods.get(name).Settings.model_fields else {}
    made = create(name, settings)
    config = SimpleNamespace(
        method=name,
        settings=made.settings.model_dump(mode="json"),
        shape=shape,
        init_seed=0,
        data=SimpleNamespace(max_length=8),
    )
    model, made = build(config, 30, {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0})
    found: Counter[str] = Counter()
    for path, factor in made.factors(model).items():
        found[place(path.rpartition(".")[0])[1]] += min(factor.shape)
    lengths = spectrum_lengths(name, settings, shape.model_dump())
    assert {module: factors for module, _, factors in lengths} == found
    assert {module: dense for module, dense, _ in lengths} == dict.fromkeys(found, 16)


def test_only_what_is_selected_is_measured(make_study: Make) -> None:
    tiny = make_study("full_rank", "cola", metrics=SPECTRA)
    measure(
        tiny.store, tiny.study, tiny.root, Selection(methods=("cola",), steps=(10,)), progress=False
    )
    measured = tiny.store.select(
        "SELECT DISTINCT r.method, c.step FROM metric_value m "
        "JOIN checkpoint c ON c.id = m.checkpoint_id JOIN run r ON r.id = c.run_id"
    )[1]
    assert measured == [("cola", 10)]


def damage(
    study: Any, method: str, step: int, change: Callable[[dict[str, torch.Tensor]], None]
) -> None:
    """Rewrite a checkpoint's weights on disk with a manifest and a row that agree."""
    row = checkpoint_row(study, method, step)
    folder = study.root / row.path
    state = load_file(folder / "model.safetensors")
    change(state)
    loaded = checkpoint.load(folder)
    shutil.rmtree(folder)
    saved = checkpoint.save(folder, loaded.model, replace(loaded.manifest, files={}), state=state)
    with sqlite3.connect(str(study.store.url_masked).removeprefix("sqlite:///")) as connection:
        connection.execute(
            "UPDATE checkpoint SET sha256 = ? WHERE id = ?", (saved.weights_sha256, row.id)
        )
    connection.close()


def checkpoint_row(study: Any, method: str, step: int) -> records.Checkpoint:
    trained = study.store.first(records.Run, method=method)
    found = study.store.first(records.Checkpoint, run_id=trained.id, step=step)
    assert found is not None
    return found


def test_a_weight_that_is_not_finite_fails_its_units_and_no_others(make_study: Make) -> None:
    tiny = make_study("full_rank", "galore", metrics=SPECTRA)
    damage(
        tiny,
        "galore",
        10,
        lambda state: state["model.layers.0.mlp.up_proj.weight"].fill_(float("nan")),
    )
    outcome = measure(tiny.store, tiny.study, tiny.root, progress=False)
    assert len(outcome.failed) == 3, "its W, and ΔW to both neighbours"
    assert all(
        "model.layers.0.mlp.up_proj.weight' is not finite" in sentence
        for sentence in outcome.failed
    )
    assert outcome.units == 6 + 3
    assert tiny.store.count(records.WorkUnit, kind="measure", status="failed") == 3
    again = measure(tiny.store, tiny.study, tiny.root, progress=False)
    assert (again.units, len(again.failed), len(again.left_alone)) == (0, 0, 3)
    assert "--retry-failed" in again.left_alone[0]
    damage(tiny, "galore", 10, lambda state: state["model.layers.0.mlp.up_proj.weight"].fill_(0.5))
    fixed = measure(tiny.store, tiny.study, tiny.root, progress=False, retry_failed=True)
    assert (fixed.units, fixed.failed) == (3, [])
    assert tiny.store.count(records.WorkUnit) == 0, "a unit that succeeded leaves only its results"


def test_a_unit_that_fails_in_one_study_is_none_of_another_with_the_same_runs(
    make_study: Make,
) -> None:
    one, other = (
        make_study("galore", metrics=SPECTRA),
        make_study("galore", metrics=SPECTRA, name="other"),
    )
    assert {run.config_hash for run in one.store.find(records.Run)} == {
        one.store.first(records.Run).config_hash
    }
    damage(
        one,
        "galore",
        10,
        lambda state: state["model.layers.0.mlp.up_proj.weight"].fill_(float("nan")),
    )
    assert len(measure(one.store, one.study, one.root, progress=False).failed) == 3
    second = measure(other.store, other.study, other.root, progress=False)
    assert (second.units, second.failed, second.left_alone) == (6, [], [])
    failed = one.store.find(records.WorkUnit, status="failed")
    assert {unit.study_id for unit in failed} == {one.store.first(records.Study, name="tiny").id}
    assert len(failed) == 3


def test_a_damaged_file_is_one_sentence(make_study: Make) -> None:
    tiny = make_study("full_rank", metrics=SPECTRA)
    path = tiny.root / checkpoint_row(tiny, "full_rank", 20).path / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    outcome = measure(tiny.store, tiny.study, tiny.root, progress=False)
    assert len(outcome.failed) == 3
    assert all("SHA-256 differs" in sentence for sentence in outcome.failed)
    assert outcome.units == 3


def test_checkpoints_never_lie_outside_the_study(make_study: Make) -> None:
    tiny = make_study("full_rank", metrics=SPECTRA)
    with sqlite3.connect(str(tiny.store.url_masked).removeprefix("sqlite:///")) as connection:
        connection.execute("UPDATE checkpoint SET path = '../elsewhere' WHERE step = 20")
    connection.close()
    outcome = measure(tiny.store, tiny.study, tiny.root, progress=False)
    assert any("leads outside the study's folder" in sentence for sentence in outcome.failed)


def test_a_missing_reference_run_is_reported_and_stored_nowhere(make_study: Make) -> None:
    tiny = make_study("galore", metrics="[activations, {lens: spectra, variants: [main]}]")
    outcome = measure(tiny.store, tiny.study, tiny.root, progress=False)
    assert len(outcome.blocked) == 3
    assert "no full_rank checkpoint of scale tiny, seed 0" in outcome.blocked[0]
    assert not outcome.complete
    assert outcome.units == 6
    assert {task.row()["detail"] for task in plan(tiny.store, tiny.study, tiny.root)} == {
        f"there is no full_rank checkpoint of scale tiny, seed 0, step {step}"
        for step in (0, 10, 20)
    }


def test_another_tokenizer_is_refused(make_study: Make) -> None:
    lines = "[{lens: interpolation, settings: {points: 3, kinds: [methods], align: false}}]"
    tiny = make_study("full_rank", "galore", metrics=lines)
    trained = tiny.store.first(records.Run, method="galore")
    tiny.store.update(records.Run, trained.id, tokenizer_hash="another")
    outcome = measure(tiny.store, tiny.study, tiny.root, progress=False)
    assert len(outcome.failed) == 2
    assert "its tokenizer is not that of the evaluation set" in outcome.failed[0]


def test_cola_against_others_is_explained(make_study: Make) -> None:
    tiny = make_study(
        "full_rank",
        "cola",
        metrics="[{lens: interpolation, settings: {points: 3, kinds: [methods]}}]",
    )
    measure(tiny.store, tiny.study, tiny.root, progress=False)
    found = tiny.store.find(records.MetricValue, metric="imbh")
    assert [(row.value, row.note) for row in found] == [
        (None, "cola has no dense equivalent: no line leads to another method's weights")
    ] * 2
    assert plan(tiny.store, tiny.study, tiny.root) == []


def test_every_nth_checkpoint_counts_back_from_the_last(make_study: Make) -> None:
    tiny = make_study("full_rank", metrics="[{lens: spectra, variants: [main], every: 2}]")
    units = [task.unit for task in plan(tiny.store, tiny.study, tiny.root)]
    steps = [
        (unit.checkpoint.step, unit.reference.step if unit.reference else None) for unit in units
    ]
    assert sorted(steps, key=str) == [(0, None), (20, 0), (20, 10), (20, None)], (
        "ΔW stays that of neighbours"
    )


def test_a_small_memory_loads_again_and_gives_the_same(make_study: Make) -> None:
    tiny = make_study(
        "full_rank",
        "galore",
        metrics="[{lens: interpolation, settings: {points: 3, align: false}}]",
    )
    tasks = plan(tiny.store, tiny.study, tiny.root)
    cache = CheckpointCache(tiny.store, tiny.root, torch.device("cpu"), budget=1)
    cache.schedule(tasks)
    values = {}
    for index, task in enumerate(tasks):
        cache.begin(task)
        values[task.label] = list(
            task.variant.lens.compute(task.unit, cache, task.variant.settings)
        )
        cache.end(index)
        assert len(cache._held) <= 2
    assert sum(cache.loads.values()) > 6
    roomy = CheckpointCache(tiny.store, tiny.root, torch.device("cpu"))
    roomy.schedule(tasks)
    for index, task in enumerate(tasks):
        roomy.begin(task)
        assert (
            list(task.variant.lens.compute(task.unit, roomy, task.variant.settings))
            == values[task.label]
        )
        roomy.end(index)
    assert set(roomy.loads.values()) == {1}
    assert roomy._held == {}, "a checkpoint that no task needs is dropped"


def test_copies_of_a_checkpoint_count_as_memory(make_study: Make) -> None:
    tiny = make_study("relora", metrics="[{lens: loss, settings: {final_only: false}}]")
    tasks = plan(tiny.store, tiny.study, tiny.root)
    points = [task.unit.checkpoint for task in tasks]

    def held(budget: int | None, copies: bool) -> tuple[int, int]:
        """Return (cached checkpoints, bytes of all) after each was requested."""
        cache = CheckpointCache(tiny.store, tiny.root, torch.device("cpu"), budget)
        cache.schedule([*tasks, *tasks])  # each is needed again
        for task in tasks:
            cache.begin(task)
            cache.network(task.unit.checkpoint, "dense" if copies else "trained")
            cache.memo(
                task.unit.checkpoint,
                "the same",
                lambda cache=cache, task=task: cache.loaded(task.unit.checkpoint).model,
            )
        return len(cache._held), sum(size["cpu"] for size in cache._sizes.values())

    number, plain = held(None, copies=False)
    assert (number, held(None, copies=True)[0]) == (len(points), 3)
    assert held(None, copies=True)[1] > 1.5 * plain, "the dense equivalents"
    model = CheckpointCache(tiny.store, tiny.root, torch.device("cpu")).loaded(points[0]).model
    weights = sum(t.numel() * t.element_size() for t in model.state_dict().values())
    assert plain == pytest.approx(3 * weights, rel=0.05), "what two names share counts once"
    assert held(plain, copies=False)[0] == 3
    assert held(plain, copies=True)[0] < 3, "copies push checkpoints out"


def test_shares_of_several_processes_cover_everything_once(
    make_study: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    landscape = "[{lens: landscape, variants: [main], settings: {directions: 2, components: [1]}}]"
    tiny = make_study("full_rank", "galore", metrics=landscape)
    everything = {task.unit_key for task in plan(tiny.store, tiny.study, tiny.root)}
    monkeypatch.setenv("WORLD_SIZE", "2")
    units = []
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        units.append(measure(tiny.store, tiny.study, tiny.root, progress=False).units)
    assert sum(units) == len(everything)
    assert min(units) > 0
    split = rows(tiny)
    monkeypatch.delenv("RANK")
    monkeypatch.delenv("WORLD_SIZE")
    with sqlite3.connect(str(tiny.store.url_masked).removeprefix("sqlite:///")) as connection:
        connection.execute("DELETE FROM metric_value")
        connection.execute("DELETE FROM curve_point")
    connection.close()
    measure(tiny.store, tiny.study, tiny.root, progress=False)
    assert rows(tiny) == split, "the same directions, whichever process draws them"


def test_settings_that_select_do_not_measure_again(make_study: Make) -> None:
    tiny = make_study(
        "full_rank",
        "galore",
        metrics="[{lens: interpolation, settings: {points: 3, align: false}}]",
    )
    measure(tiny.store, tiny.study, tiny.root, progress=False)
    before = rows(tiny)
    wider = load_study(
        tiny.file, ["metrics=[{lens: interpolation, settings: {points: 3, align: true}}]"]
    )
    tasks = plan(tiny.store, wider, tiny.root)
    assert {key[0] for task in tasks for key in task.missing.values} == {
        "imbh_folded",
        "imbh_aligned",
    }
    measure(tiny.store, wider, tiny.root, progress=False)
    assert set(before) < set(rows(tiny))
    assert tiny.store.count(records.Protocol) == 1


def test_of_runs_that_differ_in_the_recipe_the_newest_counts(make_study: Make) -> None:
    lines = "[{lens: interpolation, settings: {points: 3, align: false}}, activations]"
    tiny = make_study("full_rank", "galore", metrics=lines)
    first = tiny.store.first(records.Run, method="full_rank")
    edited = load_study(tiny.file, ["training.learning_rate=2.0e-2"])
    for config in resolve_runs(edited):
        if config.method == "full_rank":
            tiny.add(config)
    second, galore = (
        tiny.store.find(records.Run, method="full_rank")[-1],
        tiny.store.first(records.Run, method="galore"),
    )
    units = [task.unit for task in plan(tiny.store, edited, tiny.root)]
    assert {point.run_id for unit in units for point in unit.checkpoints} == {second.id, galore.id}
    older = [task.unit for task in plan(tiny.store, edited, tiny.root, Selection(runs=(first.id,)))]
    assert {unit.checkpoint.run_id for unit in older} == {first.id}
    assert not any("seeds" in unit.roles for unit in [*units, *older]), (
        "two recipes of one seed are no two seeds"
    )


def test_selections_that_do_not_exist_are_usage_errors(make_study: Make) -> None:
    tiny = make_study("full_rank", metrics=SPECTRA)
    for selection, words in (
        (Selection(methods=("cola",)), "no checkpoint of method cola; it has: full_rank"),
        (Selection(steps=(7,)), "no checkpoint of step 7; it has: 0, 10, 20"),
    ):
        with pytest.raises(UsageError, match=words):
            selection.check(tiny.store, tiny.study.name)
    with pytest.raises(UsageError, match="does not ask for the lens 'landscape'"):
        plan(tiny.store, tiny.study, tiny.root, Selection(lenses=("landscape",)))
    with pytest.raises(UnknownNameError, match="did you mean 'landscape'"):
        plan(tiny.store, tiny.study, tiny.root, Selection(lenses=("landscap",)))


@pytest.mark.parametrize(
    ("metrics", "words"),
    [
        (
            "[{lens: spectra, settings: {treshold: 0.2}}]",
            r"unknown key 'metrics\[0\].settings.treshold'; did you mean 'threshold'",
        ),
        ("[{lens: spectra, variants: [dense]}]", "no variant 'dense'; known: main, factor"),
        ("[{lens: landscape, settings: {directions: many}}]", r"metrics\[0\].settings.directions"),
    ],
)
def test_metric_settings_are_checked(make_study: Make, metrics: str, words: str) -> None:
    tiny = make_study("full_rank", metrics=metrics)
    with pytest.raises(ConfigError, match=words):
        plan(tiny.store, tiny.study, tiny.root)


def test_the_command_line_measures_plans_and_lists(
    make_study: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny = make_study("full_rank", metrics=SPECTRA)
    file = tiny.file.with_name("cli.yaml")
    file.write_text(tiny.file.read_text() + f"output: {tiny.root}\n")
    url = str(tiny.store.url_masked)

    def call(*arguments: str) -> tuple[int, list[dict[str, Any]]]:
        status = run(["measure", str(file), "--db", url, "--json", *arguments])
        return status, json.loads(capsys.readouterr().out or "[]")

    status, planned = call("--plan")
    assert (status, len(planned)) == (0, 6)
    assert rows(tiny) == []
    status, done = call("--step", "20")
    assert status == 0
    assert (done[0]["units"], done[0]["failed"]) == (3, 0)
    assert call("--plan", "--step", "20") == (0, [])
    assert call("--method", "cola")[0] == 2
    assert run(["metrics", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert {"metric", "definition", "unit", "range", "source", "defaults", "presets"} <= set(
        listed[0]
    )
    assert run(["methods"]) == run(["scales"]) == 0
    assert "full_rank" in capsys.readouterr().out
