"""A study of four tiny runs, for tests in which several processes do it."""

from __future__ import annotations

import random
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


@pytest.fixture
def study(tmp_path: Path) -> Path:
    rng = random.Random(3)
    words = ["matrix", "rank", "gradient", "weight", "loss", "step", "seed", "token"]
    (tmp_path / "corpus.txt").write_text("\n\n".join(" ".join(rng.choices(words, k=40)) + f" {i}." for i in range(150)))
    path = tmp_path / "shared.yaml"
    path.write_text(STUDY.format(root=tmp_path / "out", corpus=tmp_path / "corpus.txt"))
    return path
