"""Multiple-choice items out of plain documents, made so that no scorer that ignores the context can
solve them.

Two constructions see to that. *Permuted* items offer the same words in another order, so that the
choices have the same unigram probability and the same length. *Crossed* items come in twins: two
contexts share the same two choices, each the answer of one of them, so that whatever prefers a
choice by itself (by frequency, length or even by a language model without the context) is right on
exactly one of the two.

Everything is a function of the documents and of a seed; nothing depends on a tokenizer.
"""

from __future__ import annotations

import hashlib
import math
import random
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

REVISION = 2  # raised when the same documents give other items

SENTENCE = re.compile(r"(?<=[a-z0-9)'\"][.!?])\s+(?=[A-Z\"'(])")
WORD = re.compile(r"[A-Za-z]+")
PLAIN = re.compile(r"[a-z]+$")
CLOSED = frozenset(
    re.findall(
        r"\w+",
        "a an the this that these those each every any some no its their our your his all both of in on at by for from to with into "
        "as than between over under through during within without and or but if when while because is are was were be been being "
        "has have had do does did can could will would shall should may might must not",
    )
)
"""Function words: which words may follow them is nearly fixed, so that a swap with a neighbour
breaks the sentence.
"""

INFLECTIONS = (
    ("is", "are"),
    ("was", "were"),
    ("has", "have"),
    ("does", "do"),
    ("a", "an"),
    ("this", "these"),
    ("that", "those"),
    ("returns", "return"),
    ("contains", "contain"),
    ("represents", "represent"),
    ("uses", "use"),
    ("takes", "take"),
    ("depends", "depend"),
    ("requires", "require"),
    ("needs", "need"),
    ("means", "mean"),
    ("allows", "allow"),
)


@dataclass(frozen=True)
class Item:
    """One question: ``choices`` continue ``query`` as they stand (an empty query is the start of a
    document).
    """

    query: str
    choices: tuple[str, ...]
    label: int
    kind: str = ""
    twin: str = ""  # the same for two items that share their choices: they are not independent

    @property
    def key(self) -> str:
        """A hash of query and choices in the order of the answer first: the
        identity of the item.
        """
        answer = self.choices[self.label]
        body = "\x1f".join(
            [self.query, answer, *sorted(c for i, c in enumerate(self.choices) if i != self.label)]
        )
        return hashlib.sha256(body.encode()).hexdigest()


@dataclass(frozen=True)
class Corpus:
    """Held-out documents and how often each word occurs in the training text."""

    documents: Sequence[str]
    counts: Mapping[str, int]

    def rarity(self, words: Iterable[str]) -> float:
        """-ln of the unigram probability of ``words``, in nats, with one added to every count."""
        total = sum(self.counts.values()) + len(self.counts) + 1
        return sum(-math.log((self.counts.get(word.lower(), 0) + 1) / total) for word in words)

    def sentences(self) -> Iterator[str]:
        """All sentences in order."""
        for document in self.documents:
            for paragraph in document.split("\n\n"):
                yield from SENTENCE.split(paragraph)


def word_counts(documents: Iterable[str]) -> Counter[str]:
    """Occurrences of each lower-case word."""
    counts: Counter[str] = Counter()
    for document in documents:
        counts.update(WORD.findall(document.lower()))
    return counts


def word_order(corpus: Corpus, draw: random.Random) -> list[Item]:
    """Grammar: a sentence against itself with a function word and its right neighbour swapped.
    Permuted.
    """
    items = []
    for sentence in corpus.sentences():
        words = sentence.split(" ")
        places = [i for i in range(1, len(words) - 2) if _swappable(words[i], words[i + 1])]
        if not 6 <= len(words) <= 24 or not places:
            continue
        i = draw.choice(places)
        broken = [*words[:i], words[i + 1], words[i], *words[i + 2 :]]
        items.append(_shuffled("", sentence, " ".join(broken), draw, "swap"))
    return items


def _swappable(left: str, right: str) -> bool:
    return bool(left in CLOSED and PLAIN.match(right) and right not in CLOSED and len(right) > 2)


def agreement(corpus: Corpus, draw: random.Random) -> list[Item]:
    """Grammar: a sentence against itself with one word in its other form (is/are, a/an,
    returns/return). Crossed.

    Each pair of forms is used as often in one direction as in the other.
    """
    found: dict[tuple[str, str], list[Item]] = {}
    partner = {a: b for x, y in INFLECTIONS for a, b in ((x, y), (y, x))}
    for sentence in corpus.sentences():
        words = sentence.split(" ")
        places = [i for i in range(1, len(words) - 1) if words[i] in partner]
        if not 6 <= len(words) <= 24 or not places:
            continue
        i = min(
            places,
            key=lambda place: (len(found.get((words[place], partner[words[place]]), ())), place),
        )
        other = partner[words[i]]
        broken = " ".join([*words[:i], other, *words[i + 1 :]])
        item = _shuffled("", sentence, broken, draw, "/".join(sorted((words[i], other))))
        found.setdefault((words[i], other), []).append(item)
    items: list[Item] = []
    for x, y in INFLECTIONS:
        for pair in zip(found.get((x, y), ()), found.get((y, x), ()), strict=False):
            items += _as_twins(*pair)
    return items


@dataclass(frozen=True)
class _Half:
    """One side of a twin: a context and its answer."""

    query: str
    answer: str
    rarity: float
    group: tuple[object, ...]  # only halves of one group are twinned


