"""Splits depend on content: disjoint, complete, and independent of order, file and source."""

from __future__ import annotations

from lowrank.data import SPLITS
from lowrank.data.splits import content_word, stream_bounds, survey

from .conftest import sentences, write_jsonl


def documents(dataset, split):
    return [document for document, _ in dataset._documents(split, None, (0, 0))]


def test_splits_are_disjoint_and_complete(open_corpus):
    given = sentences(400)
    found = {split: documents(open_corpus(given), split) for split in SPLITS}
    assert sorted(document for part in found.values() for document in part) == sorted(given)
    assert len(found["validation"]) == len(found["selection"]) == 40


def test_duplicates_share_a_split(open_corpus):
    given = sentences(60) * 5
    dataset = open_corpus(given)
    found = [set(documents(dataset, split)) for split in SPLITS]
    assert sum(map(len, found)) == 60
    assert all(
        len(documents(dataset, split)) == 5 * len(part)
        for split, part in zip(SPLITS, found, strict=True)
    )


def test_splits_do_not_depend_on_the_order_of_documents(open_corpus):
    given = sentences(200)
    forward, backward = open_corpus(given), open_corpus(given[::-1])
    for split in SPLITS:
        assert set(documents(forward, split)) == set(documents(backward, split))
    assert (
        forward.fingerprint != backward.fingerprint
    )  # the order of the text is part of what is trained on


def test_a_handful_of_documents_still_has_three_splits():
    for count in (3, 5, 40):
        given = sentences(count)
        bounds = survey(given, 0.02).bounds
        assert {bounds.split(document) for document in given} == set(SPLITS)


def test_a_stream_with_a_validation_part_needs_only_a_selection_split(open_corpus, hub_folder):
    dataset = open_corpus(source="huggingface", path=str(hub_folder))
    assert sorted(documents(dataset, "validation")) == sorted(sentences(80, seed=9))
    trained, selected = documents(dataset, "train"), documents(dataset, "selection")
    assert len(trained) + len(selected) == 150 + 151 + 152
    assert not set(trained) & set(selected)
    assert 0.04 < len(selected) / 453 < 0.2
    limit = stream_bounds(0.1, True).selection
    assert all(content_word(document) < limit for document in selected)


def test_a_stream_without_validation_is_split_by_content(open_corpus, hub_folder):
    (hub_folder / "validation.jsonl").unlink()
    dataset = open_corpus(source="huggingface", path=str(hub_folder))
    found = [set(documents(dataset, split)) for split in SPLITS]
    assert sum(map(len, found)) == 453
    assert all(found)


def test_the_fingerprint_covers_the_text_but_not_its_location(open_corpus, tmp_path, cache):
    given = sentences(50)
    places = [write_jsonl(tmp_path / name / "x.jsonl", given) for name in ("a", "b")]
    a, b = (open_corpus(path=str(place)) for place in places)
    assert a.fingerprint == b.fingerprint
    assert a.tokenizer_hash == b.tokenizer_hash
    write_jsonl(places[0], [*given, "One document more."])
    assert open_corpus(path=str(places[0])).fingerprint != a.fingerprint
    assert open_corpus(path=str(places[1]), validation_fraction=0.2).fingerprint != a.fingerprint
