"""Rows are a pure function of configuration, text and seed, at any position and in any process."""

from __future__ import annotations

import time

import numpy as np
import pytest
import torch

from lowrank.data import UNSCORED
from lowrank.data.rows import Packed

LAYOUTS = ["packed", "padded"]


def rows_in_epoch(dataset) -> int:
    return next(row["rows"] for row in dataset.describe() if row["split"] == "train")


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("streamed", [False, True])
def test_random_access_equals_sequential_access(
    open_corpus, hub_folder, small_shards, layout, streamed
):
    options = (
        {"source": "huggingface", "path": str(hub_folder), "shuffle_buffer": 50} if streamed else {}
    )
    dataset = open_corpus(layout=layout, **options)
    count = rows_in_epoch(dataset) if not streamed else 250
    whole = dataset.rows(0, 3 * count)
    fresh = open_corpus(layout=layout, **options)
    for first, size in [(3 * count - 5, 5), (0, 1), (count - 3, 7), (2 * count - 1, 2), (17, 40)]:
        batch = fresh.rows(first, size)
        assert torch.equal(batch.input_ids, whole.input_ids[first : first + size])
        assert torch.equal(batch.labels, whole.labels[first : first + size])
        assert fresh.scored_tokens(first, size) == batch.scored


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_epoch_is_a_new_permutation_of_all_rows(open_corpus, small_shards, layout):
    dataset = open_corpus(layout=layout)
    size = rows_in_epoch(dataset)
    epochs = [
        [tuple(row) for row in dataset.rows(e * size, size).input_ids.tolist()] for e in range(3)
    ]
    assert sorted(epochs[0]) == sorted(epochs[1]) == sorted(epochs[2])
    assert len({tuple(epoch) for epoch in epochs}) == 3
    assert len(set(epochs[0])) == size


def test_a_stream_repeats_its_rows_in_a_new_order(open_corpus, hub_folder, small_shards):
    dataset = open_corpus(source="huggingface", path=str(hub_folder), shuffle_buffer=40)
    dataset.rows(0, 10_000)
    size = rows_in_epoch(dataset)
    assert size < 10_000
    first, second = (
        [tuple(r) for r in dataset.rows(e * size, size).input_ids.tolist()] for e in range(2)
    )
    assert sorted(first) == sorted(second)
    assert first != second


@pytest.mark.parametrize("source", ["jsonl", "huggingface"])
def test_the_seed_determines_the_order_of_rows(open_corpus, hub_folder, source):
    options = {"source": source, "path": str(hub_folder)} if source == "huggingface" else {}
    a, b, again = (open_corpus(seed=seed, **options) for seed in (0, 1, 0))
    assert torch.equal(a.rows(0, 40).input_ids, again.rows(0, 40).input_ids)
    assert not torch.equal(a.rows(0, 40).input_ids, b.rows(0, 40).input_ids)
    assert a.fingerprint == b.fingerprint


def test_packed_rows_are_the_documents_end_to_end(open_corpus, small_shards):
    dataset = open_corpus()
    layout = dataset._split("train", 0).layout
    assert isinstance(layout, Packed)
    dataset.require(1)
    tokens, mask = layout.take(np.arange(layout.available))
    assert mask is None
    documents = [doc for doc, _ in dataset._documents("train", None, (0, 0))]
    stream = np.concatenate(dataset.vocabulary.encode(documents))
    assert len(layout.store.index.shards) > 3
    assert np.array_equal(tokens.ravel(), stream[: tokens.size])
    assert len(stream) - tokens.size < dataset.config.max_length
    assert (stream == dataset.special["eos_token_id"]).sum() == len(documents)
    batch = dataset.rows(0, 4)
    assert torch.equal(batch.input_ids, batch.labels)
    assert batch.scored == 4 * (dataset.config.max_length - 1)


def test_padded_rows_are_one_document_each(open_corpus, small_shards):
    dataset = open_corpus(layout="padded")
    layout = dataset._split("train", 0).layout
    dataset.require(1)
    documents = [doc for doc, _ in dataset._documents("train", None, (0, 0))]
    assert layout.available == len(documents)
    tokens, mask = layout.take(np.arange(len(documents)))
    length, eos, pad = (
        dataset.config.max_length,
        dataset.special["eos_token_id"],
        dataset.special["pad_token_id"],
    )
    lengths = set()
    for row, scored, document in zip(tokens, mask, documents, strict=True):
        whole = dataset.vocabulary.encode([document])[0].tolist()
        cut = whole if len(whole) <= length else [*whole[: length - 1], eos]
        assert row.tolist() == cut + [pad] * (length - len(cut))
        assert scored.sum() == len(cut)
        lengths.add(len(whole) > length)
    assert lengths == {True, False}
    batch = dataset.rows(0, 20)
    assert ((batch.labels == UNSCORED) == (batch.input_ids == pad)).all()
    assert (
        batch.scored == int((batch.labels[:, 1:] != UNSCORED).sum()) == dataset.scored_tokens(0, 20)
    )


def test_reading_rows_is_fast(open_corpus):
    dataset = open_corpus(max_length=32)
    dataset.rows(0, 8)
    started = time.process_time()  # others may be using the machine
    for n in range(200):
        dataset.rows(8 * n, 8)
    assert (time.process_time() - started) / 200 < 1e-3


@pytest.mark.parametrize(("first", "count"), [(-1, 2), (0, -1)])
def test_positions_start_at_zero(open_corpus, first, count):
    with pytest.raises(ValueError, match="positions start at 0"):
        open_corpus().rows(first, count)