def continuation(corpus: Corpus, draw: random.Random) -> list[Item]:
    """Commonsense: how a sentence goes on, against the rest of another sentence of as many words.
    Crossed.
    """
    halves = []
    for sentence in corpus.sentences():
        words = sentence.split(" ")
        if not 9 <= len(words) <= 28:
            continue
        cut = draw.randint(max(4, len(words) - 8), len(words) - 4)
        if not PLAIN.match(words[cut]):
            continue
        ending = " ".join(words[cut:])
        halves.append(
            _Half(
                " ".join(words[:cut]),
                f" {ending}",
                corpus.rarity(WORD.findall(ending)),
                (len(words) - cut,),
            )
        )
    return _twins(halves, draw)


def cloze(corpus: Corpus, draw: random.Random) -> list[Item]:
    """Reading: a content word that stood in the passage before, against one of like frequency that
    did not. Crossed.
    """
    halves = []
    for document in corpus.documents:
        tokens = document.replace("\n\n", " ").split(" ")
        seen: dict[str, int] = {}
        for i, token in enumerate(tokens):
            word = token.strip(".,;:()'\"").lower()
            if (
                _content(word, corpus)
                and word in seen
                and 3 <= i - seen[word] <= 40
                and token.startswith(word)
            ):
                start = max(0, seen[word] - 8)
                halves.append(
                    _Half(" ".join(tokens[start:i]), f" {word}", corpus.rarity([word]), ())
                )
                break
            if _content(word, corpus):
                seen[word] = i
    return _twins(halves, draw, apart=True)


def _content(word: str, corpus: Corpus) -> bool:
    return (
        len(word) >= 4
        and bool(PLAIN.match(word))
        and word not in CLOSED
        and 10 <= corpus.counts.get(word, 0) <= 3000
    )


def definition(corpus: Corpus, draw: random.Random) -> list[Item]:
    """World knowledge: the word that ends a definition (a document's first sentence), against that
    of another. Crossed.

    The word before it is none that would make the two a term of :func:`term`, and the answer did
    not occur before.
    """
    halves = []
    for document in corpus.documents:
        words = SENTENCE.split(document.split("\n\n", 1)[0])[0].split(" ")
        word = words[-1].rstrip(".,;:")
        seen = {before.strip(".,;:()'\"").lower() for before in words[:-1]}
        if (
            5 <= len(words) <= 24
            and _content(word, corpus)
            and word not in seen
            and not _content(words[-2], corpus)
        ):
            halves.append(_Half(" ".join(words[:-1]), f" {word}", corpus.rarity([word]), ()))
    return _twins(halves, draw, apart=True)


def term(corpus: Corpus, draw: random.Random) -> list[Item]:
    """World knowledge: the second word of a two-word term, against a word of like frequency.
    Crossed.
    """
    halves = []
    for sentence in corpus.sentences():
        words = sentence.split(" ")
        places = [
            i
            for i in range(3, len(words))
            if _content(words[i].strip(".,;:"), corpus) and _content(words[i - 1], corpus)
        ]
        if places:
            i = draw.choice(places)
            word = words[i].strip(".,;:")
            halves.append(
                _Half(" ".join(words[max(0, i - 8) : i]), f" {word}", corpus.rarity([word]), ())
            )
    return _twins(halves, draw, apart=True)


def ordering(corpus: Corpus, draw: random.Random) -> list[Item]:
    """Logic: the first two sentences of a document in their order, against the other order.
    Permuted.
    """
    items = []
    for document in corpus.documents:
        sentences = [s for paragraph in document.split("\n\n") for s in SENTENCE.split(paragraph)][
            :2
        ]
        if len(sentences) == 2 and sum(len(s.split(" ")) for s in sentences) <= 60:
            first, second = sentences
            items.append(_shuffled("", f"{first} {second}", f"{second} {first}", draw, "sentences"))
    return items


def _twins(halves: Sequence[_Half], draw: random.Random, apart: bool = False) -> list[Item]:
    """Pair halves of one group that are next to each other in rarity; two items a pair.

    ``apart``: neither answer may occur in the context of the other.
    """
    items: list[Item] = []
    waiting: dict[tuple[object, ...], list[_Half]] = {}
    for half in sorted(halves, key=lambda h: (h.rarity, h.query)):
        pool = waiting.setdefault(half.group, [])
        mate = next((h for h in pool if _fit(h, half, apart)), None)
        if mate is None:
            pool.append(half)
            del pool[:-6]  # the others have become too different
            continue
        pool.remove(mate)
        both = ((mate, half), (half, mate))
        items += _as_twins(
            *(_shuffled(one.query, one.answer, other.answer, draw) for one, other in both)
        )
    return items


def _fit(a: _Half, b: _Half, apart: bool) -> bool:
    if a.answer == b.answer or a.query == b.query:
        return False
    if not apart:
        return True
    x, y = a.answer.strip(), b.answer.strip()
    return x not in b.query.lower() and y not in a.query.lower() and x not in y and y not in x


def _as_twins(one: Item, other: Item) -> tuple[Item, Item]:
    """Both items with one mark that tells them to be twins."""
    mark = hashlib.sha256((one.key + other.key).encode()).hexdigest()
    return replace(one, twin=mark), replace(other, twin=mark)


def _shuffled(query: str, right: str, wrong: str, draw: random.Random, kind: str = "") -> Item:
    """An item with the answer at either place."""
    label = draw.randrange(2)
    return Item(query, (right, wrong) if label == 0 else (wrong, right), label, kind)


MAKERS: dict[str, Callable[[Corpus, random.Random], list[Item]]] = {
    "continuation": continuation,
    "definition": definition,
    "term": term,
    "cloze": cloze,
    "word_order": word_order,
    "agreement": agreement,
    "ordering": ordering,
}
