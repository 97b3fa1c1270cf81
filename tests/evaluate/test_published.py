"""The published suite from local copies in the data sets' own formats, and our definitions of what
the harness lost.
"""

from __future__ import annotations

import json
import shutil
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

HELLASWAG = [
    {
        "ind": n,
        "activity_label": "Running",
        "ctx_a": "A dog ran to the house.",
        "ctx_b": "it",
        "ctx": "",
        "source_id": "",
        "endings": ["sat on a mat.", "was red [title] and old.", "ran and ran.", f"saw {n} cats."],
        "split": "val",
        "split_type": "indomain",
        "label": str(n % 4),
    }
    for n in range(6)
]
RECORD = [
    {
        "passage": f"Anna Bell and Bob met in Rome{n}.\n@highlight\nAnna was old\n@highlight\nBob ran",
        "query": "@placeholder was the older",
        "entities": ["Bob", "Anna Bell", f"Rome{n}", "Bob"],
        "answers": ["Anna Bell"],
        "idx": {"passage": n, "query": n},
    }
    for n in range(5)
]
LOGIQA = "".join(
    f"\n{letter}\nThe cat sat on mat {n}.The dog ran.\nWhich of them ran?\nA.The cat.\nB.The dog.\nC.Both.\nD.None of them.\n"
    for n, letter in enumerate("bacd")
)
LOGIQA2 = "".join(
    json.dumps(
        {  # `type` has other keys in every line, and may have none
            "id": n,
            "answer": n % 4,
            "text": f" The cat sat on mat {n}. ",
            "question": "Which? ",
            "options": ["a ", "b", "c", "d"],
            "type": {f"Reasoning {n}": True} if n else {},
        }
    )
    + "\n"
    for n in range(4)
)
LETTERED = {"text": ["a mat", "a dog", "a red house"], "label": ["A", "B", "C"]}
HUB: dict[
    str, tuple[str, list[dict[str, Any]]]
] = {  # the scored file as the hub has it, below the folder of the task
    "hellaswag": ("data/validation-00000-of-00001.parquet", HELLASWAG),
    "piqa": (
        "piqa_validation.parquet",
        [
            {"goal": f"To sit {n}", "sol1": "use a mat", "sol2": "use it", "label": n % 2}
            for n in range(4)
        ],
    ),
    "copa": (
        "copa/validation-00000-of-00001.parquet",
        [
            {
                "premise": f"The dog {n} ran.",
                "choice1": "It was old.",
                "choice2": "The cat sat.",
                "question": ("cause", "effect")[n % 2],
                "idx": n,
                "label": n % 2,
            }
            for n in range(4)
        ],
    ),
    "swag": (
        "regular/validation-00000-of-00001.parquet",
        [
            {
                "video-id": "v",
                "fold-ind": str(n),
                "startphrase": f"A cat {n} sat. It",
                "sent1": "A cat sat.",
                "sent2": "It",
                "gold-source": "gold",
                "ending0": "ran.",
                "ending1": "was red.",
                "ending2": "sat on it.",
                "ending3": "ran to a mat.",
                "label": n % 4,
            }
            for n in range(3)
        ],
    ),
    "openbookqa": (
        "main/test-00000-of-00001.parquet",
        [
            {
                "id": str(n),
                "question_stem": f"A cat {n} sat on",
                "choices": LETTERED,
                "answerKey": "ABC"[n],
            }
            for n in range(3)
        ],
    ),
    "arc_easy": (
        "ARC-Easy/test-00000-of-00001.parquet",
        [
            {"id": "a", "question": "Where?", "choices": LETTERED, "answerKey": "C"},
            {
                "id": "b",
                "question": "Who ran?",
                "choices": {"text": ["cat", "dog"], "label": ["1", "2"]},
                "answerKey": "2",
            },
        ],
    ),
    "qa4mre_2013": (
        "2013.main.EN/train-00000-of-00001.parquet",
        [
            {
                "topic_id": "1",
                "topic_name": "t",
                "test_id": "1",
                "document_id": "1",
                "document_str": " The cat sat. ",
                "question_id": str(n),
                "question_str": "Who sat?",
                "answer_options": {"answer_id": ["1", "2"], "answer_str": ["a dog", "the cat"]},
                "correct_answer_id": "2",
                "correct_answer_str": "the cat",
            }
            for n in range(2)
        ],
    ),
    "record": ("record/validation-00000-of-00001.parquet", RECORD),
}
PAIRS = [
    {
        "sentence_good": f"The cat {n} sat.",
        "sentence_bad": f"The cat {n} sit.",
        "field": "syntax",
        "linguistics_term": "agreement",
        "UID": "x",
        "simple_LM_method": True,
        "one_prefix_method": False,
        "two_prefix_method": False,
        "lexically_identical": False,
        "pair_id": n,
    }
    for n in range(2)
]


def parquet(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), path)


