"""The embedded suite: enough items, always the same, and nothing to win for who does not read the
context.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lowrank.config.schema import Data
from lowrank.data import sources
from lowrank.data.splits import survey
from lowrank.errors import DataError
from lowrank.evaluate import embedded
from lowrank.evaluate.items import (
    MAKERS,
    WORD,
    Corpus,
    Question,
    agreement,
    cloze,
    definition,
    ordering,
    word_counts,
    word_order,
)

PERMUTED = ["ordering", "word_order"]
CROSSED = sorted({*MAKERS} - {*PERMUTED, "agreement"})


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def corpus(cache: Path) -> Corpus:
    """Return the held-out documents of the embedded corpus."""
    documents = [d for d, _ in sources.get("embedded")(Data(), cache).read("train", None) if d]
    return embedded.corpus_of(documents, Data().validation_fraction)


@pytest.fixture(scope="module")
def suite(cache: Path, corpus: Corpus) -> dict[str, list[Question]]:
    return embedded.make_items(corpus)


def test_every_task_has_enough_items_and_each_once(suite: dict[str, list[Question]]) -> None:
    for items in suite.values():
        assert embedded.FEWEST <= len(items) <= embedded.MOST
        assert len({item.key for item in items}) == len(items)


def test_items_come_from_held_out_documents(
    corpus: Corpus, suite: dict[str, list[Question]], cache: Path
) -> None:
    documents = [d for d, _ in sources.get("embedded")(Data(), cache).read("train", None) if d]
    bounds = survey(documents, Data().validation_fraction).bounds
    assert {bounds.split(document) for document in corpus.documents} == {"validation", "selection"}
    held = "\n".join(corpus.documents)
    assert all(item.choices[item.label] in held for item in suite["word_order"])


def test_the_suite_is_the_same_every_time_and_is_built_once(
    cache: Path, suite: dict[str, list[Question]], corpus: Corpus
) -> None:
    built = embedded.build(cache=cache)
    other = embedded.write_suite(cache / "again", embedded.make_items(corpus))
    assert built.sha256 == other["sha256"]
    assert {name: task["items"] for name, task in built.tasks.items()} == {
        name: len(items) for name, items in suite.items()
    }
    stamp = (built.folder / "cloze.jsonl").stat().st_mtime_ns
    assert embedded.build(cache=cache) == built
    assert (built.folder / "cloze.jsonl").stat().st_mtime_ns == stamp
    lines = (built.folder / "cloze.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["query"] for line in lines] == [item.query for item in suite["cloze"]]


def right(items: list[Question], score: Callable[[str], float]) -> float:
    """Return the share of items that a scorer of choices alone gets right; a tie counts as half."""
    wins = [(score(i.choices[i.label]), score(i.choices[1 - i.label])) for i in items]
    return sum(1.0 if a > b else 0.5 if a == b else 0.0 for a, b in wins) / len(wins)


def scorers(corpus: Corpus) -> Iterator[Callable[[str], float]]:
    """Return scorers by unigram probability (also per word), length in characters and words, and an
    arbitrary taste.
    """
    yield lambda choice: -corpus.rarity(WORD.findall(choice))
    yield lambda choice: -corpus.rarity(WORD.findall(choice)) / max(1, len(WORD.findall(choice)))
    yield lambda choice: float(len(choice))
    yield lambda choice: -float(len(choice.split()))
    yield lambda choice: float(int(hashlib.sha256(choice.encode()).hexdigest(), 16) % 10_007)


@pytest.mark.parametrize("task", CROSSED)
def test_crossed_items_are_a_coin_toss_without_the_context(
    suite: dict[str, list[Question]], corpus: Corpus, task: str
) -> None:
    items = suite[task]
    for a, b in zip(items[::2], items[1::2], strict=True):
        assert set(a.choices) == set(b.choices)
        assert a.choices[a.label] != b.choices[b.label]
        assert a.twin == b.twin != ""
    for scorer in scorers(corpus):
        assert right(items, scorer) == 0.5


@pytest.mark.parametrize("task", PERMUTED)
def test_permuted_items_have_the_same_words_and_length(
    suite: dict[str, list[Question]], task: str
) -> None:
    for item in suite[task]:
        a, b = item.choices
        assert a != b
        assert item.twin == ""
        assert (sorted(a), sorted(a.split())) == (sorted(b), sorted(b.split()))


def test_each_pair_of_forms_is_used_in_both_directions_alike(
    suite: dict[str, list[Question]], corpus: Corpus
) -> None:
    items = suite["agreement"]
    for n in range(0, len(items), 2):
        first, second = (_changed(item) for item in items[n : n + 2])
        assert first == second[::-1]
        assert items[n].twin == items[n + 1].twin != ""
    for scorer in list(scorers(corpus))[:4]:
        assert (
            abs(right(items, scorer) - 0.5) <= 0.02
        )  # the words around differ, so that ties of word length may not cancel


def _changed(item: Question) -> tuple[str, str]:
    answer, broken = item.choices[item.label].split(" "), item.choices[1 - item.label].split(" ")
    (pair,) = [(a, b) for a, b in zip(answer, broken, strict=True) if a != b]
    return pair


def test_answers_stand_at_either_place(suite: dict[str, list[Question]]) -> None:
    for items in suite.values():
        assert 0.4 < sum(item.label for item in items) / len(items) < 0.6


SENTENCE = "The old tree of the graph is small and the tree is red."


def test_makers_by_hand() -> None:
    draw = random.Random(0)
    text = f"{SENTENCE} This node is a leaf of the old graph.\n\nA second paragraph."
    corpus = Corpus([text], {"tree": 50, "graph": 60, "node": 70, "leaf": 12})
    (first, second) = word_order(corpus, draw)
    assert first.choices[first.label] == SENTENCE
    assert second.choices[second.label] == "This node is a leaf of the old graph."
    (pair,) = ordering(corpus, draw)
    assert pair.choices[pair.label].startswith("The old tree")
    assert pair.choices[1 - pair.label].startswith("This node")
    assert agreement(corpus, draw) == [], "no 'are' to balance the 'is'"


def test_a_cloze_repeats_a_word_of_its_passage_and_its_twins_do_not() -> None:
    documents = [
        f"Every {a} has a {b} and for this reason the {a} is kept."
        for a, b in (("matrix", "rank"), ("kernel", "size"))
    ]
    corpus = Corpus(documents, {"matrix": 50, "kernel": 51, "rank": 4, "size": 4})
    items = cloze(corpus, random.Random(0))
    assert {item.choices[item.label] for item in items} == {" matrix", " kernel"}
    for item in items:
        assert item.choices[item.label].strip() in item.query
        assert item.choices[1 - item.label].strip() not in item.query


def test_a_definition_ends_with_a_word_that_is_new_and_no_term() -> None:
    counts = dict.fromkeys(("matrix", "kernel", "graph", "sparse", "node"), 50)
    documents = [
        "Compute all entries of the matrix.\n\nThen the kernel.",
        "Return every neighbour of a node. It is a leaf.",
        "Compute all entries of a sparse matrix.",
        "Compute the graph of a graph.",
        "A kernel.",
    ]
    items = definition(Corpus(documents, counts), random.Random(0))
    assert {(item.query, item.choices[item.label]) for item in items} == {
        ("Compute all entries of the", " matrix"),
        ("Return every neighbour of a", " node"),
    }


def test_counts_and_rarity() -> None:
    corpus = Corpus([], word_counts(["The tree, the Tree.", "a tree"]))
    assert corpus.counts == {"the": 2, "tree": 3, "a": 1}
    assert corpus.rarity(["unseen"]) > corpus.rarity(["a"]) > corpus.rarity(["tree"])


def test_too_little_text_is_named() -> None:
    with pytest.raises(
        DataError,
        match="the held-out text gives 0 items of the task 'continuation' and 300 are needed",
    ):
        embedded.make_items(Corpus(["A short text."], {}))
