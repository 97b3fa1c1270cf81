"""Planning, scoring and storing: every score once, failures apart, comparisons item by item."""

from __future__ import annotations

import sqlite3
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lowrank.cli.main import run as command_line
from lowrank.config.schema import Downstream
from lowrank.data.tokenizer import _train as train_tokenizer
from lowrank.evaluate import Selection, evaluate, plan
from lowrank.evaluate.items import MAKERS
from lowrank.store import Store, queries, records

Make = Callable[..., Any]
TASKS = sorted(MAKERS)
ITEMS = 8  # of each task of the small suite
METRICS = ["acc", "acc_norm", "bits_per_byte", "margin"]


def run(
    tiny: Any,
    settings: Downstream | None = None,
    selection: Selection | None = None,
    **options: Any,
) -> Any:
    return evaluate(
        tiny.store,
        tiny.study,
        tiny.root,
        settings,
        selection or Selection(),
        progress=False,
        **options,
    )


def rows(store: Store, table: str = "downstream_score") -> list[tuple[Any, ...]]:
    """Return the rows without their ids."""
    return sorted((row[1:] for row in store.select(f"SELECT * FROM {table}")[1]), key=str)


def test_every_score_is_stored_once(make_study: Make) -> None:
    tiny = make_study("full_rank", "cola", downstream="{batch_size: 4, bootstrap: 10, items: all}")
    units = plan(tiny.store, tiny.study)
    assert len(units) == 2 * 2 * len(TASKS)  # two methods, two trained checkpoints each
    first = run(tiny)
    assert (first.failed, first.left_alone, first.units) == ([], [], len(units))
    scores = tiny.store.find(records.DownstreamScore)
    assert len(scores) == len(units) * len(METRICS)
    assert sorted({(s.task, s.metric) for s in scores}) == [
        (task, metric) for task in TASKS for metric in METRICS
    ]
    assert {s.n for s in scores} == {ITEMS}
    assert {s.chance for s in scores if s.metric == "acc"} == {0.5}
    assert {s.category for s in scores if s.task == "ordering"} == {"logical_reasoning"}
    assert {s.harness_version for s in scores} != {""}
    assert tiny.store.count(records.DownstreamItem) == len(scores) * ITEMS
    protocol = tiny.store.first(records.Protocol, lens="downstream")
    assert protocol.name == "embedded"
    assert {
        name: protocol.parameters[name]
        for name in ("batch_size", "bootstrap_iters", "limit", "num_fewshot")
    } == {
        "batch_size": 4,
        "bootstrap_iters": 10,
        "limit": None,
        "num_fewshot": 0,
    }
    stored = rows(tiny.store), rows(tiny.store, "downstream_item")
    assert plan(tiny.store, tiny.study) == []
    assert run(tiny).units == 0
    assert (rows(tiny.store), rows(tiny.store, "downstream_item")) == stored
    assert tiny.store.count(records.WorkUnit) == 0


@pytest.mark.parametrize("table", ["downstream_score", "downstream_item"])
def test_a_deleted_row_comes_back_alone(make_study: Make, table: str, tmp_path: Path) -> None:
    tiny = make_study("full_rank", downstream="{every: null}")
    run(tiny)
    before = rows(tiny.store, table)
    with sqlite3.connect(tmp_path / "lowrank.db") as connection:
        connection.execute(f"DELETE FROM {table} WHERE id = 3")
    connection.close()
    (unit,) = plan(tiny.store, tiny.study)
    assert len(unit.metrics) == (1 if table == "downstream_score" else 0)
    outcome = run(tiny)
    assert (outcome.units, outcome.rows, outcome.failed) == (1, 1, [])
    assert rows(tiny.store, table) == before


