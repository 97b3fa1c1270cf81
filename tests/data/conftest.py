"""Tiny corpora in which every document is different, and a way to open them in a separate cache."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lowrank.config.schema import Data
from lowrank.data import Dataset, open_data

WORDS = re.findall(
    r"\w+",
    """
    the river runs over old stones while a quiet model learns to predict what comes next and then forgets how many
    small weights were needed for it because every layer has its own way of seeing words in a row
""",
)


def sentences(count: int, seed: int = 0, shortest: int = 4, longest: int = 40) -> list[str]:
    """``count`` different documents of a few words each."""
    rng = random.Random(seed)
    return [
        f"Text {seed} {n}: {' '.join(rng.choices(WORDS, k=rng.randint(shortest, longest)))}."
        for n in range(count)
    ]


def write_jsonl(path: Path, documents: list[str], field: str = "text") -> Path:
    """One JSON object a line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        "".join(json.dumps({field: document}) + "\n" for document in documents), encoding="utf-8"
    )
    return path


Open = Callable[..., Dataset]


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def open_corpus(tmp_path: Path, cache: Path) -> Open:
    """Opens a JSON-lines corpus of 300 documents; options are those of ``Data``, ``seed`` is the
    data seed.
    """

    def opened(
        documents: list[str] | None = None, seed: int = 0, cache: Path = cache, **options: Any
    ) -> Dataset:
        settings = {
            "source": "jsonl",
            "max_length": 16,
            "vocabulary_size": 300,
            "validation_fraction": 0.1,
            **options,
        }
        if "path" not in settings:
            given = sentences(300) if documents is None else documents
            settings["path"] = str(
                write_jsonl(tmp_path / f"corpus-{hash(tuple(given)) & 0xFFFFFF:x}.jsonl", given)
            )
        return open_data(Data(**settings), seed, cache=cache)

    return opened


@pytest.fixture
def hub_folder(tmp_path: Path) -> Path:
    """A data set as the hub stores it: three training files and a validation file."""
    folder = tmp_path / "hubset"
    for n in range(3):
        write_jsonl(folder / f"train-{n}.jsonl", sentences(150 + n, seed=n + 1))
    write_jsonl(folder / "validation.jsonl", sentences(80, seed=9))
    return folder


@pytest.fixture
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many shards from little text, so that rows, documents and resumption cross their borders."""
    from lowrank.data import shards

    monkeypatch.setattr(shards, "SHARD_TOKENS", 700)
    monkeypatch.setattr(shards, "CHUNK_DOCUMENTS", 7)
