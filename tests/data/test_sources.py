"""Local formats: the documents are those that were written, from one file, a folder or a glob, from
any position.
"""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lowrank.config.schema import Data
from lowrank.data import sources
from lowrank.data.sources.base import Source

from .conftest import sentences, write_jsonl


def write_text(path: Path, documents: list[str]) -> None:
    path.write_text("\n\n \n".join(documents) + "\n\n", encoding="utf-8")


def write_gzip(path: Path, documents: list[str]) -> None:
    with gzip.open(path, "wt", encoding="utf-8") as file:
        file.writelines(json.dumps({"text": document}) + "\n" for document in documents)


def write_parquet(path: Path, documents: list[str]) -> None:
    pq.write_table(
        pa.table({"id": list(range(len(documents))), "text": documents}), path, row_group_size=7
    )


def write_arrow_file(path: Path, documents: list[str]) -> None:
    table = pa.table({"text": documents})
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=7)


def write_arrow_stream(path: Path, documents: list[str]) -> None:
    table = pa.table({"text": pa.array(documents, pa.large_string())})
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=7)


FORMATS = {
    "text": ("text", "txt", write_text),
    "jsonl": ("jsonl", "jsonl", write_jsonl),
    "gzip": ("jsonl", "json.gz", write_gzip),
    "parquet": ("parquet", "parquet", write_parquet),
    "arrow-file": ("arrow", "arrow", write_arrow_file),
    "arrow-stream": ("arrow", "arrow", write_arrow_stream),
}
GIVEN = [*sentences(40), "Grüße aus Köln, naïve café — 数据 🙂.", "Two lines\nin one document."]


def source(tmp_path: Path, name: str, path: str, **options: object) -> Source:
    return sources.get(name)(Data(source=name, path=path, **options), tmp_path / "cache")


@pytest.fixture(params=FORMATS)
def corpus(request, tmp_path) -> tuple[str, str, Path]:
    """(source, suffix, folder with two files)."""
    name, suffix, write = FORMATS[request.param]
    folder = tmp_path / "folder" / "deeper"
    folder.mkdir(parents=True)
    write(folder / f"a.{suffix}", GIVEN[:25])
    write(folder / f"b.{suffix}", GIVEN[25:])
    (folder / "readme.rst").write_text("not text of the corpus")
    (folder / ".hidden").mkdir()
    write(folder / ".hidden" / f"c.{suffix}", ["not to be read"])
    return name, suffix, folder


def test_folder_glob_and_file(corpus, tmp_path):
    name, suffix, folder = corpus
    for path, expected in [
        (folder.parent, GIVEN),
        (folder / f"*.{suffix}", GIVEN),
        (folder / f"b.{suffix}", GIVEN[25:]),
    ]:
        assert [
            d for d, _ in source(tmp_path, name, str(path)).read("train", None) if d
        ] == expected


def test_reading_can_continue_from_every_position(corpus, tmp_path):
    name, _, folder = corpus
    whole = list(source(tmp_path, name, str(folder)).read("train", None))
    for n in (1, 7, 24, 25, 26, 40):
        assert (
            list(source(tmp_path, name, str(folder)).read("train", None, whole[n - 1][1]))
            == whole[n:]
        )


def test_a_custom_separator(tmp_path):
    (tmp_path / "x.txt").write_text("One.\n\nStill one.\n<|endoftext|>\nTwo.\n<|endoftext|>\n")
    found = source(tmp_path, "text", str(tmp_path / "x.txt"), separator="<|endoftext|>").read(
        "train", None
    )
    assert [d for d, _ in found if d] == ["One.\n\nStill one.", "Two."]


@pytest.mark.parametrize("block", [1, 2, 3, 5, 64])
@pytest.mark.parametrize("separator", [None, "\n\n", "<|e|>"])
def test_block_boundaries_do_not_split_documents(tmp_path, monkeypatch, block, separator):
    from lowrank.data.sources import text

    body = "\n\n \n\nA b\nc.\n\n\n \nD e.\r\n\r\nF<|e|>g.\n<|e|>\nH\n\t\ni."
    (tmp_path / "x.txt").write_bytes(body.encode())

    def read() -> list[str]:
        return [
            d
            for d, _ in source(tmp_path, "text", str(tmp_path / "x.txt"), separator=separator).read(
                "train", None
            )
            if d
        ]

    whole = read()
    assert len(whole) >= 3
    monkeypatch.setattr(text, "_BLOCK", block)
    assert read() == whole


def test_a_custom_text_field(tmp_path, open_corpus):
    path = write_jsonl(tmp_path / "x.jsonl", sentences(40), field="content")
    dataset = open_corpus(path=str(path), text_field="content")
    assert dataset.survey.documents == 40


def test_documents_without_text_are_skipped(open_corpus):
    assert open_corpus([*sentences(40), "", ""]).survey.documents == 40


def test_broken_escapes_do_not_stop_the_run(tmp_path, open_corpus):
    path = write_jsonl(tmp_path / "x.jsonl", [*sentences(40), "a lone \ud800 surrogate"])
    assert open_corpus(path=str(path)).survey.documents == 41


def test_changed_files_are_read_again(tmp_path, open_corpus):
    path = write_jsonl(tmp_path / "x.jsonl", sentences(40))
    before = open_corpus(path=str(path))
    write_jsonl(path, sentences(41))
    after = open_corpus(path=str(path))
    assert (before.survey.documents, after.survey.documents) == (40, 41)
    assert before.fingerprint != after.fingerprint


def test_every_source_is_a_file_and_describes_itself(tmp_path):
    assert set(sources.names()) == {
        "arrow",
        "c4",
        "embedded",
        "huggingface",
        "jsonl",
        "parquet",
        "text",
    }
    for name in sources.names():
        made = source(tmp_path, name, "some/where")
        assert name in made.label
