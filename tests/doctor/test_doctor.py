"""The doctor finds each kind of damage, fixes what can be fixed, and keeps what a missing result
needs.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from lowrank import checkpoint
from lowrank.cli.main import run
from lowrank.store import Store, records
from lowrank.store.claims import UNITS, Claims
from lowrank.study import Plan, plan_rows

STUDY = """
name: tiny
output: {root}
methods: [full_rank, cola]
scales: {{pico: {{shape: {{hidden_size: 16, intermediate_size: 24, num_hidden_layers: 1, num_attention_heads: 2, rank: 4}}}}}}
data: {{source: text, path: {corpus}, vocabulary_size: 300, max_length: 16, validation_fraction: 0.2, validation_tokens: 300}}
training: {{steps: 4, batch_size: 2, learning_rate: 0.01, checkpoint_every: 2}}
metrics: [spectra]
"""


@pytest.fixture(scope="session")
def studied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a study that has been run."""
    folder = tmp_path_factory.mktemp("studied")
    rng = random.Random(5)
    words = ["matrix", "rank", "gradient", "weight", "loss", "step", "seed", "token"]
    (folder / "corpus.txt").write_text(
        "\n\n".join(" ".join(rng.choices(words, k=30)) + f" {i}." for i in range(150))
    )
    (folder / "tiny.yaml").write_text(
        STUDY.format(root=folder / "out", corpus=folder / "corpus.txt")
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LOWRANK_CACHE", str(folder / "cache"))
        assert (
            run(["study", "run", str(folder / "tiny.yaml"), "--only", "train", "--only", "measure"])
            == 0
        )
    return folder


@pytest.fixture
def home(studied: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a copy of the study to damage."""
    shutil.copytree(studied, tmp_path, dirs_exist_ok=True)
    (tmp_path / "tiny.yaml").write_text(
        STUDY.format(root=tmp_path / "out", corpus=tmp_path / "corpus.txt")
    )
    monkeypatch.setenv("LOWRANK_CACHE", str(tmp_path / "cache"))
    return tmp_path


@pytest.fixture
def doctor(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, list[dict[str, Any]], str]]:
    """Call the doctor: exit status, findings that are not facts of the machine, stderr."""

    def call(*arguments: str) -> tuple[int, list[dict[str, Any]], str]:
        status = run(["doctor", str(home / "tiny.yaml"), "--json", *arguments])
        out, err = capsys.readouterr()
        return status, [row for row in json.loads(out) if row["level"] != "fact"], err

    return call


def open_store(home: Path) -> Store:
    return Store.open(home / "out" / "lowrank.db")


def test_a_healthy_study_yields_only_facts(
    home: Path, doctor: Callable, capsys: pytest.CaptureFixture[str]
) -> None:
    assert doctor() == (0, [], "")
    assert run(["doctor", str(home / "tiny.yaml"), "--json"]) == 0
    printed = " ".join(row["finding"] for row in json.loads(capsys.readouterr().out))
    for word in ("Python", "torch", "schema up to date", "cola-pico-s0", "KiB"):
        assert word in printed


def test_fix_repairs_everything_that_can_be_repaired(home: Path, doctor: Callable) -> None:
    with open_store(home) as store:
        saved = next(row for row in store.find(records.Checkpoint) if row.step == 2)
        store.add(records.Protocol(name="nobody", lens="spectra", metric_revision=1))
        assert Claims(store, "train").claim("train/tiny/x") is not None
        with store.connection(writes=True) as connection:
            connection.execute(sa.update(UNITS).values(owner="elsewhere@0/1/2/3", lease_until=1.0))
            for table in ("metric_value", "curve_point", "singular_value"):
                connection.exec_driver_sql(
                    f"DELETE FROM {table} WHERE {saved.id} IN (checkpoint_id, reference_checkpoint_id)"
                )
            connection.exec_driver_sql(f"DELETE FROM checkpoint WHERE id = {saved.id}")
    run_folder = (home / "out" / saved.path).parents[1]
    half = run_folder / "checkpoints" / ".step_00000003.abcd.tmp"
    half.mkdir()
    os.utime(half, (time.time() - 3600,) * 2)
    fresh = run_folder / "checkpoints" / ".step_00000004.abcd.tmp"
    fresh.mkdir()  # another process may still write it
    (run_folder / "resume" / "step_00000004").mkdir(parents=True)
    status, found, _ = doctor()
    assert status == 1
    assert [row["mended_by"] for row in found] == ["--fix"] * 5
    for word in (
        "no value uses it",
        "has died or does not respond",
        "was never completed",
        "has no row",
        "needs no resume point",
    ):
        assert sum(word in row["finding"] for row in found) == 1, word
    assert (
        run(["doctor", str(home / "tiny.yaml"), "--yes"]) == 2
    )  # --yes without --fix answers no question
    assert doctor("--fix", "--yes")[0] == 0
    assert doctor()[:2] == (0, [])
    with open_store(home) as store:
        again = store.first(records.Checkpoint, run_id=saved.run_id, step=2)
        assert again == saved  # every column but the id
        assert again is not None
    assert (half.exists(), fresh.exists(), (run_folder / "resume").exists()) == (False, True, False)


def test_fix_asks_for_confirmation(
    home: Path, doctor: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_store(home) as store:
        store.add(records.Protocol(name="nobody", lens="spectra", metric_revision=1))
    asked: list[str] = []
    monkeypatch.setattr("click.confirm", lambda text, **_: asked.append(text))  # None: no
    doctor("--fix")
    assert len(asked) == 1
    with open_store(home) as store:
        assert store.first(records.Protocol, name="nobody") is not None


@pytest.mark.parametrize("damage", ["folder", "weights", "manifest", "other", "outside"])
def test_rows_without_their_files_are_problems(home: Path, doctor: Callable, damage: str) -> None:
    with open_store(home) as store:
        saved = store.find(records.Checkpoint)[1]
        folder = home / "out" / saved.path
        if damage == "folder":
            shutil.rmtree(folder)
        elif damage == "weights":
            (folder / checkpoint.WEIGHTS).unlink()
        elif damage == "manifest":
            (folder / checkpoint.MANIFEST).write_text("{")
        else:
            change = "path = '../../etc'" if damage == "outside" else "sha256 = 'x'"
            with store.connection(writes=True) as connection:
                connection.exec_driver_sql(f"UPDATE checkpoint SET {change} WHERE id = {saved.id}")
    status, found, _ = doctor("--fix", "--yes")
    problems = [row for row in found if row["level"] == "problem"]
    assert status == 1
    if damage != "outside":
        assert len(problems) == 1
    assert f"checkpoint {saved.id}" in problems[0]["finding"]
    assert problems[0]["advice"]


def test_a_damaged_database_is_reported(
    home: Path, doctor: Callable, capsys: pytest.CaptureFixture[str]
) -> None:
    path = home / "out" / "lowrank.db"
    body = bytearray(path.read_bytes())
    middle = len(body) // 2
    body[middle : middle + 8192] = os.urandom(8192)
    path.write_bytes(bytes(body))
    status = run(["doctor", str(home / "tiny.yaml"), "--json"])
    out, err = capsys.readouterr()
    assert status == 1
    assert "malformed" in err or any(
        row["level"] == "problem" and row["area"] == "store" for row in json.loads(out)
    )
    assert "Traceback" not in err


def weights(home: Path) -> set[tuple[str, int]]:
    found = (home / "out").glob(f"runs/*/checkpoints/step_*/{checkpoint.WEIGHTS}")
    return {
        (path.parts[-4].split("-")[0], int(path.parts[-2].removeprefix("step_"))) for path in found
    }


def test_retention_keeps_weights_that_a_missing_result_needs(home: Path, doctor: Callable) -> None:
    everything = {(method, step) for method in ("full_rank", "cola") for step in (0, 2, 4)}
    file = home / "tiny.yaml"
    text = file.read_text()
    assert weights(home) == everything
    file.write_text(
        text.replace(
            "metrics: [spectra]", "metrics: [spectra, activations]\nkeep: {checkpoints: final}"
        )
    )
    doctor("--fix", "--yes")
    assert {entry for entry in everything if entry[1] == 4} < weights(home)
    plan = Plan.of(file)
    with open_store(home) as store:  # all checkpoints that the added lens compares still exist
        needed = {
            (row["method"], row["step"])
            for row in plan_rows(store, plan)
            if row["stage"] == "measure"
        }
    assert needed
    assert needed <= weights(home)
    file.write_text(text + "\nkeep: {every: 2}\n")
    doctor("--fix", "--yes")
    assert {(method, step) for method in ("full_rank", "cola") for step in (0, 4)} == weights(home)
    assert doctor()[:2] == (0, [])  # weights deleted by keep are not damage
    with open_store(home) as store:
        saved = next(row for row in store.find(records.Checkpoint) if row.step == 2)
    with pytest.raises(checkpoint.CheckpointError, match="deleted by the study's section 'keep'"):
        checkpoint.load(home / "out" / saved.path, saved.sha256)


def test_retention_waits_until_all_runs_have_ended(home: Path, doctor: Callable) -> None:
    file = home / "tiny.yaml"
    file.write_text(file.read_text() + "\nkeep: {checkpoints: final}\n")
    with open_store(home) as store:
        store.update(records.Run, 1, status="planned")
    before = weights(home)
    _, found, _ = doctor("--fix", "--yes")
    assert weights(home) == before
    assert any("once all runs have ended" in row["finding"] for row in found)


def test_failures_come_with_their_log(home: Path, doctor: Callable) -> None:
    """The study has a log, for it was run; without one nothing is said of it."""
    with Store.open(home / "out" / "lowrank.db") as store:
        study, run = store.find(records.Study)[0], store.find(records.Run)[0]
        store.put(
            records.Study(**{**vars(study), "id": None, "root": str((home / "out").resolve())})
        )
        store.update(records.Run, run.id, status="failed", error="why")
        store.put(
            records.WorkUnit(
                unit_key="a", kind="measure", status="failed", error="why", study_id=study.id
            )
        )
    log = home / "out" / "logs" / "lowrank.log"
    assert "study run" in log.read_text()
    for expected in (f"fix the cause (see {log.resolve()}), then", "fix the cause, then"):
        _, rows, _ = doctor()
        advice = [row["advice"] for row in rows if "why" in row["finding"]]
        assert len(advice) == 2
        assert all(sentence.startswith(expected) for sentence in advice)
        log.unlink(missing_ok=True)
