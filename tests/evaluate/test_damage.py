"""Damaged files of the embedded suite are reported, never scored."""

from __future__ import annotations

from pathlib import Path

import pytest

from lowrank.data.sources.embedded import SOURCE
from lowrank.errors import DataError
from lowrank.evaluate import embedded, harness, suites
from lowrank.evaluate.definitions import define
from lowrank.evaluate.errors import EvaluationError
from lowrank.evaluate.items import Question

MADE = {
    "cloze": [
        Question("the cat sat", (" on the mat", " in a house"), 0),
        Question("the dog ran", (" to the house", " under a mat"), 1),
    ]
}


def flip(path: Path, what: bytes) -> None:
    """Change one bit of the first ``what`` in a file."""
    body = bytearray(path.read_bytes())
    body[body.index(what)] ^= 1
    path.write_bytes(bytes(body))


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("cloze.jsonl", b"mat"),
        ("embedded_cloze.yaml", b"acc_norm"),
        ("suite.json", b"cloze"),
    ],
)
def test_a_damaged_suite_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, what: bytes
) -> None:
    monkeypatch.setattr(SOURCE, "read", lambda *_: [])
    monkeypatch.setattr(embedded, "corpus_of", lambda *_: None)
    monkeypatch.setattr(embedded, "make_items", lambda _: MADE)
    made = embedded.build(cache=tmp_path)
    assert embedded.build(cache=tmp_path) == made
    flip(made.folder / name, what)
    with pytest.raises(DataError, match=rf"{name} .*damaged.*run again"):
        embedded.build(cache=tmp_path)


def test_items_damaged_in_the_cache_of_the_library_are_refused(
    small_suite: embedded.Embedded,
) -> None:
    definition = define("cloze", suites.get("embedded").tasks["cloze"], None, small_suite)
    assert harness.load(definition, None).answers
    (table,) = (small_suite.folder / "arrow").rglob("*.arrow")
    flip(table, b"house")
    with pytest.raises(EvaluationError, match=r"items of cloze\.jsonl are damaged"):
        harness.load(definition, None)
