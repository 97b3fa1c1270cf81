"""A lens from outside: the text of CONTRIBUTING, "Add a metric", and one entry point. It is
measured, a column, a candidate, and in the report, and no file of lowrank names it.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from lowrank import metrics
from lowrank.checkpoint import load
from lowrank.cli.main import run
from lowrank.errors import LowrankError
from lowrank.measure import measure
from lowrank.measure.plan import resolve_metrics
from lowrank.metrics.base import PlainSettings
from lowrank.predict.features import feature_table
from lowrank.predict.study import selectable
from lowrank.report import write
from lowrank.store import records

ROOT = Path(__file__).parents[2]
SUITE = ROOT / "tests" / "metrics" / "test_lenses.py"
NAME = "nuclear_norm"
TASKS = ("one", "two")


def example() -> str:
    """The lens of CONTRIBUTING.md."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    (found,) = re.findall(r"^```python\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)
    return found


@dataclass
class Outside:
    """A distribution with the lens, and the study that asks for it."""

    folder: Path
    study: Any


@pytest.fixture
def outside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make_study: Callable[..., Any]
) -> Iterator[Outside]:
    """The example installed, and a tiny study measured with it."""
    folder = tmp_path / "installed"
    info = folder / f"{NAME}-1.0.dist-info"
    info.mkdir(parents=True)
    (folder / f"{NAME}.py").write_text(example(), encoding="utf-8")
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {NAME}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[lowrank.metrics]\n{NAME} = {NAME}:LENS\n")
    monkeypatch.syspath_prepend(str(folder))
    tiny = make_study("full_rank", "cola", "galore", metrics=f"[{NAME}]")
    measure(tiny.store, tiny.study, tiny.root, progress=False)
    yield Outside(folder, tiny)
    sys.modules.pop(NAME, None)


def score(tiny: Any) -> None:
    """Give every checkpoint two downstream scores."""
    suite = records.Protocol(name="embedded", lens="downstream", metric_revision=1)
    protocol = tiny.store.add(suite)
    for place, point in enumerate(tiny.store.find(records.Checkpoint)):
        for task in TASKS:
            tiny.store.add(
                records.DownstreamScore(
                    checkpoint_id=point.id or 0, protocol_id=protocol.id or 0, task=task,
                    category="any", metric="acc", value=0.1 * place, n=10, task_version="1",
                    harness_version="1",
                )
            )  # fmt: skip


def test_the_example_is_short() -> None:
    assert len([line for line in example().splitlines() if line.strip()]) <= 20


def test_it_is_measured_as_its_text_says(outside: Outside) -> None:
    store, root = outside.study.store, outside.study.root
    found = {v.checkpoint_id: v for v in store.find(records.MetricValue, metric=NAME)}
    assert len(found) == store.count(records.Checkpoint) == 9
    for point in store.find(records.Checkpoint):
        value = found[point.id or 0]
        loaded = load(root / point.path, point.sha256, dtype=torch.float32)
        dense = loaded.method.dense(loaded.model)
        if dense is None:
            assert (value.value, value.note) == (None, "no dense equivalent")
            continue
        sums = [float(torch.linalg.svdvals(W.double()).sum()) for W in dense.values()]
        assert value.value == pytest.approx(sum(sums) / len(sums), rel=1e-5)
        assert value.n == len(sums)
    (protocol,) = store.find(records.Protocol, lens=NAME)
    assert (protocol.name, protocol.precision, protocol.evaluation_set_id) == (
        "exact",
        "float32",
        None,
    )
    assert resolve_metrics(outside.study.study)[0].settings == PlainSettings()


def test_it_is_a_column_of_the_features(
    outside: Outside, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    score(outside.study)
    url = str(outside.study.store.file)
    assert run(["query", "features", "-p", "study=tiny", "--json", "--db", url]) == 0
    rows = json.loads(capsys.readouterr().out)
    stored = outside.study.store.find(records.MetricValue, metric=NAME)
    assert {row["checkpoint_id"]: row[NAME] for row in rows} == {
        value.checkpoint_id: value.value for value in stored
    }
    order = list(rows[0])
    assert (
        order.index("held_out_loss") + 1 == order.index(NAME) == order.index("downstream_mean") - 1
    )
    assert [name for name in order if name.startswith("score_")][-2:] == ["score_one", "score_two"]
    target = tmp_path / "features.csv"
    asked = ["query", "features", "-p", "study=tiny", "--format", "csv", "-o", str(target)]
    assert run([*asked, "--db", url]) == 0
    assert target.read_text(encoding="utf-8").splitlines()[0].split(",") == order


def test_the_predictor_may_choose_it(outside: Outside) -> None:
    score(outside.study)
    table = feature_table(outside.study.store, "tiny").complete([NAME])
    assert NAME in selectable(table, ())
    assert metrics.about(NAME).role == "geometry"


def test_the_report_shows_it(
    outside: Outside, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lowrank.report.writing.png", lambda _sheet: b"")
    page = write(outside.study.store, "tiny", tmp_path / "report", progress=False)
    text = page.read_text(encoding="utf-8")
    assert "Further metrics" in text
    assert "nuclear norm" in text
    rows = (tmp_path / "report" / "tables" / f"further_{NAME}.csv").read_text(encoding="utf-8")
    assert NAME in rows


def test_the_command_defines_it(outside: Outside, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["metrics", "--lens", NAME, "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert (row["metric"], row["unit"], row["revision"]) == (NAME, "weight", 1)


def test_the_whole_suite_of_lenses_applies_to_it(outside: Outside) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = os.pathsep.join(
        [str(outside.folder), *filter(None, [os.environ.get("PYTHONPATH")])]
    )
    command = [sys.executable, "-m", "pytest", str(SUITE), "-q", "-k", NAME]
    done = subprocess.run(
        [*command, "-p", "no:cacheprovider"],
        check=False, capture_output=True, text=True, env=environment, cwd=ROOT,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:]
    assert " passed" in done.stdout


def test_two_lenses_with_a_metric_of_one_name_are_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    info = tmp_path / "twin-1.0.dist-info"
    info.mkdir()
    text = example().replace('NAME = "nuclear_norm"', 'NAME = "stable_rank_w"')
    (tmp_path / "twin.py").write_text(text, encoding="utf-8")
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: twin\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[lowrank.metrics]\ntwin = twin:LENS\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(LowrankError, match=r"'spectra' and 'twin' both declare .* 'stable_rank_w'"):
        metrics.declared()
    monkeypatch.delitem(sys.modules, "twin")  # of a folder that is gone
