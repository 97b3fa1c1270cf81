"""LogiQA and LogiQA 2.0 with the prompts of the harness, read from the data sets' files or from
tables with named columns.
"""

from __future__ import annotations

import json
from typing import Any

Document = dict[str, Any]
LETTERS = "abcd"


def parsed(dataset: Any) -> Any:
    """Return the items with context, question, options and answer, whatever the file's format."""
    return dataset.map(_parse, remove_columns=dataset.column_names)


def stripped(dataset: Any) -> Any:
    """Return the items of LogiQA 2.0, read from lines of JSON or from tables.

    White space around texts is stripped and columns that the harness does not read are dropped.
    Lines are parsed here, because a reader of tables fails on their field `type`, which has other
    keys in every line.
    """

    def one(doc: Document) -> Document:
        row = doc if "question" in doc else json.loads(doc["text"])
        context, question = row["text"].strip(), row["question"].strip()
        options = [option.strip() for option in row["options"]]
        return {
            "context": context,
            "question": question,
            "options": options,
            "answer": int(row["answer"]),
        }

    return dataset.map(one, remove_columns=dataset.column_names)


def text(doc: Document) -> str:
    """Return the prompt of LogiQA."""
    return (
        f"Passage: {doc['context']}\nQuestion: {doc['question']}\nChoices:\n{_options(doc)}Answer:"
    )


def text2(doc: Document) -> str:
    """Return the prompt of LogiQA 2.0, which has no line "Choices:"."""
    return f"Passage: {doc['context']}\nQuestion: {doc['question']}\n{_options(doc)}Answer:"


def _options(doc: Document) -> str:
    return "".join(
        f"{letter}. {option}\n" for letter, option in zip("ABCD", doc["options"], strict=False)
    )


def _parse(doc: Document) -> Document:
    """Parse a paragraph of the data set's file, or a row of one of its conversions."""
    if "text" in doc and "options" not in doc:
        letter, context, question, *options = doc["text"].strip().split("\n")
        context, question, shown = (
            _spaced(context),
            _spaced(question),
            [_spaced(option[2:]) for option in options],
        )
        return {
            "context": context,
            "question": question,
            "options": shown,
            "answer": LETTERS.index(letter.strip()),
        }
    answer = LETTERS.index(doc["label"].strip()) if "label" in doc else int(doc["correct_option"])
    question = doc["question"] if "question" in doc else doc["query"]
    return {
        "context": doc["context"],
        "question": question,
        "options": list(doc["options"]),
        "answer": answer,
    }


def _spaced(line: str) -> str:
    """Insert the space after a full stop, which the files lack, as the harness's script does."""
    return line.replace(".", ". ").strip()
