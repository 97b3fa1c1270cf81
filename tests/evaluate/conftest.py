"""A tiny study whose checkpoints carry a tokenizer, and a small embedded suite in place of the real
one.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from lowrank import checkpoint
from lowrank.config import RunConfig, Study, resolve_runs
from lowrank.config.loading import load_study
from lowrank.data import open_data
from lowrank.evaluate import embedded
from lowrank.evaluate.items import MAKERS, Question
from lowrank.models import build, init_hash, named_draws
from lowrank.store import Store, records
from lowrank.study import new_run

STUDY = """
name: tiny
methods: [{methods}]
scales:
  tiny: {{shape: {{hidden_size: 16, intermediate_size: 40, num_hidden_layers: 2, num_attention_heads: 2, rank: 4}}}}
data: {{source: text, path: {path}, max_length: 32, vocabulary_size: 300}}
training: {{steps: 20, learning_rate: 1.0e-2, checkpoint_every: 10}}
downstream: {downstream}
"""
WORDS = [
    "the",
    "cat",
    "sat",
    "on",
    "a",
    "mat",
    "and",
    "dog",
    "ran",
    "to",
    "old",
    "red",
    "house",
    "where",
    "it",
    "was",
]
ITEMS = 8


@dataclass
class TinyStudy:
    """A study on disk and in a store."""

    store: Store
    study: Study
    root: Path
    file: Path


@pytest.fixture(autouse=True)
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Forbid the network and give the test empty caches."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("LOWRANK_CACHE", str(tmp_path / "cache"))


def phrase(start: int, count: int) -> str:
    """Return some words, others for another ``start``."""
    return " ".join(WORDS[(start * 7 + i * (start % 5 + 1)) % len(WORDS)] for i in range(count))


@pytest.fixture
def small_suite(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> embedded.Embedded:
    """Build every task of the embedded suite with :data:`ITEMS` items of toy text."""
    made = {
        name: [
            Question(
                phrase(i, 5) if i % 2 else "",
                (f" {phrase(i + 1, 3)} {i}", f" {phrase(i + 2, 4)}{number}"),
                i % 2,
            )
            for i in range(ITEMS)
        ]
        for number, name in enumerate(MAKERS)
    }
    folder = tmp_path / "suite"
    note = embedded.write_suite(folder, made)
    suite = embedded.Embedded(folder, note["sha256"], note["tasks"])
    monkeypatch.setattr(sys.modules["lowrank.evaluate.plan"], "build", lambda fraction: suite)
    return suite


@torch.no_grad()
def save_run(
    store: Store, root: Path, study_row: records.Study, config: RunConfig, tokenizer: Any
) -> None:
    """Store a run whose checkpoints are nudged by more at each step."""
    data = open_data(config.data, 0)
    model, method = build(config, data.vocabulary_size, data.special)
    model.eval()
    run = store.add(new_run(config, study_row))
    run = store.update(
        records.Run,
        run.id,
        init_hash=init_hash(model, method),
        status="done",
        tokenizer_hash=data.tokenizer_hash,
    )
    for kind, step in (("initial", 0), ("training", 10), ("final", 20)):
        draw = named_draws(step + len(config.method))
        for name, parameter in model.named_parameters():
            if step and parameter.requires_grad:
                parameter.add_(0.2 * torch.randn(parameter.shape, generator=draw(name)))
        folder = root / "runs" / config.folder / f"step-{step}"
        manifest = checkpoint.Manifest(
            step=step, kind=kind, tokens_seen=step, method=config.method, settings=config.settings
        )
        saved = checkpoint.save(folder, model, manifest, tokenizer or data.tokenizer)
        store.add(
            records.Checkpoint(
                run_id=run.id or 0,
                step=step,
                kind=kind,
                tokens_seen=step,
                path=str(folder.relative_to(root)),
                sha256=saved.weights_sha256,
                bytes=saved.bytes,
                validation_loss=4.0,
            )
        )


@pytest.fixture
def make_study(
    sqlite_store: Store, tmp_path: Path, small_suite: embedded.Embedded
) -> Callable[..., TinyStudy]:
    """Return a function that builds a study with the given methods and ``downstream`` section;
    ``tokenizer`` replaces that of the checkpoints.
    """

    def make(
        *methods: str, downstream: str = "{batch_size: 4}", tokenizer: Any = None
    ) -> TinyStudy:
        text = tmp_path / "corpus.txt"
        text.write_text("\n\n".join(phrase(i, 60) for i in range(1, 200)))
        file = tmp_path / "tiny.yaml"
        file.write_text(STUDY.format(methods=", ".join(methods), path=text, downstream=downstream))
        study = load_study(file)
        row = sqlite_store.add(
            records.Study(name=study.name, config={}, config_hash="x", root=str(tmp_path / "out"))
        )
        for config in resolve_runs(study, str(file)):
            save_run(sqlite_store, tmp_path / "out", row, config, tokenizer)
        return TinyStudy(sqlite_store, study, tmp_path / "out", file)

    return make