def test_scores_are_means_of_their_items_with_their_standard_error(make_study: Make) -> None:
    tiny = make_study("full_rank", downstream="{every: null}")
    run(tiny)
    for score in tiny.store.find(records.DownstreamScore):
        items = np.array(
            [
                i.value
                for i in tiny.store.find(
                    records.DownstreamItem, task=score.task, metric=score.metric
                )
            ]
        )
        assert score.value == pytest.approx(items.mean(), rel=1e-12)
        assert score.standard_error == pytest.approx(
            items.std(ddof=1) / len(items) ** 0.5, rel=1e-9
        )


def test_stored_scores_are_those_of_a_plain_call_of_the_harness(
    make_study: Make, small_suite: Any
) -> None:
    import lm_eval
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tiny = make_study("cola", downstream="{every: null, tasks: [cloze, ordering], batch_size: 4}")
    run(tiny)
    stored = {(s.task, s.metric): s for s in tiny.store.find(records.DownstreamScore)}
    folder = tiny.root / tiny.store.find(records.Checkpoint, kind="final")[0].path
    tokenizer = AutoTokenizer.from_pretrained(folder)
    plain = HFLM(
        pretrained=AutoModelForCausalLM.from_pretrained(folder),
        tokenizer=tokenizer,
        backend="causal",
        device="cpu",
        batch_size=4,
        max_length=32,
        prefix_token_id=tokenizer.eos_token_id,
    )
    found = lm_eval.simple_evaluate(
        model=plain,
        tasks=["embedded_cloze", "embedded_ordering"],
        num_fewshot=0,
        bootstrap_iters=1000,
        task_manager=TaskManager(include_path=str(small_suite.folder), include_defaults=False),
    )
    for task in ("cloze", "ordering"):
        theirs, samples = found["results"][f"embedded_{task}"], found["samples"][f"embedded_{task}"]
        for metric in ("acc", "acc_norm"):
            assert stored[task, metric].value == theirs[f"{metric},none"]
            assert stored[task, metric].standard_error == pytest.approx(
                theirs[f"{metric}_stderr,none"], rel=1e-12
            )
        bits = [
            -s["filtered_resps"][s["target"]][0]
            / len(s["arguments"][s["target"]][1].encode())
            / np.log(2)
            for s in samples
        ]
        assert stored[task, "bits_per_byte"].value == pytest.approx(np.mean(bits), rel=1e-6)


@pytest.mark.parametrize(
    ("settings", "steps"),
    [
        ({}, {10, 20}),
        ({"every": 2}, {20}),
        ({"every": None}, {20}),
        ({"initial": True}, {0, 10, 20}),
        ({"every": None, "initial": True}, {0, 20}),
    ],
)
def test_which_checkpoints_are_evaluated(
    make_study: Make, settings: dict[str, Any], steps: set[int]
) -> None:
    tiny = make_study("full_rank")
    assert {
        unit.checkpoint.step for unit in plan(tiny.store, tiny.study, Downstream(**settings))
    } == steps


def test_an_explicit_step_wins_over_every(make_study: Make) -> None:
    tiny = make_study("full_rank", "cola", downstream="{every: null}")
    chosen = Selection(methods=("cola",), steps=(0,))
    assert {
        (u.run.method, u.checkpoint.step) for u in plan(tiny.store, tiny.study, selection=chosen)
    } == {("cola", 0)}


def test_a_study_without_the_section_evaluates_nothing(make_study: Make) -> None:
    tiny = make_study("full_rank", downstream="null")
    assert plan(tiny.store, tiny.study) == []
    assert run(tiny).units == 0


def test_a_limit_is_a_protocol_of_its_own(make_study: Make) -> None:
    tiny = make_study("full_rank", downstream="{every: null, tasks: [cloze]}")
    run(tiny)
    run(tiny, Downstream(every=None, tasks=("cloze",), limit=4))
    assert sorted(s.n for s in tiny.store.find(records.DownstreamScore, metric="acc")) == [4, ITEMS]
    assert [
        p.parameters["limit"] for p in tiny.store.find(records.Protocol, lens="downstream")
    ] == [None, 4]


