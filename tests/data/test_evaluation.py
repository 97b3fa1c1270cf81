"""Evaluation sets: fixed rows of a held-out split, identified by their hash."""

from __future__ import annotations

import math
from dataclasses import asdict

import pytest
import torch

from lowrank.data import UNSCORED, unigram_entropy
from lowrank.errors import DataError


@pytest.mark.parametrize("layout", ["packed", "padded"])
@pytest.mark.parametrize("source", ["jsonl", "huggingface"])
def test_a_set_is_deterministic_and_matches_its_record(open_corpus, hub_folder, layout, source):
    options = {"source": source, "path": str(hub_folder)} if source == "huggingface" else {}
    found, again = (
        open_corpus(seed=seed, layout=layout, max_length=64, **options).evaluation_set(
            "v", split="validation", examples=10, seed=3
        )
        for seed in (0, 1)
    )
    assert found.record == again.record  # whatever the run's own seed
    batches = list(found.batches(4))
    assert [len(batch) for batch in batches] == [4, 4, 2]
    assert found.record.tokens == sum(batch.scored for batch in batches)
    assert found.record.examples == len(found) == 10
    assert found.record.packing == (layout == "packed")
    if layout == "padded":
        assert (torch.cat([b.labels for b in batches]) == UNSCORED).any()
    assert all(b.input_ids.dtype == b.labels.dtype == torch.int64 for b in batches)


@pytest.mark.parametrize("change", [{"seed": 1}, {"split": "selection"}, {"examples": 11}])
def test_different_rows_have_different_hashes(open_corpus, change):
    dataset = open_corpus()
    base = {"split": "validation", "examples": 10, "seed": 0}
    assert (
        dataset.evaluation_set("v", **base).record.sha256
        != dataset.evaluation_set("v", **{**base, **change}).record.sha256
    )


def test_padded_and_packed_sets_differ(open_corpus):
    packed, padded = (open_corpus(layout=layout) for layout in ("packed", "padded"))
    found = [
        dataset.evaluation_set("v", split="validation", examples=5).record.sha256
        for dataset in (packed, padded)
    ]
    assert found[0] != found[1]


def test_the_hash_ignores_the_name(open_corpus):
    dataset = open_corpus()
    a, b = (
        asdict(dataset.evaluation_set(name, split="validation", examples=5).record) for name in "ab"
    )
    assert (a.pop("name"), b.pop("name")) == ("a", "b")
    assert a == b


@pytest.mark.parametrize("layout", ["packed", "padded"])
def test_a_number_of_tokens_takes_as_few_rows_as_possible(open_corpus, layout):
    dataset = open_corpus(layout=layout)
    for tokens in (1, 15, 16, 100, 101):
        found = dataset.evaluation_set("v", split="validation", tokens=tokens)
        scored = [
            int((labels[1:] != UNSCORED).sum())
            for batch in found.batches(100)
            for labels in batch.labels
        ]
        assert sum(scored) == found.record.tokens >= tokens
        assert sum(scored[:-1]) < tokens


def test_a_small_split_is_used_completely_and_recorded(open_corpus):
    dataset = open_corpus(layout="padded")
    record = dataset.evaluation_set("v", split="validation", tokens=10**9).record
    assert record.examples == 30  # a tenth of 300 documents
    assert (
        dataset.evaluation_set("v", split="validation", examples=10**6).record.sha256
        == record.sha256
    )


def test_a_larger_set_begins_with_the_smaller_one(open_corpus):
    dataset = open_corpus()
    small, large = (dataset.evaluation_set("v", split="validation", examples=n) for n in (5, 12))
    assert (large.tokens[:5] == small.tokens).all()


def test_training_rows_and_held_out_rows_are_disjoint(open_corpus):
    dataset = open_corpus(layout="padded", max_length=64)
    trained = {tuple(row) for row in dataset.rows(0, 240).input_ids.tolist()}
    for split in ("validation", "selection"):
        held = {
            tuple(row)
            for row in dataset.evaluation_set("v", split=split, examples=1000).tokens.tolist()
        }
        assert held
        assert not held & trained


def test_bad_requests_are_errors(open_corpus):
    dataset = open_corpus()
    with pytest.raises(
        DataError, match="there is no split 'test'; there are train, validation, selection"
    ):
        dataset.evaluation_set("v", split="test", examples=3)
    for wrong in ({}, {"tokens": 3, "examples": 3}):
        with pytest.raises(ValueError, match="by tokens or by examples"):
            dataset.evaluation_set("v", split="validation", **wrong)
    with pytest.raises(ValueError, match="at least one row"):
        next(dataset.evaluation_set("v", split="validation", examples=3).batches(0))


def test_unigram_entropy_is_that_of_the_token_counts(open_corpus):
    dataset = open_corpus()
    counts: dict[int, int] = {}
    for document, _ in dataset._documents("validation", None, (0, 0)):
        for token in dataset.vocabulary.encode([document])[0].tolist():
            counts[token] = counts.get(token, 0) + 1
    total = sum(counts.values())
    expected = -sum(n / total * math.log(n / total) for n in counts.values())
    assert unigram_entropy(dataset, "validation") == pytest.approx(expected, rel=1e-12)
    assert unigram_entropy(dataset) < math.log(dataset.vocabulary_size)
