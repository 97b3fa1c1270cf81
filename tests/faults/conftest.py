"""Tiny studies: one of four runs, in which several processes share, and one of a single run."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest

STUDY = """
name: shared
output: {root}
methods: {{full_rank: {{}}, cola: {{}}}}
scales:
  pico: {{shape: {{hidden_size: 16, intermediate_size: 24, num_hidden_layers: 1, num_attention_heads: 2, rank: 4}}}}
seeds: [0, 1]
data: {{source: text, path: {corpus}, vocabulary_size: 300, max_length: 16, validation_fraction: 0.2, validation_tokens: 400}}
training: {{steps: 20, batch_size: 4, learning_rate: 0.01, checkpoint_every: 10}}
metrics: [spectra]
"""
TINY = """
name: tiny
output: {output}
methods: [full_rank]
scales: {{pico: {{shape: {{hidden_size: 16, intermediate_size: 24, num_hidden_layers: 1, num_attention_heads: 2, rank: 4}}}}}}
data: {{source: text, path: {home}/corpus.txt, vocabulary_size: 300, max_length: 16, validation_fraction: 0.2,
  validation_tokens: 300, evaluation_examples: 8}}
training: {{steps: 4, batch_size: 2, learning_rate: 0.01, checkpoint_every: 2}}
metrics: [spectra, loss]
"""
WORDS = ["matrix", "rank", "gradient", "weight", "loss", "step", "seed", "token"]


def write_corpus(folder: Path, seed: int, words: int) -> None:
    """Write ``corpus.txt`` of 150 documents."""
    rng = random.Random(seed)
    (folder / "corpus.txt").write_text(
        "\n\n".join(" ".join(rng.choices(WORDS, k=words)) + f" {i}." for i in range(150))
    )


@pytest.fixture(scope="session")
def tiny_study() -> Callable[[Path, Path], Path]:
    """Write a study file of one run, and its corpus, into a folder (the first argument), its output
    elsewhere (the second).
    """

    def write(home: Path, output: Path) -> Path:
        write_corpus(home, seed=5, words=30)
        file = home / "tiny.yaml"
        file.write_text(TINY.format(output=output, home=home))
        return file

    return write


@pytest.fixture
def study(tmp_path: Path) -> Path:
    write_corpus(tmp_path, seed=3, words=40)
    path = tmp_path / "shared.yaml"
    path.write_text(STUDY.format(root=tmp_path / "out", corpus=tmp_path / "corpus.txt"))
    return path