def text(path: Path, body: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(body, encoding="utf-8")


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    """Write the data sets as `hf download` and `curl` leave them, together with other splits and
    subsets.
    """
    here = tmp_path / "data"
    for name, (file, rows) in HUB.items():
        parquet(
            here / name / file.replace("validation", "train").replace("test-", "train-"), [{"x": 1}]
        )
        parquet(here / name / file, rows)
        if "/" in file:
            parquet(here / name / "other" / Path(file).name, [{"x": 1}])
    (here / "hellaswag/other/validation-00000-of-00001.parquet").unlink()  # it has no subsets
    for path in definitions.define("blimp", PUBLISHED.tasks["blimp"], None, None).files:
        parquet(here / "blimp" / path.stem / "train-00000-of-00001.parquet", PAIRS)
    text(here / "logiqa/test.txt", LOGIQA)
    text(here / "logiqa2/test.txt", LOGIQA2)
    return here


def test_the_whole_published_suite_runs_from_local_files(make_study: Make, data_dir: Path) -> None:
    tiny = make_study("full_rank")
    settings = Downstream(suites=("published",), every=None, batch_size=4, data_dir=str(data_dir))
    outcome = evaluate(tiny.store, tiny.study, tiny.root, settings, progress=False)
    assert outcome.failed == []
    assert outcome.units == 11
    found = {(s.task, s.metric): s for s in tiny.store.find(records.DownstreamScore)}
    assert {task: s.n for (task, metric), s in found.items() if metric == "margin"} == {
        "hellaswag": 6,
        "piqa": 4,
        "copa": 4,
        "swag": 3,
        "openbookqa": 3,
        "arc_easy": 2,
        "qa4mre_2013": 2,
        "record": 5,
        "blimp": 134,
        "logiqa": 4,
        "logiqa2": 4,
    }
    for task in PUBLISHED.tasks:
        own = {"record": {"f1", "em"}, "copa": {"acc"}, "blimp": {"acc"}}.get(
            task, {"acc", "acc_norm"}
        )
        assert {metric for name, metric in found if name == task} == own | {
            "margin",
            "bits_per_byte",
        }
    chances = {task: s.chance for (task, metric), s in found.items() if metric in ("acc", "em")}
    assert chances == pytest.approx(
        {
            "hellaswag": 1 / 4,
            "piqa": 1 / 2,
            "copa": 1 / 2,
            "swag": 1 / 4,
            "openbookqa": 1 / 3,
            "arc_easy": (1 / 3 + 1 / 2) / 2,
            "qa4mre_2013": 1 / 2,
            "record": 1 / 3,
            "blimp": 1 / 2,
            "logiqa": 1 / 4,
            "logiqa2": 1 / 4,
        }
    )
    assert {task: s.task_version for (task, metric), s in found.items() if metric == "margin"} == {
        **dict.fromkeys(PUBLISHED.tasks, "1.0"),
        "record": "2.0",
        "logiqa2": "0.0",
    }
    assert found["logiqa", "acc"].note.endswith("were cut on the left to fit the model")


def test_a_task_without_its_file_stops_no_other(make_study: Make, data_dir: Path) -> None:
    tiny = make_study("full_rank")
    (data_dir / "piqa/piqa_validation.parquet").unlink()
    settings = Downstream(
        suites=("published",), tasks=("copa", "piqa"), every=None, data_dir=str(data_dir)
    )
    outcome = evaluate(tiny.store, tiny.study, tiny.root, settings, progress=False)
    assert outcome.units == 1
    assert outcome.failed == [
        f"published/piqa: the task 'piqa' finds no file of its validation split below {data_dir / 'piqa'}; "
        "fetch it with: hf download --repo-type dataset baber/piqa --local-dir DIR/piqa"
    ]


@pytest.mark.parametrize(
    ("files", "chosen"),
    [
        (
            [
                "data/validation-00000-of-00002.parquet",
                "data/validation-00001-of-00002.parquet",
                "data/train-00000-of-00001.parquet",
            ],
            2,
        ),
        (["piqa_validation.parquet", "piqa_train.parquet"], 1),
        (["default/validation/0000.parquet", "default/train/0000.parquet"], 1),
        (["data/hellaswag_val.jsonl", "data/hellaswag_train.jsonl"], 1),
        (["dev.jsonl", "validation_notes.jsonl", "dev_zh.jsonl"], 1),
        (["validation-00000-of-00001-85693e1c669ad174.parquet", "test.parquet"], 1),
    ],
)
def test_the_scored_split_is_found_by_its_name(
    tmp_path: Path, files: list[str], chosen: int
) -> None:
    for file in files:
        text(tmp_path / "piqa" / file, "{}")
    found = definitions._files("piqa", PUBLISHED.tasks["piqa"], None, tmp_path)
    assert [str(path.relative_to(tmp_path / "piqa")) for path in found] == files[:chosen]


def test_several_files_of_one_split_are_named(tmp_path: Path) -> None:
    for file in ("a/test.txt", "b/test.txt"):
        text(tmp_path / "logiqa2" / file, LOGIQA2)
    with pytest.raises(
        EvaluationError,
        match=r"several files of its test split below \S+ \(a/test.txt, b/test.txt\); leave one",
    ):
        definitions.define("logiqa2", PUBLISHED.tasks["logiqa2"], tmp_path, None)


def test_items_are_asked_as_the_data_set_says(data_dir: Path) -> None:
    task = harness.load(
        definitions.define("hellaswag", PUBLISHED.tasks["hellaswag"], data_dir, None), None
    )
    (member,) = task.members.values()
    assert member.instances[5].args == ("Running: A dog ran to the house. It", " was red. and old.")
    assert task.answers["hellaswag", 1].right == (1,)
    logi = harness.load(
        definitions.define("logiqa", PUBLISHED.tasks["logiqa"], data_dir, None), None
    )
    context, answer = logi.members["logiqa"].instances[1].args
    assert context == (
        "Passage: The cat sat on mat 0. The dog ran.\nQuestion: Which of them ran?\nChoices:\n"
        "A. The cat.\nB. The dog.\nC. Both.\nD. None of them.\nAnswer:"
    )
    assert answer == " The dog."
    assert [logi.answers["logiqa", n].right for n in range(4)] == [(1,), (0,), (2,), (3,)]


def test_a_group_needs_every_member(data_dir: Path) -> None:
    shutil.rmtree(data_dir / "blimp/anaphor_gender_agreement")
    with pytest.raises(
        EvaluationError,
        match="'blimp' finds no file of its train split of 'anaphor_gender_agreement'",
    ):
        definitions.define("blimp", PUBLISHED.tasks["blimp"], data_dir, None)
    shutil.rmtree(data_dir / "blimp")
    installed = definitions.define("blimp", PUBLISHED.tasks["blimp"], None, None)
    assert len(installed.files) == 67
    for path in installed.files:
        text(
            data_dir / "blimp" / f"{path.stem}.jsonl",
            "".join(json.dumps(pair) + "\n" for pair in PAIRS),
        )
    chosen = definitions.define("blimp", PUBLISHED.tasks["blimp"], data_dir, None)
    few = definitions.Definition("blimp", chosen.files[:3], chosen.origin)
    task = harness.load(few, None)
    assert len(task.members) == 3
    assert [i.args for i in next(iter(task.members.values())).instances[:2]] == [
        ("", " The cat 0 sat."),
        ("", " The cat 0 sit."),
    ]


def test_a_task_that_the_installed_harness_lacks_is_named() -> None:
    gone = PUBLISHED.tasks["piqa"].model_copy(update={"include": "piqa/gone.yaml"})
    with pytest.raises(
        EvaluationError,
        match=r"'piqa' is unknown to the installed harness \(no piqa/gone.yaml among its tasks\)",
    ):
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
        "commonsense": ["hellaswag", "piqa", "copa", "swag"],
        "world_knowledge": ["openbookqa", "arc_easy", "qa4mre_2013"],
        "reading_comprehension": ["record"],
        "grammar": ["blimp"],
        "logical_reasoning": ["logiqa", "logiqa2"],
    }


