"""ReCoRD (Zhang et al. 2018) as in the harness: choose the entity that fits a query about a
passage, by likelihood.

The scores are SQuAD's exact match and token F1 (Rajpurkar et al. 2016, section 6.1), each the best
over the right answers.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence
from typing import Any

Document = dict[str, Any]
ARTICLES = re.compile(r"\b(?:a|an|the)\b")
NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


def distinct_entities(dataset: Any) -> Any:
    """Return the documents with distinct, sorted entities and answers."""
    return dataset.map(
        lambda doc: {name: sorted(set(doc[name])) for name in ("entities", "answers")}
    )


def text(doc: Document) -> str:
    """Return the passage, then its highlights as a list, which the choices continue."""
    passage, *highlights = str(doc["passage"]).strip().split("\n@highlight\n")
    return passage + "\n\n" + "".join(f"  - {highlight}.\n" for highlight in highlights)


def choices(doc: Document) -> list[str]:
    """Return the query with each entity in its gap."""
    return ["  - " + doc["query"].replace("@placeholder", entity) for entity in doc["entities"]]


def answers(doc: Document) -> list[int]:
    """Return the indices of all right entities."""
    return [index for index, entity in enumerate(doc["entities"]) if entity in set(doc["answers"])]


def scores(doc: Document, results: Sequence[tuple[float, bool]]) -> dict[str, float]:
    """Return F1 and exact match of the likeliest entity."""
    best = max(range(len(results)), key=lambda index: results[index][0])
    given = doc["entities"][best]
    return {
        name: max(score(given, answer) for answer in doc["answers"])
        for name, score in (("f1", token_f1), ("em", exact_match))
    }


def normalised(answer: str) -> list[str]:
    """Return the words in lower case, without punctuation and articles."""
    return ARTICLES.sub(" ", answer.lower().translate(NO_PUNCTUATION)).split()


def exact_match(given: str, answer: str) -> float:
    """Return 1 where both are equal after normalisation, else 0."""
    return float(normalised(given) == normalised(answer))


def token_f1(given: str, answer: str) -> float:
    """Return the harmonic mean of precision and recall of the words."""
    a, b = normalised(given), normalised(answer)
    if not a or not b:
        return float(a == b)
    shared = sum((Counter(a) & Counter(b)).values())
    return 2 * shared / (len(a) + len(b))