@pytest.mark.parametrize(("items", "steps"), [("all", {10, 20}), ("final", {20}), ("none", set())])
def test_whose_items_are_stored(make_study: Make, items: str, steps: set[int]) -> None:
    tiny = make_study("full_rank", downstream=f"{{tasks: [cloze], items: {items}}}")
    run(tiny)
    step = {saved.id: saved.step for saved in tiny.store.find(records.Checkpoint)}
    assert {step[item.checkpoint_id] for item in tiny.store.find(records.DownstreamItem)} == steps
    assert plan(tiny.store, tiny.study) == []


def test_the_paired_query_agrees_with_numpy(make_study: Make) -> None:
    tiny = make_study("full_rank", "cola", downstream="{every: null}")
    run(tiny)
    a, b = (saved.id for saved in tiny.store.find(records.Checkpoint, kind="final"))
    columns, found = queries.get("downstream_paired").run(tiny.store, {"a": a, "b": b})
    assert len(found) == len(TASKS) * len(METRICS)
    for row in (dict(zip(columns, values, strict=True)) for values in found):
        of_row = {"task": row["task"], "metric": row["metric"]}
        x, y = (
            {
                i.item: i.value
                for i in tiny.store.find(records.DownstreamItem, checkpoint_id=c, **of_row)
            }
            for c in (a, b)
        )
        difference = np.array([y[item] - x[item] for item in x])
        assert row["difference"] == pytest.approx(difference.mean(), abs=1e-12)
        assert row["standard_error"] == pytest.approx(difference.std(ddof=1) / ITEMS**0.5, abs=1e-7)
        assert (row["better"], row["worse"]) == ((difference > 0).sum(), (difference < 0).sum())
    columns, against = queries.get("downstream_against").run(
        tiny.store, {"study": "tiny", "metric": "margin"}
    )
    assert {(row[columns.index("method")], row[columns.index("n")]) for row in against} == {
        ("cola", ITEMS)
    }
    pairs = {row[1]: row[6] for row in found if row[2] == "margin"}
    assert {
        row[columns.index("task")]: pytest.approx(row[columns.index("difference")])
        for row in against
    } == pairs


def test_an_unknown_task_is_named_and_the_others_run(make_study: Make) -> None:
    tiny = make_study("full_rank", downstream="{every: null, tasks: [clozes, ordering]}")
    outcome = run(tiny)
    assert outcome.units == 1
    (sentence,) = outcome.failed
    assert sentence.startswith("unknown downstream task 'clozes'; did you mean 'cloze'?")


def test_a_task_whose_data_are_damaged_fails_alone_and_once(
    make_study: Make, small_suite: Any
) -> None:
    tiny = make_study("full_rank")
    (small_suite.folder / "cloze.jsonl").write_text("{not json\n")
    outcome = run(tiny)
    (sentence,) = outcome.failed
    assert sentence.startswith("embedded/cloze: the task 'cloze' cannot read its data (")
    assert sentence.endswith("give --data-dir (2 checkpoints)")
    assert outcome.units == 2 * (len(TASKS) - 1)
    assert {u.kind for u in tiny.store.find(records.WorkUnit, status="failed")} == {"evaluate"}
    again = run(tiny)
    assert (again.units, again.failed, len(again.left_alone)) == (0, [], 1)
    (small_suite.folder / "cloze.jsonl").write_text(
        (small_suite.folder / "ordering.jsonl").read_text()
    )
    fixed = run(tiny, retry_failed=True)
    assert (fixed.units, fixed.failed, fixed.left_alone) == (2, [], [])
    assert tiny.store.count(records.WorkUnit) == 0


def test_a_tokenizer_that_does_not_fit_the_model_is_named(make_study: Make) -> None:
    tiny = make_study(
        "full_rank",
        tokenizer=train_tokenizer([f"word{i} and again word{i}" for i in range(400)], 400),
    )
    outcome = run(tiny, Downstream(every=None))
    assert outcome.units == 0
    assert all(
        "its tokenizer does not fit the model (token 399, but 300 rows in the embedding)" in s
        for s in outcome.failed
    )