@pytest.mark.parametrize(
    ("given", "answer", "f1", "em"),
    [
        ("The Anna Bell!", "anna bell", 1.0, 1.0),
        ("Anna", "Anna Bell", 2 / 3, 0.0),
        ("a", "the", 1.0, 1.0),
        ("the", "Bob", 0.0, 0.0),
        ("Bell of Rome", "Anna Bell", 0.4, 0.0),
    ],
)
def test_record_scores_are_those_of_squad(given: str, answer: str, f1: float, em: float) -> None:
    assert record.token_f1(given, answer) == pytest.approx(f1)
    assert record.exact_match(given, answer) == em


def test_record_asks_the_query_with_each_entity_in_its_gap() -> None:
    doc = {**RECORD[0], "entities": ["Anna Bell", "Bob"], "answers": ["Anna Bell"]}
    assert (
        record.text(doc) == "Anna Bell and Bob met in Rome0.\n\n  - Anna was old.\n  - Bob ran.\n"
    )
    assert record.choices(doc) == ["  - Anna Bell was the older", "  - Bob was the older"]
    assert record.answers(doc) == [0]
    assert record.scores(doc, [(-1.0, False), (-2.0, False)]) == {"f1": 1.0, "em": 1.0}
    assert record.scores(doc, [(-3.0, False), (-2.0, False)]) == {"f1": 0.0, "em": 0.0}


@pytest.mark.parametrize(
    "row",
    [
        {"label": "c", "context": "x", "question": "q", "options": ["1", "2", "3", "4"]},
        {"correct_option": 2, "context": "x", "query": "q", "options": ["1", "2", "3", "4"]},
    ],
)
def test_logiqa_is_read_from_its_conversions_too(row: dict[str, Any]) -> None:
    assert logiqa._parse(row) == {
        "context": "x",
        "question": "q",
        "options": ["1", "2", "3", "4"],
        "answer": 2,
    }
