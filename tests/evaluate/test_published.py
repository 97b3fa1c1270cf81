"""The published suite from local copies in the data sets' own formats, and our definitions of what the harness lost."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lowrank.config.schema import Downstream
from lowrank.evaluate import definitions, evaluate, harness, suites
from lowrank.evaluate.errors import EvaluationError
from lowrank.evaluate.tasks import logiqa, record
from lowrank.store import records

Make = Callable[..., Any]
PUBLISHED = suites.get("published")

HELLASWAG = [{
    "ind": n, "activity_label": "Running", "ctx_a": "A dog ran to the house.", "ctx_b": "it", "ctx": "", "source_id": "",
    "endings": ["sat on a mat.", "was red [title] and old.", "ran and ran.", f"saw {n} cats."], "split": "val",
    "split_type": "indomain", "label": str(n % 4),
} for n in range(6)]
RECORD = [{
    "passage": f"Anna Bell and Bob met in Rome{n}.\n@highlight\nAnna was old\n@highlight\nBob ran",
    "query": "@placeholder was the older",
    "entities": ["Bob", "Anna Bell", f"Rome{n}", "Bob"], "answers": ["Anna Bell"], "idx": {"passage": n, "query": n},
} for n in range(5)]
LOGIQA = "".join(
    f"\n{letter}\nThe cat sat on mat {n}.The dog ran.\nWhich of them ran?\nA.The cat.\nB.The dog.\nC.Both.\nD.None of them.\n"
    for n, letter in enumerate("bacd")
)
LOGIQA2 = "".join(json.dumps({
    "id": n, "answer": n % 4, "text": f" The cat sat on mat {n}. ", "type": {"Necessary": True}, "question": "Which? ",
    "options": ["a ", "b", "c", "d"],
}) + "\n" for n in range(4))


def parquet(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), path)


def text(path: Path, body: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(body, encoding="utf-8")


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    """Four data sets as `hf download` and `curl` leave them, with other splits and subsets beside."""
    here = tmp_path / "data"
    parquet(here / "hellaswag/data/validation-00000-of-00001.parquet", HELLASWAG)
    parquet(here / "hellaswag/data/train-00000-of-00001.parquet", HELLASWAG[:1])
    parquet(here / "record/record/validation-00000-of-00001.parquet", RECORD)
    parquet(here / "record/copa/validation-00000-of-00001.parquet", [{"premise": "x"}])
    text(here / "logiqa/test.txt", LOGIQA)
    text(here / "logiqa2/test.txt", LOGIQA2)
    return here


def test_tasks_of_the_published_suite_run_from_local_files(make_study: Make, data_dir: Path) -> None:
    tiny = make_study("full_rank")
    settings = Downstream(
        suites=("published",), tasks=("hellaswag", "record", "logiqa", "logiqa2", "piqa"), every=None, batch_size=4,
        data_dir=str(data_dir),
    )
    outcome = evaluate(tiny.store, tiny.study, tiny.root, settings, progress=False)
    assert outcome.units == 4
    (missing,) = outcome.failed
    assert missing == (
        f"published/piqa: the task 'piqa' finds no file of its validation split below {data_dir / 'piqa'}; "
        "fetch it with: hf download --repo-type dataset baber/piqa --local-dir DIR/piqa"
    )
    found = {(s.task, s.metric): s for s in tiny.store.find(records.DownstreamScore)}
    assert {task: n for (task, _), n in ((key, s.n) for key, s in found.items())} == {
        "hellaswag": 6, "record": 5, "logiqa": 4, "logiqa2": 4,
    }
    assert {m for task, m in found if task == "hellaswag"} == {"acc", "acc_norm", "margin", "bits_per_byte"}
    assert {m for task, m in found if task == "record"} == {"f1", "em", "margin", "bits_per_byte"}
    assert (found["hellaswag", "acc"].chance, found["record", "em"].chance) == (0.25, pytest.approx(1 / 3))
    assert found["hellaswag", "acc"].task_version == "1.0"
    assert found["logiqa", "acc"].note.endswith("were cut on the left to fit the model")


def test_items_are_asked_as_the_data_set_says(data_dir: Path) -> None:
    task = harness.load(definitions.define("hellaswag", PUBLISHED.tasks["hellaswag"], data_dir, None), None)
    (member,) = task.members.values()
    assert member.instances[5].args == ("Running: A dog ran to the house. It", " was red. and old.")
    assert task.answers["hellaswag", 1].right == (1,)
    logi = harness.load(definitions.define("logiqa", PUBLISHED.tasks["logiqa"], data_dir, None), None)
    context, answer = logi.members["logiqa"].instances[1].args
    assert context == (
        "Passage: The cat sat on mat 0. The dog ran.\nQuestion: Which of them ran?\nChoices:\n"
        "A. The cat.\nB. The dog.\nC. Both.\nD. None of them.\nAnswer:"
    )
    assert answer == " The dog."
    assert [logi.answers["logiqa", n].right for n in range(4)] == [(1,), (0,), (2,), (3,)]


def test_a_group_needs_every_member(data_dir: Path) -> None:
    pairs = [{"sentence_good": f"The cat {n} sat.", "sentence_bad": f"The cat {n} sit."} for n in range(2)]
    parquet(data_dir / "blimp/adjunct_island/train-00000-of-00001.parquet", pairs)
    with pytest.raises(EvaluationError, match="'blimp' finds no file of its train split of 'anaphor_gender_agreement'"):
        definitions.define("blimp", PUBLISHED.tasks["blimp"], data_dir, None)
    installed = definitions.define("blimp", PUBLISHED.tasks["blimp"], None, None)
    assert len(installed.files) == 67
    for path in installed.files:
        text(data_dir / "blimp" / f"{path.stem}.jsonl", "".join(json.dumps(pair) + "\n" for pair in pairs))
    chosen = definitions.define("blimp", PUBLISHED.tasks["blimp"], data_dir, None)
    few = definitions.Definition("blimp", chosen.files[:3], chosen.origin)
    task = harness.load(few, None)
    assert len(task.members) == 3
    assert [i.args for i in next(iter(task.members.values())).instances[:2]] == [("", " The cat 0 sat."), ("", " The cat 0 sit.")]


def test_a_task_that_the_installed_harness_lacks_is_named() -> None:
    gone = PUBLISHED.tasks["piqa"].model_copy(update={"include": "piqa/gone.yaml"})
    with pytest.raises(EvaluationError, match=r"'piqa' is unknown to the installed harness \(no piqa/gone.yaml among its tasks\)"):
        definitions.define("piqa", gone, None, None)


def test_a_data_set_that_cannot_be_reached_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    def refuse(*_: Any, **__: Any) -> None:
        raise ConnectionError("Couldn't reach 'baber/piqa' on the Hub\nlong trace")

    monkeypatch.setattr(datasets, "load_dataset", refuse)
    with pytest.raises(EvaluationError) as caught:
        harness.load(definitions.define("piqa", PUBLISHED.tasks["piqa"], None, None), None)
    assert str(caught.value) == (
        "the task 'piqa' cannot read its data (baber/piqa): ConnectionError: Couldn't reach 'baber/piqa' on the Hub; "
        "connect, or fetch the files beforehand and give --data-dir"
    )


def test_the_suite_has_the_eleven_tasks_in_their_categories() -> None:
    by_category: dict[str, list[str]] = {}
    for name, info in PUBLISHED.tasks.items():
        by_category.setdefault(info.category, []).append(name)
        assert info.primary in info.metrics
    assert by_category == {
        "commonsense": ["hellaswag", "piqa", "copa", "swag"], "world_knowledge": ["openbookqa", "arc_easy", "qa4mre_2013"],
        "reading_comprehension": ["record"], "grammar": ["blimp"], "logical_reasoning": ["logiqa", "logiqa2"],
    }


@pytest.mark.parametrize(("given", "answer", "f1", "em"), [
    ("The Anna Bell!", "anna bell", 1.0, 1.0), ("Anna", "Anna Bell", 2 / 3, 0.0), ("a", "the", 1.0, 1.0), ("the", "Bob", 0.0, 0.0),
    ("Bell of Rome", "Anna Bell", 0.4, 0.0),
])
def test_record_scores_are_those_of_squad(given: str, answer: str, f1: float, em: float) -> None:
    assert record.token_f1(given, answer) == pytest.approx(f1)
    assert record.exact_match(given, answer) == em


def test_record_asks_the_query_with_each_entity_in_its_gap() -> None:
    doc = {**RECORD[0], "entities": ["Anna Bell", "Bob"], "answers": ["Anna Bell"]}
    assert record.text(doc) == "Anna Bell and Bob met in Rome0.\n\n  - Anna was old.\n  - Bob ran.\n"
    assert record.choices(doc) == ["  - Anna Bell was the older", "  - Bob was the older"]
    assert record.answers(doc) == [0]
    assert record.scores(doc, [(-1.0, False), (-2.0, False)]) == {"f1": 1.0, "em": 1.0}
    assert record.scores(doc, [(-3.0, False), (-2.0, False)]) == {"f1": 0.0, "em": 0.0}


@pytest.mark.parametrize("row", [
    {"label": "c", "context": "x", "question": "q", "options": ["1", "2", "3", "4"]},
    {"correct_option": 2, "context": "x", "query": "q", "options": ["1", "2", "3", "4"]},
])
def test_logiqa_is_read_from_its_conversions_too(row: dict[str, Any]) -> None:
    assert logiqa._parse(row) == {"context": "x", "question": "q", "options": ["1", "2", "3", "4"], "answer": 2}
