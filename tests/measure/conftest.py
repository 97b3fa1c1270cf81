"""A tiny study with checkpoints of every method, made by nudging the weights
instead of training.
"""

from __future__ import annotations

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
from lowrank.models import build, init_hash, named_draws
from lowrank.store import Store, records
from lowrank.study import new_run

STUDY = """
name: {name}
methods: {{{methods}}}
scales:
  tiny: {{shape: {{hidden_size: 16, intermediate_size: 40, num_hidden_layers: 2, num_attention_heads: 2, rank: 4}}}}
seeds: {seeds}
data: {{source: text, path: {path}, max_length: 16, evaluation_examples: 6, vocabulary_size: 300}}
training: {{steps: 20, learning_rate: 1.0e-2, checkpoint_every: 10}}
metrics: {metrics}
"""
EXTRA = {"relora": "{settings: {merge_every: 10, restart_warmup: 2}}"}

torch.set_num_threads(1)  # tiny matrices: threads would only wait for one another


@dataclass
class TinyStudy:
    """A study on disk and in a store."""

    store: Store
    study: Study
    root: Path
    file: Path

    def add(self, config: RunConfig) -> None:
        """Add a run."""
        row = self.store.first(records.Study, name=self.study.name)
        assert row is not None
        save_run(self.store, self.root, row, config)


@torch.no_grad()
def nudge(model: torch.nn.Module, seed: int, size: float = 0.02) -> None:
    """Move every trained parameter by noise that depends on its name."""
    draw = named_draws(seed)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            parameter.add_(size * torch.randn(parameter.shape, generator=draw(name)))


def save_run(store: Store, root: Path, study_row: records.Study, config: RunConfig) -> None:
    """Store a run whose checkpoints are nudged by a little more at each step."""
    data = open_data(config.data, 0)
    model, method = build(config, data.vocabulary_size, data.special)
    model.eval()
    run = store.add(new_run(config, study_row))
    start = init_hash(model, method)
    run = store.update(
        records.Run, run.id or 0, init_hash=start, status="done", tokenizer_hash=data.tokenizer_hash
    )
    for kind, step in (("initial", 0), ("training", 10), ("final", 20)):
        if step:
            nudge(model, 100 * config.seed + step + sum(map(ord, config.method)))
        folder = root / "checkpoints" / config.folder / f"step-{step}"
        manifest = checkpoint.Manifest(
            step=step, kind=kind, tokens_seen=step, method=config.method, settings=config.settings
        )
        saved = checkpoint.save(folder, model, manifest)
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
    sqlite_store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., TinyStudy]:
    """Return a function that builds a study with the given methods, seeds and metrics; several of
    one test differ in their names.
    """
    monkeypatch.setenv("LOWRANK_CACHE", str(tmp_path / "cache"))

    def make(
        *methods: str, metrics: Any = "[spectra]", seeds: str = "[0]", name: str = "tiny"
    ) -> TinyStudy:
        text = tmp_path / "corpus.txt"
        words = [
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
        documents = [
            " ".join(words[(i * j) % len(words)] for j in range(1, 60)) for i in range(1, 200)
        ]
        text.write_text("\n\n".join(documents))
        file = tmp_path / f"{name}.yaml"
        listed = ", ".join(f"{m}: {EXTRA.get(m, 'null')}" for m in methods)
        file.write_text(
            STUDY.format(name=name, methods=listed, path=text, metrics=metrics, seeds=seeds)
        )
        study = load_study(file)
        root = tmp_path / f"out-{name}"
        row = sqlite_store.add(
            records.Study(name=study.name, config={}, config_hash="x", root=str(root))
        )
        for config in resolve_runs(study, str(file)):
            save_run(sqlite_store, root, row, config)
        return TinyStudy(sqlite_store, study, root, file)

    return make
