"""Foreign checkpoints become runs that are measured like our own; hostile and broken folders are
one sentence.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from lowrank import checkpoint
from lowrank.cli.main import run
from lowrank.store import Store, records

STUDY = """
name: tiny
output: {root}
methods: [full_rank]
scales: {{pico: {{shape: {{hidden_size: 16, intermediate_size: 24, num_hidden_layers: 1, num_attention_heads: 2, rank: 4}}}}}}
data: {{source: text, path: {corpus}, vocabulary_size: 300, max_length: 16, validation_fraction: 0.2, validation_tokens: 300,
        evaluation_examples: 8}}
training: {{steps: 2, batch_size: 2, learning_rate: 0.01, checkpoint_every: 2}}
metrics: [spectra, {{lens: activations, settings: {{batch_rows: 4}}}}]
"""


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LOWRANK_CACHE", str(tmp_path / "cache"))
    rng = random.Random(5)
    words = ["matrix", "rank", "gradient", "weight", "loss", "step", "seed", "token"]
    (tmp_path / "corpus.txt").write_text(
        "\n\n".join(" ".join(rng.choices(words, k=30)) + f" {i}." for i in range(150))
    )
    (tmp_path / "tiny.yaml").write_text(
        STUDY.format(root=tmp_path / "out", corpus=tmp_path / "corpus.txt")
    )
    return tmp_path


@pytest.fixture
def lowrank(home: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str]]:
    def call(*arguments: str | Path) -> tuple[int, str]:
        status = run([str(argument) for argument in arguments])
        return status, "".join(capsys.readouterr())

    return call


def foreign(
    folder: Path, *, tied: bool = False, shards: str = "5GB", seed: int = 0
) -> LlamaForCausalLM:
    """A LLaMA that transformers alone made and saved; two heads share keys and values, and its code
    is not to be run.
    """
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=300,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=tied,
    )
    model = LlamaForCausalLM(config).bfloat16()
    model.save_pretrained(folder, max_shard_size=shards)
    body = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(
        json.dumps({**body, "auto_map": {"AutoModelForCausalLM": "theirs.Model"}})
    )
    (folder / "theirs.py").write_text("raise SystemExit('executed')")
    return model


@pytest.mark.parametrize("tied", [False, True])
def test_an_imported_checkpoint_has_the_same_logits(
    home: Path, lowrank: Callable, tied: bool
) -> None:
    foreign(home / "theirs", tied=tied, shards="8KB")
    theirs = LlamaForCausalLM.from_pretrained(home / "theirs", dtype=torch.float32)
    assert len(list((home / "theirs").glob("*.safetensors"))) > 1
    status, printed = lowrank(
        "checkpoint",
        "import",
        home / "tiny.yaml",
        home / "theirs",
        "--scale",
        "pico",
        "--step",
        "5",
    )
    assert status == 0, printed
    with Store.open(home / "out" / "lowrank.db") as store:
        (saved,) = store.find(records.Checkpoint)
        row = store.get(records.Run, saved.run_id)
    assert (row.kind, row.status, row.variant, saved.kind, saved.step) == (
        "imported",
        "done",
        "theirs",
        "imported",
        5,
    )
    ours = checkpoint.load(home / "out" / saved.path, saved.sha256, dtype=torch.float32)
    again = AutoModelForCausalLM.from_pretrained(home / "out" / saved.path, dtype=torch.float32)
    assert checkpoint.read_manifest(home / "out" / saved.path).dtype == "bfloat16"
    ids = torch.randint(0, 300, (2, 8), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(ours.model(ids).logits, theirs(ids).logits)
        assert torch.equal(again(ids).logits, theirs(ids).logits)
    if not tied:
        status, printed = lowrank("measure", home / "tiny.yaml", "--lens", "spectra")
        assert status == 0, printed
        with Store.open(home / "out" / "lowrank.db") as store:
            rows = store.find(records.MetricValue, metric="effective_rank_w", module="k")
            assert {row.layer for row in rows} == {0, 1, -2}  # the rank of eight rows
            assert all(row.value is not None and 1.0 < row.value <= 8.0 for row in rows)


def test_importing_is_idempotent_and_refuses_other_weights(home: Path, lowrank: Callable) -> None:
    foreign(home / "theirs")
    command = (
        "checkpoint",
        "import",
        home / "tiny.yaml",
        home / "theirs",
        "--scale",
        "pico",
        "--name",
        "llama",
    )
    assert lowrank(*command)[0] == 0
    assert lowrank(*command)[0] == 0
    assert lowrank(*command, "--step", "3")[0] == 0
    foreign(home / "theirs", seed=1)
    status, printed = lowrank(*command)
    assert (status, "already holds other weights" in printed) == (1, True), printed
    with Store.open(home / "out" / "lowrank.db") as store:
        assert store.count(records.Run, kind="imported") == 1
        assert [row.step for row in store.find(records.Checkpoint)] == [0, 3]


def test_imported_checkpoints_are_measured_like_trained_ones(
    home: Path, lowrank: Callable, tmp_path: Path
) -> None:
    assert lowrank("study", "run", home / "tiny.yaml", "--only", "train")[0] == 0
    with Store.open(home / "out" / "lowrank.db") as store:
        final = next(row for row in store.find(records.Checkpoint) if row.kind == "final")
    assert lowrank("checkpoint", "export", home / "out" / final.path, tmp_path / "plain")[0] == 0
    options = (
        "--scale",
        "pico",
        "--method",
        "galore",
        "--rank",
        "4",
        "--step",
        "2",
        "--name",
        "copy",
    )
    status, printed = lowrank(
        "checkpoint", "import", home / "tiny.yaml", tmp_path / "plain", *options
    )
    assert status == 0, printed
    lowrank("study", "run", home / "tiny.yaml", "--only", "measure")
    with Store.open(home / "out" / "lowrank.db") as store:
        imported = store.find(records.Run, kind="imported")[0]
        copy = store.find(records.Checkpoint, run_id=imported.id)[0]

        def ranks(of: int | None) -> dict[tuple[int, str], float | None]:
            rows = store.find(records.MetricValue, checkpoint_id=of, metric="stable_rank_w")
            return {(row.layer, row.module): row.value for row in rows}

        assert ranks(copy.id) == ranks(final.id) != {}
        (distance,) = store.find(
            records.MetricValue, checkpoint_id=copy.id, metric="activation_l2", layer=-2, module=""
        )
        assert distance.value == pytest.approx(
            0.0, abs=1e-6
        )  # the same weights against the full-rank run of this study


def break_it(folder: Path, how: str) -> None:
    config = json.loads((folder / "config.json").read_text())
    if how == "type":
        (folder / "config.json").write_text(json.dumps({**config, "model_type": "gpt2"}))
    elif how == "shape":
        (folder / "config.json").write_text(json.dumps({**config, "intermediate_size": 32}))
    elif how == "json":
        (folder / "config.json").write_text("{")
    elif how == "pickle":
        (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    elif how == "truncated":
        path = folder / "model.safetensors"
        path.write_bytes(path.read_bytes()[:-40])
    elif how == "outside":
        (folder / "model.safetensors.index.json").write_text(
            json.dumps({"weight_map": {"x": "../../elsewhere.safetensors"}})
        )
    elif how == "key":
        state = load_file(folder / "model.safetensors")
        state.pop("model.norm.weight")
        save_file(state, folder / "model.safetensors")


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("type", "only LLaMA models"),
        ("shape", "do not fit config.json"),
        ("json", "config.json cannot be read"),
        ("pickle", "convert it to safetensors"),
        ("truncated", "cannot be read"),
        ("outside", "not in its folder"),
        ("key", "model.norm.weight"),
    ],
)
def test_a_broken_folder_is_an_error_and_leaves_no_rows(
    home: Path, lowrank: Callable, how: str, words: str
) -> None:
    foreign(home / "theirs")
    break_it(home / "theirs", how)
    status, printed = lowrank(
        "checkpoint", "import", home / "tiny.yaml", home / "theirs", "--scale", "pico"
    )
    assert (status, words in printed, "Traceback" in printed) == (1, True, False), printed
    with Store.open(home / "out" / "lowrank.db") as store:
        assert store.count(records.Run, kind="imported") == 0
    assert not (home / "out" / "runs").exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--method", "cola"), "is not a CoLA model"),
        (("--method", "galore"), "--rank"),
        (("--name", "../up"), "cannot be part of a folder's name"),
        (("--scale", "../up"), "cannot be part of a folder's name"),
    ],
)
def test_an_impossible_origin_is_refused(
    home: Path, lowrank: Callable, options: tuple[str, str], words: str
) -> None:
    foreign(home / "theirs")
    status, printed = lowrank(
        "checkpoint", "import", home / "tiny.yaml", home / "theirs", "--scale", "pico", *options
    )
    assert (status, words in printed) == (2, True), printed
    assert not (home / "out" / "runs").exists()
