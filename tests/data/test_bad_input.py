"""Every bad corpus is one sentence that names it and the fix, and leaves no partial files."""

from __future__ import annotations

import gzip
import os

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lowrank.errors import DataError, UnknownNameError

from .conftest import sentences, write_jsonl


def bad_file(folder, kind):
    """(options, what the message must say) of a corpus that cannot be read."""
    path = folder / kind
    if kind == "missing":
        return {"path": str(path)}, r"data\.path .*missing' names no file; give"
    if kind == "no-path":
        return {"path": None}, r"the source 'jsonl' needs data\.path"
    if kind == "empty-folder":
        path.mkdir()
        return {"path": str(path)}, r"empty-folder' .*holds no file that ends in \.jsonl"
    if kind == "empty":
        path.write_text("")
        return {"path": str(path)}, "empty' is empty; give a corpus with text"
    if kind == "blank":
        path.write_text(" \n\n \n")
        return {"path": str(path), "source": "text"}, "blank' is empty"
    if kind == "not-json":
        path.write_text('{"text": "a"}\nhello\n')
        return {"path": str(path)}, r"line 2 of .*not-json is not JSON .*one object per line"
    if kind == "wrong-field":
        write_jsonl(path, ["a"], field="body")
        return {
            "path": str(path)
        }, r"line 1 of .* has no field 'text' \(it has body\); set data\.text_field"
    if kind == "not-an-object":
        path.write_text("[1]\n")
        return {"path": str(path)}, r"line 1 .* has no field 'text' \(it has a list\)"
    if kind == "number":
        path.write_text('{"text": 3}\n')
        return {"path": str(path)}, r"the field 'text' of line 1 .* is a int, not text"
    if kind == "latin-1":
        path.write_bytes("Grüße.\n\nmehr".encode("latin-1"))
        return {"path": str(path), "source": "text"}, "latin-1 is not UTF-8 text"
    if kind == "cut.gz":
        path.write_bytes(gzip.compress(b'{"text": "a b c d e f g"}\n' * 50)[:-12])
        return {"path": str(path)}, r"cut\.gz is cut off or damaged"
    if kind == "fake.gz":
        path.write_text("{}")
        return {"path": str(path)}, r"cannot read .*fake\.gz"
    if kind in ("fake.parquet", "fake.arrow"):
        path.write_bytes(b"this is something else entirely")
        return {"path": str(path), "source": kind[5:]}, rf"{kind} is not a readable {kind[5:]} file"
    if kind == "column.parquet":
        pq.write_table(pa.table({"body": ["a"]}), path)
        return {
            "path": str(path),
            "source": "parquet",
        }, r"column\.parquet has no field 'text' \(it has body\)"
    if kind == "integers.parquet":
        pq.write_table(pa.table({"text": [1, 2]}), path)
        return {"path": str(path), "source": "parquet"}, "the field 'text' of .* is a int, not text"
    raise AssertionError(kind)


KINDS = [
    "missing",
    "no-path",
    "empty-folder",
    "empty",
    "blank",
    "not-json",
    "wrong-field",
    "not-an-object",
    "number",
    "latin-1",
    "cut.gz",
    "fake.gz",
    "fake.parquet",
    "fake.arrow",
    "column.parquet",
    "integers.parquet",
]


@pytest.mark.parametrize("kind", KINDS)
def test_a_corpus_that_cannot_be_read_is_an_error(open_corpus, tmp_path, cache, kind):
    options, message = bad_file(tmp_path, kind)
    with pytest.raises(DataError, match=message) as caught:
        open_corpus(**options)
    assert "\n" not in str(caught.value)
    assert not [path for path in cache.rglob("*") if path.is_file()]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_without_permission_is_an_error(open_corpus, tmp_path):
    path = write_jsonl(tmp_path / "secret.jsonl", sentences(9))
    path.chmod(0)
    with pytest.raises(DataError, match=r"cannot read .*secret\.jsonl"):
        open_corpus(path=str(path))


def test_the_nearest_source_is_suggested(open_corpus):
    with pytest.raises(UnknownNameError, match="unknown data source 'json'; did you mean 'jsonl'"):
        open_corpus(source="json")


@pytest.mark.parametrize("layout", ["packed", "padded"])
def test_a_corpus_smaller_than_a_batch_is_an_error(open_corpus, layout):
    dataset = open_corpus(sentences(12), layout=layout, validation_fraction=0.1)
    with pytest.raises(
        DataError,
        match=r"holds \d+ rows of 16 tokens, fewer than the 512 needed; .*training\.batch_size",
    ):
        dataset.require(512)
    dataset.require(8)


def test_a_corpus_smaller_than_a_row_is_an_error(open_corpus):
    with pytest.raises(
        DataError, match=r"holds 0 rows of 4096 tokens, fewer than the 1 needed; .*data\.max_length"
    ):
        open_corpus(sentences(12), max_length=4096)


def test_a_held_out_split_smaller_than_a_row_is_an_error(open_corpus):
    dataset = open_corpus(sentences(40), max_length=400, validation_fraction=0.01)
    with pytest.raises(
        DataError,
        match=r"the validation split .* does not fill one row of 400 .*data\.validation_fraction",
    ):
        dataset.evaluation_set("v", split="validation", tokens=100)


def test_a_cache_that_cannot_be_written_is_an_error(open_corpus, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(DataError, match="LOWRANK_CACHE"):
        open_corpus(cache=tmp_path / "file" / "cache")