def test_an_answer_longer_than_the_context_fails_its_task_alone(
    make_study: Make, small_suite: Any
) -> None:
    tiny = make_study("full_rank")
    path = small_suite.folder / "term.jsonl"
    path.write_text(path.read_text().replace(' 0"', f' {"0" * 80}"'))
    outcome = run(tiny, Downstream(every=None))
    (sentence,) = outcome.failed
    assert sentence.startswith("embedded/term: an answer of ")
    assert sentence.endswith("tokens is longer than the model's context of 32")
    assert outcome.units == len(TASKS) - 1


def test_damaged_weights_fail_every_task_of_their_checkpoint(make_study: Make) -> None:
    tiny = make_study("full_rank", "cola", downstream="{every: null, tasks: [cloze]}")
    saved = tiny.store.find(records.Checkpoint, kind="final")[0]
    weights = tiny.root / saved.path / "model.safetensors"
    body = bytearray(weights.read_bytes())
    body[-1] ^= 1
    weights.write_bytes(body)
    outcome = run(tiny)
    assert outcome.units == 1
    assert "does not match its manifest" in outcome.failed[0]


def test_scores_belong_to_the_weights(make_study: Make) -> None:
    """Check that checkpoints share requests, but never results: another order of evaluation gives
    the same rows.
    """
    tiny = make_study("full_rank", "cola", downstream="{tasks: [cloze]}")
    for saved in reversed(tiny.store.find(records.Checkpoint)):
        run(tiny, selection=Selection(checkpoints=(saved.id,)))
    apart = {
        (s.checkpoint_id, s.task, s.metric): s.value
        for s in tiny.store.find(records.DownstreamScore)
    }
    assert len({apart[c, "cloze", "bits_per_byte"] for c, _, _ in apart}) == 6, (
        "six checkpoints, six scores"
    )
    run(tiny, Downstream(tasks=("cloze",), initial=True, bootstrap=11))
    other = max(p.id for p in tiny.store.find(records.Protocol, lens="downstream"))
    together = {
        (s.checkpoint_id, s.task, s.metric): s.value
        for s in tiny.store.find(records.DownstreamScore, protocol_id=other)
    }
    assert together == pytest.approx(apart, rel=1e-6)


def test_the_command_evaluates_and_plans(
    make_study: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny = make_study("full_rank")
    arguments = [
        str(tiny.file),
        "--set",
        f"output={tiny.root}",
        "--db",
        f"sqlite:///{tmp_path / 'lowrank.db'}",
        "--final",
    ]
    assert command_line(["evaluate", *arguments, "--plan", "--json"]) == 0
    assert capsys.readouterr().out.count('"task"') == len(TASKS)
    assert command_line(["evaluate", *arguments, "--tasks", "cloze,nonsense", "--limit", "4"]) == 1
    printed = capsys.readouterr()
    assert "failed: unknown downstream task 'nonsense'" in printed.err
    assert {s.n for s in tiny.store.find(records.DownstreamScore)} == {4}
    assert command_line(["evaluate", *arguments, "--suite", "embeded"]) == 2
    assert "did you mean 'embedded'?" in capsys.readouterr().err


def test_items_are_held_out_from_the_run_whatever_the_file_says_now(
    make_study: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny = make_study("full_rank", "cola")
    asked: list[float | None] = []
    planning = sys.modules["lowrank.evaluate.plan"]
    built = planning.build(None)
    monkeypatch.setattr(planning, "build", lambda fraction: asked.append(fraction) or built)
    plan(tiny.store, tiny.study)
    assert asked == [None], "trained on other text"
    run_row = tiny.store.find(records.Run, method="cola")[0]
    data = {**run_row.config["data"], "source": "embedded", "validation_fraction": 0.03}
    tiny.store.update(records.Run, run_row.id, config={**run_row.config, "data": data})
    asked.clear()
    plan(tiny.store, tiny.study)
    assert asked == [None, 0.03]
