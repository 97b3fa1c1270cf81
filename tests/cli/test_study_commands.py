"""The way of a user: plan, run, status, runs, checkpoints, export; and what bad input says."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from lowrank.cli.main import run
from lowrank.store import Store, records

STUDY = """
name: tiny
output: {root}
methods: {{full_rank: {{}}, sltrain: {{settings: {{sparsity: 0.1}}}}, cola: {{}}}}
scales: {{pico: {{shape: {{hidden_size: 16, intermediate_size: 24, num_hidden_layers: 1, num_attention_heads: 2, rank: 4}}}}}}
data: {{source: text, path: {corpus}, vocabulary_size: 300, max_length: 16, validation_fraction: 0.2, validation_tokens: 300}}
training: {{steps: 4, batch_size: 2, learning_rate: 0.01, checkpoint_every: 2}}
metrics: [spectra]
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a folder with a corpus and a study that has been run."""
    folder = tmp_path_factory.mktemp("home")
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
        assert run(["study", "plan", str(folder / "tiny.yaml")]) == 0
        assert not (folder / "out").exists()  # planning writes nothing
        assert run(["study", "run", str(folder / "tiny.yaml")]) == 0
    return folder


@pytest.fixture
def lowrank(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """Call the command line on the study's store: (exit status, stdout, stderr)."""
    monkeypatch.setenv("LOWRANK_CACHE", str(home / "cache"))
    monkeypatch.setenv("LOWRANK_DATABASE_URL", str(home / "out" / "lowrank.db"))

    def call(*arguments: str | Path) -> tuple[int, str, str]:
        status = run([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        return status, out, err

    return call


def rows(result: tuple[int, str, str]) -> list[dict]:
    status, out, err = result
    assert status == 0, err
    return json.loads(out)


def test_a_finished_study_has_no_plan(home: Path, lowrank: Callable) -> None:
    assert rows(lowrank("study", "plan", home / "tiny.yaml", "--json")) == []
    found = rows(lowrank("study", "status", home / "tiny.yaml", "--json"))
    assert [(row["method"], row["status"], row["checkpoints"]) for row in found] == [
        ("full_rank", "done", "3/3"),
        ("sltrain", "done", "3/3"),
        ("cola", "done", "3/3"),
    ]
    assert all(row["metric_values"] > 0 for row in found)
    (study,) = rows(lowrank("study", "list", "--json"))
    assert (study["name"], study["runs"], study["done"]) == ("tiny", 3, 3)


def test_more_seeds_extend_a_study(home: Path, lowrank: Callable) -> None:
    plan = rows(lowrank("study", "plan", home / "tiny.yaml", "--set", "seeds=[0, 1]", "--json"))
    assert [(row["stage"], row["method"], row["seed"]) for row in plan] == [
        ("train", m, 1) for m in ("full_rank", "sltrain", "cola")
    ]


def test_a_deleted_row_is_planned_again(home: Path, lowrank: Callable, tmp_path: Path) -> None:
    import sqlite3

    copy = tmp_path / "copy.db"
    with sqlite3.connect(home / "out" / "lowrank.db") as source, sqlite3.connect(copy) as target:
        source.backup(target)
        target.execute(
            "DELETE FROM metric_value WHERE metric = 'stable_rank_w' AND layer = 0 AND module = 'q' AND checkpoint_id = 2"
        )
    plan = rows(lowrank("study", "plan", home / "tiny.yaml", "--db", copy, "--json"))
    assert [(row["stage"], row["step"]) for row in plan] == [("measure", 2)] * len(plan) != []


def test_runs_are_listed_shown_cancelled_and_retried(lowrank: Callable, home: Path) -> None:
    listed = rows(lowrank("run", "list", "--study", "tiny", "--json"))
    assert [row["status"] for row in listed] == ["done"] * 3
    (shown,) = rows(lowrank("run", "show", "1", "--json"))
    assert shown["config"]["training"]["steps"] == 4
    assert shown["effective_learning_rate"] == 0.01
    status, _, err = lowrank("run", "cancel", "1")
    assert (status, "run 1 is done" in err) == (2, True)
    status, _, err = lowrank("run", "show", "99")
    assert (status, "no run 99" in err) == (2, True)
    with Store.open(str(home / "out" / "lowrank.db")) as store:
        store.update(records.Run, 2, status="failed", error="made up")
        assert lowrank("run", "retry", "2")[0] == 0
        assert store.get(records.Run, 2).status == "planned"
        store.update(records.Run, 2, status="done")


def test_checkpoints_are_verified_and_exported(
    lowrank: Callable, home: Path, tmp_path: Path
) -> None:
    from transformers import AutoModelForCausalLM, LlamaForCausalLM

    from lowrank import checkpoint

    listed = rows(lowrank("checkpoint", "list", "--json"))
    assert len(listed) == 9
    assert all(row["ok"] for row in rows(lowrank("checkpoint", "verify", "--json")))
    final = {row["method"]: row for row in listed if row["kind"] == "final"}
    target = tmp_path / "plain"
    assert lowrank("checkpoint", "export", str(final["sltrain"]["id"]), target)[0] == 0
    plain = AutoModelForCausalLM.from_pretrained(target)
    assert type(plain) is LlamaForCausalLM
    own = checkpoint.load(home / "out" / final["sltrain"]["path"]).model
    ids = torch.randint(4, 300, (2, 16), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(plain(ids).logits, own(ids).logits, atol=1e-5, rtol=1e-5)
    status, _, err = lowrank("checkpoint", "export", str(final["cola"]["id"]), tmp_path / "cola")
    assert (status, "--native" in err, (tmp_path / "cola").exists()) == (1, True, False)
    assert (
        lowrank("checkpoint", "export", str(final["cola"]["id"]), tmp_path / "cola", "--native")[0]
        == 0
    )
    assert checkpoint.load(tmp_path / "cola").manifest.method == "cola"
    status, _, err = lowrank("checkpoint", "export", str(final["cola"]["id"]), target)
    assert (status, "exists already" in err) == (2, True)


def test_a_flipped_byte_stops_what_needs_it_and_nothing_else(lowrank: Callable, home: Path) -> None:
    path = (
        home
        / "out"
        / rows(lowrank("checkpoint", "list", "--json"))[0]["path"]
        / "model.safetensors"
    )
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    try:
        status, out, _ = lowrank("checkpoint", "verify", "--json")
        assert status == 1
        assert [row["id"] for row in json.loads(out) if not row["ok"]] == [1]
    finally:
        path.write_bytes(whole)


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forbid the Hugging Face hub."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (("study", "run", "absent.yaml"), 2, "no such study file"),
        (("study", "run", "{study}", "--set", "training.stepz=1"), 2, "did you mean 'steps'"),
        (("study", "run", "{study}", "--set", "methods.galor={}"), 2, "did you mean 'galore'"),
        (("study", "run", "{study}", "--set", "scales=[nanno]"), 2, "did you mean 'nano'"),
        (("study", "run", "{study}", "--set", "methods.sltrain.settings.rank=17"), 2, "rank 17"),
        (("study", "run", "{study}", "--set", "metrics=[spectre]"), 2, "did you mean 'spectra'"),
        (("study", "run", "{study}", "--only", "trian"), 2, "trian"),
        (
            ("study", "run", "{study}", "--db", "postgresql://me:secret@127.0.0.1:9/x"),
            1,
            "127.0.0.1",
        ),
        (
            (
                "study",
                "run",
                "{study}",
                "--set",
                "output={tmp}/a",
                "--set",
                "data.path={tmp}/none.txt",
                "--db",
                "{tmp}/a.db",
            ),
            1,
            "none.txt",
        ),
        (
            (
                "study",
                "run",
                "{study}",
                "--set",
                "output={tmp}/b",
                "--set",
                "training.batch_size=100000",
                "--db",
                "{tmp}/b.db",
            ),
            1,
            "batch",
        ),
        (
            (
                "study",
                "run",
                "{study}",
                "--set",
                "output={tmp}/c",
                "--set",
                "data.source=c4",
                "--set",
                "data.tokenizer=t5-base",
                "--db",
                "{tmp}/c.db",
            ),
            1,
            "embedded",
        ),
        (("run", "show", "x"), 2, "integer"),
        (("nonsense",), 2, "nonsense"),
    ],
)
@pytest.mark.usefixtures("offline")
def test_bad_input_is_one_sentence(
    lowrank: Callable,
    home: Path,
    tmp_path: Path,
    arguments: tuple[str, ...],
    status: int,
    words: str,
) -> None:
    found, out, err = lowrank(
        *(
            argument.format(study=home / "tiny.yaml", tmp=tmp_path)
            if "{}" not in argument
            else argument.replace("{study}", str(home / "tiny.yaml"))
            for argument in arguments
        )
    )
    assert found == status, err
    assert words in err
    assert "Traceback" not in err
    assert "secret" not in err + out
