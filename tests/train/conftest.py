"""A tiny study on a corpus made here: everything real but the size."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from lowrank.study import Plan

WORDS = (
    "the",
    "of",
    "and",
    "rank",
    "matrix",
    "gradient",
    "projects",
    "onto",
    "its",
    "largest",
    "singular",
    "vectors",
    "while",
    "weights",
    "stay",
    "dense",
    "in",
    "memory",
)


def write_corpus(path: Path, documents: int = 400) -> Path:
    """Write sentences of a small vocabulary without grammar: learnable, and quick to tokenise."""
    rng = random.Random(7)
    lines = [
        " ".join(rng.choices(WORDS, weights=range(len(WORDS), 0, -1), k=rng.randint(20, 60)))
        + f". {n}"
        for n in range(documents)
    ]
    path.write_text("\n\n".join(lines) + "\n", encoding="utf-8")
    return path


STUDY = """
name: tiny
output: {root}
methods: [{methods}]
scales:
  pico: {{shape: {{hidden_size: 16, intermediate_size: 24, num_hidden_layers: 2, num_attention_heads: 2, rank: 4}}}}
seeds: [0]
data:
  {{source: text, path: {corpus}, vocabulary_size: 300, max_length: 16, validation_fraction: 0.1,
    validation_tokens: 500, evaluation_examples: 8}}
training: {{steps: 12, batch_size: 4, learning_rate: 0.01, checkpoint_every: 4, evaluation_batch_size: 8}}
"""


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("corpus") / "corpus.txt")


@pytest.fixture
def study_file(tmp_path: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Write a study file of one tiny full-rank run; its outputs and caches stay in the test's
    folder.
    """
    monkeypatch.setenv("LOWRANK_CACHE", str(corpus.parent / "cache"))
    path = tmp_path / "tiny.yaml"
    path.write_text(STUDY.format(root=tmp_path / "out", corpus=corpus, methods="full_rank"))
    return path


@pytest.fixture
def plan(study_file: Path) -> Plan:
    return Plan.of(study_file)
