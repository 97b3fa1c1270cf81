"""The text that the archives are trained on: a file of this folder, and the rule that it was made
by.
"""

from __future__ import annotations

import json
import random
from pathlib import Path

PATH = Path(__file__).resolve().with_name("corpus.jsonl")
DOCUMENTS = 160
WORDS = (
    "the",
    "of",
    "and",
    "rank",
    "matrix",
    "gradient",
    "projects",
    "onto",
    "its",
    "largest",
    "singular",
    "vectors",
    "while",
    "weights",
    "stay",
    "dense",
    "in",
    "memory",
    "moments",
    "shrink",
    "to",
    "a",
    "thin",
    "basis",
)


def text() -> str:
    """Write documents of 20 to 60 words, the first words of the list the most frequent, as JSON
    lines.
    """
    rng = random.Random(20260)
    lines = []
    for number in range(DOCUMENTS):
        words = [
            WORDS[int(len(WORDS) * rng.random() ** 2)] for _ in range(20 + int(41 * rng.random()))
        ]
        lines.append(json.dumps({"text": f"{' '.join(words)}. {number}"}))
    return "\n".join(lines) + "\n"
