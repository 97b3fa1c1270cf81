"""The token store: made once by the first process, continued after a kill, checked when read."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from lowrank.config.schema import Data
from lowrank.data import open_data, shards
from lowrank.errors import DataError

from .conftest import sentences, write_jsonl


def stores(cache: Path, split: str = "train") -> list[Path]:
    return sorted((cache / "tokens").glob(f"*-{split}-*"))


def content(folder: Path) -> dict[str, bytes]:
    """What a store holds, apart from its lock and the rest of its shuffle buffer."""
    return {p.name: p.read_bytes() for p in sorted(folder.iterdir()) if p.name != "lock"}


def test_the_text_is_tokenised_once(open_corpus, monkeypatch):
    open_corpus().rows(0, 3)
    calls = []
    monkeypatch.setattr(shards, "_checked", lambda *a: calls.append(a))
    open_corpus().rows(0, 300)
    assert not calls


def test_lengths_and_layouts_share_one_token_store(open_corpus, cache):
    for options in ({}, {"max_length": 8}, {"layout": "padded"}):
        open_corpus(**options).rows(0, 3)
    open_corpus(seed=5).rows(0, 3)
    assert len(stores(cache)) == 1


def test_a_stream_has_one_token_store_per_seed(open_corpus, hub_folder, cache):
    for seed in (0, 1):
        open_corpus(seed=seed, source="huggingface", path=str(hub_folder)).rows(0, 3)
    assert len(stores(cache)) == 2


def test_a_stream_is_read_only_as_far_as_needed(open_corpus, hub_folder, small_shards):
    dataset = open_corpus(source="huggingface", path=str(hub_folder), shuffle_buffer=20)
    store = dataset._split("train", 0).layout.store
    dataset.require(10)
    assert not store.index.complete
    read = store.index.position
    dataset.require(10)
    assert store.index.position == read


@pytest.mark.parametrize("buffer", [20, 5000])
def test_a_stream_continues_where_another_process_stopped(
    open_corpus, hub_folder, small_shards, tmp_path, buffer
):
    options = {"source": "huggingface", "path": str(hub_folder), "shuffle_buffer": buffer}
    whole = open_corpus(cache=tmp_path / "whole", **options)
    whole.rows(0, 5000)
    for rows in (30, 200, 5000):
        opened = open_corpus(cache=tmp_path / "parts", **options)  # starts from what is on the disk
        opened._split("train", 0).layout.ensure(rows)
    (one,), (other,) = stores(tmp_path / "whole"), stores(tmp_path / "parts")
    assert content(one) == content(other)
    assert not list(one.glob("*held*"))


def test_the_shuffle_buffer_permutes_the_documents(open_corpus, hub_folder, small_shards):
    order = {}
    for buffer in (1, 60):
        dataset = open_corpus(
            source="huggingface",
            path=str(hub_folder),
            shuffle_buffer=buffer,
            layout="padded",
            max_length=64,
        )
        dataset.require(1)
        layout = dataset._split("train", 0).layout
        layout.ensure(None)
        order[buffer] = [tuple(row) for row in layout.take(np.arange(layout.available))[0].tolist()]
    assert sorted(order[1]) == sorted(order[60])
    moved = [abs(order[1].index(row) - n) for n, row in enumerate(order[60])]
    assert np.mean(np.array(moved) > 5) > 0.5


def test_the_next_shard_is_made_in_the_background(open_corpus, hub_folder, small_shards):
    dataset = open_corpus(source="huggingface", path=str(hub_folder), shuffle_buffer=20)
    store = dataset._split("train", 0).layout.store
    dataset.rows(0, 2)
    assert store._ahead is not None
    store._ahead.join(20)
    made = store.tokens
    assert made // dataset.config.max_length > 2
    dataset.rows(made // dataset.config.max_length - 1, 1)
    store._ahead.join(20)
    assert store.tokens > made


def _open(path: str, cache: str, barrier, results) -> None:
    barrier.wait()
    config = Data(
        source="jsonl", path=path, max_length=16, vocabulary_size=300, validation_fraction=0.1
    )
    dataset = open_data(config, 0, cache=Path(cache))
    results.put(
        (dataset.fingerprint, dataset.tokenizer_hash, dataset.rows(0, 50).input_ids.tolist())
    )


def test_concurrent_builds_agree(tmp_path):
    path = write_jsonl(tmp_path / "corpus.jsonl", sentences(300))
    context = multiprocessing.get_context("fork")
    barrier, results = context.Barrier(3), context.Queue()
    workers = [
        context.Process(target=_open, args=(str(path), str(tmp_path / "cache"), barrier, results))
        for _ in range(3)
    ]
    for worker in workers:
        worker.start()
    found = [results.get(timeout=60) for _ in workers]
    for worker in workers:
        worker.join(20)
        assert worker.exitcode == 0
    assert found[0] == found[1] == found[2]
    assert len(stores(tmp_path / "cache")) == 1


BUILD = """
import sys
from pathlib import Path
from lowrank.config.schema import Data
from lowrank.data import open_data, shards
shards.SHARD_TOKENS, shards.CHUNK_DOCUMENTS = 3000, 20
config = Data(source="jsonl", path=sys.argv[1], max_length=16, vocabulary_size=300, validation_fraction=0.1)
open_data(config, 0, cache=Path(sys.argv[2])).rows(0, 1)
"""


def test_a_killed_build_is_continued(open_corpus, tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "SHARD_TOKENS", 3000)
    monkeypatch.setattr(shards, "CHUNK_DOCUMENTS", 20)
    path = write_jsonl(tmp_path / "corpus.jsonl", sentences(5000))
    open_corpus(path=str(path), cache=tmp_path / "whole")
    (expected,) = stores(tmp_path / "whole")
    shutil.copytree(
        tmp_path / "whole", tmp_path / "killed", ignore=shutil.ignore_patterns("tokens")
    )
    process = subprocess.Popen([sys.executable, "-c", BUILD, str(path), str(tmp_path / "killed")])
    while process.poll() is None:
        found = stores(tmp_path / "killed")
        if found and len(list(found[0].glob("*.tokens.npy"))) >= 3:
            os.kill(process.pid, signal.SIGKILL)
            break
        time.sleep(0.0005)
    process.wait(20)
    (killed,) = stores(tmp_path / "killed")
    assert not json.loads((killed / "index.json").read_text())["complete"], (
        "the build was faster than the kill; give it more text"
    )
    (killed / ".00099.tokens.npy.dead.tmp").write_bytes(b"left by a killed process")
    open_corpus(path=str(path), cache=tmp_path / "killed")
    assert content(killed) == content(expected)


@pytest.mark.parametrize("name", ["00000.tokens.npy", "00001.ends.npy"])
@pytest.mark.parametrize("harm", ["flip", "cut", "remove"])
def test_a_damaged_shard_is_named(open_corpus, small_shards, cache, name, harm):
    open_corpus().rows(0, 1)
    (folder,) = stores(cache)
    path = folder / name
    body = bytearray(path.read_bytes())
    body[-3] ^= 1
    if harm == "remove":
        path.unlink()
    else:
        path.write_bytes(body if harm == "flip" else body[:-2])
    with pytest.raises(DataError, match=rf"{name} .*delete .* and run again"):
        open_corpus(layout="padded").rows(0, 200)


def test_a_damaged_index_is_named(open_corpus, cache):
    open_corpus().rows(0, 1)
    (folder,) = stores(cache)
    (folder / "index.json").write_text("{")
    with pytest.raises(DataError, match=r"index\.json cannot be read"):
        open_corpus().rows(0, 1)


def test_a_full_disk_is_an_error_and_leaves_no_files(open_corpus, cache, monkeypatch):
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(np, "save", full)
        with pytest.raises(DataError, match=r"No space left on device.*LOWRANK_CACHE"):
            open_corpus()
    (folder,) = stores(cache)
    assert [p.name for p in folder.iterdir()] == ["lock"]
    open_corpus().rows(0, 1)


def test_the_cache_folder_comes_from_the_environment(monkeypatch, tmp_path):
    from lowrank.data.cache import cache_folder

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.delenv("LOWRANK_CACHE", raising=False)
    assert cache_folder() == tmp_path / "xdg" / "lowrank"
    monkeypatch.setenv("LOWRANK_CACHE", str(tmp_path / "own"))
    assert cache_folder() == tmp_path / "own"
    assert cache_folder(tmp_path / "given") == tmp_path / "given"
    monkeypatch.delenv("LOWRANK_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "lowrank"
