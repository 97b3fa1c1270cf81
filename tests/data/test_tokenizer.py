"""Tokenizers: the same text gives the same tokenizer, and checkpoints load what the data was made
with.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
from transformers import AutoTokenizer

from lowrank.data import tokenizer as tokenizers
from lowrank.errors import DataError

from .conftest import sentences

TRAIN = """
import random, sys
from pathlib import Path
from lowrank.data import tokenizer
rng = random.Random(0)
words = ["".join(rng.choices("abcdefghij", k=rng.randint(2, 9))) for _ in range(3000)]
texts = [" ".join(rng.choices(words, k=50)) for _ in range(2000)]
print(tokenizer.train_tokenizer(texts, {"n": 1}, 1500, Path(sys.argv[1])).hash)
"""


def test_training_is_deterministic_across_processes(tmp_path):
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", TRAIN, str(tmp_path / str(n))],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "TOKENIZERS_PARALLELISM": parallel, "PYTHONHASHSEED": str(n)},
        )
        for n, parallel in enumerate(("true", "false"))
    ]
    hashes = [process.communicate(timeout=120)[0] for process in processes]
    assert hashes[0] == hashes[1]
    assert len(hashes[0].strip()) == 64


def test_a_checkpoint_loads_the_tokenizer(open_corpus, tmp_path):
    dataset = open_corpus()
    dataset.tokenizer.save_pretrained(tmp_path / "checkpoint")
    loaded = AutoTokenizer.from_pretrained(tmp_path / "checkpoint")
    text = "Text 0: the river runs. </s> naïve 🙂"
    assert loaded(text).input_ids == dataset.tokenizer(text).input_ids
    assert len(loaded) == dataset.vocabulary_size == 300
    assert {name: getattr(loaded, name) for name in dataset.special} == dataset.special
    saved = (tmp_path / "checkpoint" / "tokenizer.json").read_text()
    assert tokenizers.canonical_hash(saved) == dataset.tokenizer_hash


@pytest.mark.parametrize(
    "text", ["plain", " two  spaces\n\ttabs ", "</s><pad><unk> as text", "数据 🙂 é", "<s>"]
)
def test_decoding_restores_the_text_including_special_tokens(open_corpus, text):
    dataset = open_corpus()
    (ids,) = dataset.vocabulary.encode([text])
    assert ids[-1] == dataset.special["eos_token_id"]
    assert not set(ids[:-1].tolist()) & {0, *dataset.special.values()}
    assert dataset.tokenizer.decode(ids[:-1]) == text


def test_the_hash_covers_only_the_content(open_corpus):
    dataset = open_corpus()
    text = (dataset.vocabulary.folder / "tokenizer.json").read_text()
    body = json.loads(text)
    assert (
        tokenizers.canonical_hash(json.dumps(dict(reversed(body.items())), indent=7))
        == dataset.tokenizer_hash
    )
    body["truncation"] = {
        "direction": "Right",
        "max_length": 5,
        "strategy": "LongestFirst",
        "stride": 0,
    }
    assert tokenizers.canonical_hash(json.dumps(body)) == dataset.tokenizer_hash
    body["model"]["merges"].pop()
    assert tokenizers.canonical_hash(json.dumps(body)) != dataset.tokenizer_hash


def test_the_tokenizer_is_trained_on_the_training_split(open_corpus, monkeypatch):
    seen = []
    train = tokenizers._train
    monkeypatch.setattr(
        tokenizers, "_train", lambda texts, size: train((seen.append(t) or t for t in texts), size)
    )
    dataset = open_corpus(sentences(200, seed=77))
    assert sorted(seen) == sorted(
        document for document, _ in dataset._documents("train", None, (0, 0))
    )


@pytest.mark.parametrize("characters", [None, 10_000])
def test_the_sample_of_a_large_corpus_is_bounded(monkeypatch, characters):
    monkeypatch.setattr(tokenizers, "TRAINING_CHARACTERS", 2000)
    given = sentences(120)
    found = list(tokenizers.sample(given, characters))
    assert 1000 < sum(map(len, found)) <= 2200
    if characters:
        assert given.index(found[-1]) > 60  # spread over the corpus


def test_a_tokenizer_in_a_local_folder(open_corpus, tmp_path):
    trained = open_corpus()
    trained.tokenizer.save_pretrained(tmp_path / "own")
    dataset = open_corpus(
        sentences(100, seed=4), tokenizer=str(tmp_path / "own"), vocabulary_size=None
    )
    assert dataset.tokenizer_hash == trained.tokenizer_hash
    assert dataset.vocabulary_size == 300
    wider = open_corpus(
        sentences(100, seed=4), tokenizer=str(tmp_path / "own"), vocabulary_size=512
    )
    assert wider.vocabulary_size == 512
    assert (wider.rows(0, 9).input_ids == dataset.rows(0, 9).input_ids).all()


def test_an_embedding_too_small_for_the_tokenizer_is_an_error(open_corpus, tmp_path):
    open_corpus().tokenizer.save_pretrained(tmp_path / "own")
    with pytest.raises(
        DataError, match=r"the tokenizer gives token 29\d, but data\.vocabulary_size is 280"
    ):
        open_corpus(tokenizer=str(tmp_path / "own"), vocabulary_size=280)


def test_a_tokenizer_that_ends_documents_itself(open_corpus, tmp_path):
    """As T5's does: no second end token, and one stays when a padded row is cut."""
    from tokenizers.processors import TemplateProcessing

    tokenizer = open_corpus().tokenizer
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", 2)]
    )
    tokenizer.save_pretrained(tmp_path / "own")
    dataset = open_corpus(tokenizer=str(tmp_path / "own"), vocabulary_size=None, layout="padded")
    labels = dataset.rows(0, 100).labels
    assert ((labels == 2).sum(1) == 1).all()


def test_a_tokenizer_without_padding_or_end(open_corpus, tmp_path):
    from transformers import PreTrainedTokenizerFast

    backend = open_corpus().tokenizer.backend_tokenizer
    PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>").save_pretrained(
        tmp_path / "no-pad"
    )
    dataset = open_corpus(
        tokenizer=str(tmp_path / "no-pad"), vocabulary_size=None, layout="padded", max_length=64
    )
    assert dataset.special["pad_token_id"] is None
    batch = dataset.rows(0, 50)
    assert (
        (batch.input_ids == 2).sum(1) > (batch.labels == 2).sum(1)
    ).any()  # filled with the end token, one of which is scored
    assert ((batch.labels == 2).sum(1) == 1).all()
    PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>").save_pretrained(
        tmp_path / "no-end"
    )
    with pytest.raises(DataError, match="no-end' has no end-of-sequence token"):
        open_corpus(tokenizer=str(tmp_path / "no-end"), vocabulary_size=None)


@pytest.mark.parametrize(
    ("name", "fix"),
    [("empty", "it must hold a tokenizer.json"), ("no/such-tokenizer", "connect, download it")],
)
def test_a_tokenizer_that_cannot_be_loaded_is_an_error(
    open_corpus, tmp_path, monkeypatch, name, fix
):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (tmp_path / "empty").mkdir()
    with pytest.raises(
        DataError, match=f"the tokenizer .*{name}' of data.tokenizer cannot be loaded; {fix}"
    ):
        open_corpus(tokenizer=str(tmp_path / name) if name == "empty" else name)


def test_a_vocabulary_smaller_than_the_bytes(open_corpus):
    with pytest.raises(
        DataError, match=r"data\.vocabulary_size is 100; a trained tokenizer needs at least 260"
    ):
        open_corpus(vocabulary_size=100)
