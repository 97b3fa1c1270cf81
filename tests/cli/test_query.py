"""``lowrank query``: formats, files, parameters, statements."""

from __future__ import annotations

import csv
import io
import json
import math
from pathlib import Path

import pandas as pd
import pytest

from lowrank.cli import main, output
from lowrank.store import Store, queries, records

KINDS = "SELECT step, loss, loss_kind, gradient_norm, gradient_norm_kind FROM training_log ORDER BY step"


@pytest.fixture
def url(store_url: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """A store with one run whose training diverged, given by the environment."""
    with Store.open(store_url) as store:
        study = store.add(records.Study(name="demo", config={}, config_hash=""))
        run = store.add(
            records.Run(
                study_id=study.id or 0,
                config_hash="c",
                method="galore",
                scale="60m",
                seed=0,
                data_seed=0,
                init_seed=0,
            )
        )
        store.add_all(
            records.TrainingLog(
                run_id=run.id or 0, step=step, loss=loss, learning_rate=0.1, gradient_norm=norm
            )
            for step, loss, norm in ((1, 0.1, 1 / 3), (2, math.inf, math.nan), (3, math.nan, None))
        )
    monkeypatch.setenv("LOWRANK_DATABASE_URL", store_url)
    return store_url


def ask(capsys: pytest.CaptureFixture[str], *arguments: str, status: int = 0) -> str:
    assert main.run(["query", *arguments]) == status
    captured = capsys.readouterr()
    return captured.err if status else captured.out


def test_without_a_name_the_queries_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    found = json.loads(ask(capsys, "--json"))
    assert [row["query"] for row in found] == queries.names()
    assert all(row["description"] for row in found)


def test_json_has_null_beside_the_kind(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    found = json.loads(ask(capsys, "--sql", KINDS, "--json"))
    assert found[0] == {
        "step": 1,
        "loss": 0.1,
        "loss_kind": "finite",
        "gradient_norm": 1 / 3,
        "gradient_norm_kind": "finite",
    }
    assert [(row["loss"], row["loss_kind"]) for row in found[1:]] == [(None, "inf"), (None, "nan")]
    assert [(row["gradient_norm"], row["gradient_norm_kind"]) for row in found[1:]] == [
        (None, "nan"),
        (None, "absent"),
    ]


def test_csv_is_exact(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    found = list(csv.DictReader(io.StringIO(ask(capsys, "--sql", KINDS, "--format", "csv"))))
    assert float(found[0]["gradient_norm"]) == 1 / 3
    assert (found[1]["loss"], found[1]["loss_kind"]) == ("", "inf")


def test_parquet_restores_the_numbers(
    url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "curve.parquet"
    assert (
        ask(
            capsys,
            "training_curve",
            "--param",
            "method=galore",
            "--format",
            "parquet",
            "-o",
            str(target),
        )
        == ""
    )
    frame = pd.read_parquet(target)
    assert frame["loss"].tolist()[:2] == [0.1, math.inf]
    assert math.isnan(frame["loss"].iloc[2])
    assert "name a file" in ask(capsys, "runs", "--format", "parquet", status=2)


def test_a_table_for_people(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    lines = ask(capsys, "training_curve", "-p", "study=demo").splitlines()
    assert lines[0].split()[:2] == ["study", "scale"]
    assert "0.333333" in lines[2]
    assert len({line.index("demo") for line in lines[2:]}) == 1
    assert ask(capsys, "runs", "-p", "method=none").splitlines()[-1] == "(no rows)"


def test_parameters_and_types(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert len(json.loads(ask(capsys, "training_curve", "-p", "seed=0", "--json"))) == 3
    assert json.loads(ask(capsys, "training_curve", "-p", "seed=1", "--json")) == []
    count = "SELECT count(*) AS n FROM run WHERE method = :m"
    assert json.loads(ask(capsys, "--sql", count, "-p", "m=galore", "--json")) == [{"n": 1}]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["perplexty"], "did you mean 'perplexity'"),
        (["runs", "-p", "stdy=x"], "did you mean 'study'"),
        (["runs", "-p", "study"], "expected KEY=VALUE"),
        (["runs", "-p", "study=a", "-p", "study=b"], "given twice"),
        (["training_curve", "-p", "seed=x"], "is an integer"),
        (["metric_trajectory"], "needs the parameter 'metric'"),
        (["runs", "--sql", "SELECT 1"], "not both"),
    ],
)
def test_wrong_usage_needs_no_database(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert message in ask(capsys, *arguments, status=2)


@pytest.mark.parametrize(
    "statement",
    ["DELETE FROM run", "SELECT 1; DELETE FROM run", "SELEC 1", "SELECT nothing FROM run"],
)
def test_statements_that_write_or_are_wrong(
    url: str, statement: str, capsys: pytest.CaptureFixture[str]
) -> None:
    message = ask(capsys, "--sql", statement, status=1)
    assert message.startswith("Error: ")
    assert len(message.splitlines()) == 1
    assert json.loads(ask(capsys, "--sql", "SELECT count(*) AS n FROM run", "--json")) == [{"n": 1}]


def test_a_file_is_written_completely_or_not_at_all(
    url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "runs.csv"
    target.write_text("old")
    ask(capsys, "--sql", "SELECT nothing FROM run", "-o", str(target), status=1)
    assert target.read_text() == "old"
    ask(capsys, "runs", "--format", "csv", "-o", str(target))
    assert target.read_text().startswith("study,scale,method")
    assert "cannot be written" in ask(
        capsys, "runs", "-o", str(tmp_path / "no" / "runs.csv"), status=1
    )
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_numbers_that_json_has_no_name_for() -> None:
    text = output.json_text([{"x": math.inf, "y": math.nan, "y_kind": "nan", "z": 1}])
    assert json.loads(text) == [{"x": None, "x_kind": "inf", "y": None, "y_kind": "nan", "z": 1}]
    assert json.loads(output.json_text([])) == []
