"""The suite ``embedded`` on disk: ordinary harness tasks, made from held-out documents of the
embedded corpus.

Its folder can be given to the harness itself (``lm_eval --include_path FOLDER --tasks
embedded_word_order``).
"""

from __future__ import annotations

import hashlib
import json
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from lowrank.config.schema import Data
from lowrank.data import cache as files
from lowrank.data import sources
from lowrank.data.splits import survey
from lowrank.errors import DataError
from lowrank.evaluate.items import MAKERS, REVISION, Corpus, Item, word_counts
from lowrank.hashing import content_hash

SEED = 0
MOST = 500  # items of one task
FEWEST = 300
VERSION = 2  # of the task definitions
PREFIX = "embedded_"


@dataclass(frozen=True)
class Embedded:
    """The suite on disk. ``sha256`` covers every item of every task in order."""

    folder: Path
    sha256: str
    tasks: dict[str, dict[str, Any]]  # name -> {"items", "sha256"}


def build(validation_fraction: float | None = None, cache: Path | None = None) -> Embedded:
    """The suite over what ``validation_fraction`` of the corpus holds out (None: the default); made
    once, then read.

    Raises:
        DataError: the corpus cannot be read, or is too small for ``FEWEST`` items of each task.
    """
    fraction = Data().validation_fraction if validation_fraction is None else validation_fraction
    data = Data(source="embedded", validation_fraction=fraction)
    base = files.cache_folder(cache)
    source = sources.get(data.source)(data, base)
    identity = {
        "origin": source.origin(),
        "fraction": data.validation_fraction,
        "revision": REVISION,
        "version": VERSION,
    }
    target = base / "downstream" / f"embedded-{content_hash(identity)[:16]}"
    if (found := files.read_json(target / "suite.json")) is None:
        with files.locked(target):
            if (found := files.read_json(target / "suite.json")) is None:
                documents = [document for document, _ in source.read("train", None) if document]
                found = write_suite(
                    target, make_items(corpus_of(documents, data.validation_fraction))
                )
    files.require(target, found["files"])
    return Embedded(target, found["sha256"], found["tasks"])


def corpus_of(documents: list[str], fraction: float) -> Corpus:
    """Held-out documents (validation, then selection) and the word counts of the training
    documents.
    """
    bounds = survey(documents, fraction).bounds
    split: dict[str, list[str]] = {}
    for document in documents:
        split.setdefault(bounds.split(document), []).append(document)
    return Corpus(
        [*split.get("validation", ()), *split.get("selection", ())],
        word_counts(split.get("train", ())),
    )


def make_items(corpus: Corpus, fewest: int = FEWEST, most: int = MOST) -> dict[str, list[Item]]:
    """The items of every task; twins stay side by side, so that an even number of leading items is
    balanced.
    """
    made = {}
    for name, maker in MAKERS.items():
        draw = random.Random(f"{SEED}/{name}")
        pairs = _pairs(maker(corpus, draw))
        draw.shuffle(pairs)
        made[name] = [item for pair in pairs for item in pair][:most]
        if len(made[name]) < fewest:
            raise DataError(
                f"the held-out text gives {len(made[name])} items of the task '{name}' and {fewest} are needed; "
                "raise data.validation_fraction"
            )
    return made


def _pairs(items: list[Item]) -> list[tuple[Item, ...]]:
    """Neighbours two by two, as the makers of crossed items give them; an item that comes again is
    left out with its twin.
    """
    seen: set[str] = set()
    pairs: list[tuple[Item, ...]] = []
    for i in range(0, len(items) - 1, 2):
        pair = (items[i], items[i + 1])
        keys = {item.key for item in pair}
        if len(keys) == 2 and not keys & seen:
            pairs.append(pair)
            seen |= keys
    return pairs


def write_suite(target: Path, made: dict[str, list[Item]]) -> files.Json:
    """JSON lines and a definition for each task; the note is written last and marks the folder
    complete.
    """
    tasks = {}
    for name, items in made.items():
        rows = [
            {
                "query": i.query,
                "choices": list(i.choices),
                "label": i.label,
                "kind": i.kind,
                "twin": i.twin,
            }
            for i in items
        ]
        body = "".join(
            json.dumps(row, ensure_ascii=False, sort_keys=True) + "\n" for row in rows
        ).encode()
        files.write_bytes(target / f"{name}.jsonl", body)
        files.write_bytes(
            target / f"{PREFIX}{name}.yaml",
            yaml.safe_dump(_definition(name, target), sort_keys=False).encode(),
        )
        tasks[name] = {"items": len(items), "sha256": hashlib.sha256(body).hexdigest()}
    digest = hashlib.sha256(
        "".join(f"{name} {task['sha256']}\n" for name, task in sorted(tasks.items())).encode()
    ).hexdigest()
    kept = files.hashes(
        target / name for task in tasks for name in (f"{task}.jsonl", f"{PREFIX}{task}.yaml")
    )
    note = {
        "sha256": digest,
        "tasks": tasks,
        "revision": REVISION,
        "version": VERSION,
        "files": kept,
    }
    files.write_json(target / "suite.json", note)
    return note


def _definition(name: str, target: Path) -> dict[str, Any]:
    metric = {"aggregation": "mean", "higher_is_better": True}
    here = target.resolve()
    return {
        "task": f"{PREFIX}{name}",
        "dataset_path": "json",
        "dataset_kwargs": {
            "data_files": {"test": str(here / f"{name}.jsonl")},
            "cache_dir": str(here / "arrow"),
        },
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "query",
        "doc_to_choice": "choices",
        "doc_to_target": "label",
        "target_delimiter": "",
        "metric_list": [{"metric": "acc", **metric}, {"metric": "acc_norm", **metric}],
        "metadata": {"version": VERSION},
    }
