"""Multiple-choice items from plain documents, made so that no scorer that ignores the context can
solve them.

Two constructions ensure that. *Permuted* items offer the same words in another order, so that the
choices have the same unigram probability and the same length. *Crossed* items come in twins: two
contexts share the same two choices, each the answer of one of them, so that a scorer that prefers a
choice without its context (by frequency, by length or even by a language model) is right on exactly
one of the two.

Items are a function of the documents and of a seed; nothing depends on a tokenizer.
"""

from __future__ import annotations

import hashlib
import math
import random
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

REVISION = 2  # rises when the same documents give other items

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
class Question:
    """One multiple-choice item: each of ``choices`` continues ``query`` without a separator.

    ``label`` is the index of the answer. An empty query is the start of a document. ``twin`` is the
    same text in two items that share their choices, which are not independent.
    """

    query: str
    choices: tuple[str, ...]
    label: int
    kind: str = ""
    twin: str = ""

    @property
    def key(self) -> str:
        """The item's identity: a hash of its query, its answer and its other choices."""
        answer = self.choices[self.label]
        body = "\x1f".join(
            [self.query, answer, *sorted(c for i, c in enumerate(self.choices) if i != self.label)]
        )
        return hashlib.sha256(body.encode()).hexdigest()


@dataclass(frozen=True)
class Corpus:
    """Held-out documents, and the number of occurrences of each word in the training text."""

    documents: Sequence[str]
    counts: Mapping[str, int]

    def rarity(self, words: Iterable[str]) -> float:
        """Return -ln of the unigram probability of ``words`` in nats, with add-one smoothing."""
        total = sum(self.counts.values()) + len(self.counts) + 1
        return sum(-math.log((self.counts.get(word.lower(), 0) + 1) / total) for word in words)

    def sentences(self) -> Iterator[str]:
        """Yield all sentences in order."""
        for document in self.documents:
            for paragraph in document.split("\n\n"):
                yield from SENTENCE.split(paragraph)


def word_counts(documents: Iterable[str]) -> Counter[str]:
    """Count the occurrences of each word in lower case."""
    counts: Counter[str] = Counter()
    for document in documents:
        counts.update(WORD.findall(document.lower()))
    return counts


def word_order(corpus: Corpus, draw: random.Random) -> list[Question]:
    """Return items of grammar: a sentence, or the same with a function word and its right neighbour
    swapped. Permuted.
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


def agreement(corpus: Corpus, draw: random.Random) -> list[Question]:
    """Return items of grammar: a sentence, or the same with one word in its other form (is/are,
    a/an, returns/return). Crossed.

    Each pair of forms is used equally often in both directions.
    """
    found: dict[tuple[str, str], list[Question]] = {}
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
    items: list[Question] = []
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


def continuation(corpus: Corpus, draw: random.Random) -> list[Question]:
    """Return items of commonsense: the rest of a sentence, or that of another one of the same
    length. Crossed.
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


def cloze(corpus: Corpus, draw: random.Random) -> list[Question]:
    """Return items of reading: a content word that occurred earlier in the passage, or one of
    similar frequency that did not. Crossed.
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


def definition(corpus: Corpus, draw: random.Random) -> list[Question]:
    """Return items of world knowledge: the last word of a definition (a document's first sentence),
    or that of another definition. Crossed.

    The last two words are not a term of :func:`term`, and the answer did not occur before.
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


def term(corpus: Corpus, draw: random.Random) -> list[Question]:
    """Return items of world knowledge: the second word of a two-word term, or one of similar
    frequency. Crossed.
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


def ordering(corpus: Corpus, draw: random.Random) -> list[Question]:
    """Return items of logic: the first two sentences of a document, in their order or in the other.
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


def _twins(halves: Sequence[_Half], draw: random.Random, apart: bool = False) -> list[Question]:
    """Pair halves of one group that are close in rarity; return two items per pair.

    With ``apart``, neither answer may occur in the context of the other.
    """
    items: list[Question] = []
    waiting: dict[tuple[object, ...], list[_Half]] = {}
    for half in sorted(halves, key=lambda h: (h.rarity, h.query)):
        pool = waiting.setdefault(half.group, [])
        partner = next((h for h in pool if _can_pair(h, half, apart)), None)
        if partner is None:
            pool.append(half)
            del pool[:-6]  # the rarity of the others differs too much by now
            continue
        pool.remove(partner)
        both = ((partner, half), (half, partner))
        items += _as_twins(
            *(_shuffled(one.query, one.answer, other.answer, draw) for one, other in both)
        )
    return items


def _can_pair(a: _Half, b: _Half, apart: bool) -> bool:
    if a.answer == b.answer or a.query == b.query:
        return False
    if not apart:
        return True
    x, y = a.answer.strip(), b.answer.strip()
    return x not in b.query.lower() and y not in a.query.lower() and x not in y and y not in x


def _as_twins(one: Question, other: Question) -> tuple[Question, Question]:
    """Return both items with the same ``twin``."""
    mark = hashlib.sha256((one.key + other.key).encode()).hexdigest()
    return replace(one, twin=mark), replace(other, twin=mark)


def _shuffled(query: str, right: str, wrong: str, draw: random.Random, kind: str = "") -> Question:
    """Return an item with the answer at either place, drawn at random."""
    label = draw.randrange(2)
    return Question(query, (right, wrong) if label == 0 else (wrong, right), label, kind)


MAKERS: dict[str, Callable[[Corpus, random.Random], list[Question]]] = {
    "continuation": continuation,
    "definition": definition,
    "term": term,
    "cloze": cloze,
    "word_order": word_order,
    "agreement": agreement,
    "ordering": ordering,
}
