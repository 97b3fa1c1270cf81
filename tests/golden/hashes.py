"""The archive of hashes: what stored rows are known by, for the shipped study files and for those
in ``studies/`` here.

Hashes of configurations, runs, protocols and units of work depend on no platform, so they are
compared exactly. Two things that do not belong to this code are replaced by fixed values: the
version of the harness, and of the corpora that are made from installed packages or come from the
hub, the hash of their evaluation sets. The texts of the studies here are beside them, so that their
data sets, tokenizers and evaluation sets are real, and compared, too.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any
from unittest import mock

import lowrank
from lowrank.config import RunConfig
from lowrank.config.resolve import content_hash
from lowrank.evaluate import harness
from lowrank.evaluate import plan as plan_evaluation
from lowrank.evaluate.embedded import Embedded
from lowrank.measure import plan as plan_measuring
from lowrank.measure.sets import EvaluationSets, Opened
from lowrank.store import Store, records
from lowrank.study import Plan, register, train_key

# The module in which planning finds `build`, which makes the suite of installed packages; the
# package hides it by a function.
EVALUATION = importlib.import_module("lowrank.evaluate.plan")

ARCHIVE = "hashes"
HERE = Path(__file__).resolve().parent
PATH = HERE / "hashes.json"
COMMAND = "python tests/golden/regenerate.py hashes --write"
FOLDERS = {
    "shipped": Path(lowrank.__file__).resolve().parent.parent / "studies",
    "golden": HERE / "studies",
}
MEASURED = (
    "full_rank",
    "cola",
)  # methods whose first runs get checkpoints, so that there is work to plan
LOCAL = ("text", "jsonl")  # sources whose text is beside the study file


class FixedSets(EvaluationSets):
    """Evaluation sets whose hash says which rows were asked for, in place of text
    that is not here.
    """

    def open(self, run_id: int, examples: int | None, split: str = "validation") -> Opened:
        """Return a set without content."""
        sha = content_hash(["golden", examples, split])
        record = records.EvaluationSet(
            name="metrics",
            dataset_fingerprint="",
            split=split,
            seed=0,
            examples=examples or 1,
            tokens=1,
            max_length=2,
            packing=True,
            tokenizer_hash="",
            sha256=sha,
        )
        return Opened(self.store.add(record), mock.sentinel.content)


def current() -> dict[str, Any]:
    """Return the hashes of every study file, by group and file name."""
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        stack.enter_context(mock.patch.dict(os.environ, {"LOWRANK_CACHE": folder}))
        stack.enter_context(mock.patch.object(harness, "version", return_value="fixed"))
        stack.enter_context(mock.patch.object(EVALUATION, "build", _suite))
        found: dict[str, Any] = {}
        for group, studies in FOLDERS.items():
            stack.enter_context(
                contextlib.chdir(studies)
            )  # the paths of texts are relative, since they enter the hashes
            for path in sorted(Path().glob("*.yaml")):
                found[f"{group}/{path.name}"] = _study(
                    Plan.of(path), Path(folder) / f"{group}-{path.stem}.db"
                )
    plain: dict[str, Any] = json.loads(json.dumps(found))  # tuples are lists, as in the archive
    return plain


def _suite(fraction: float | None) -> Embedded:
    """Return a suite whose hash says what was held out, in place of items from
    installed packages.
    """
    return Embedded(Path(), content_hash(["golden", fraction]), {})


def _study(plan: Plan, database: Path) -> dict[str, Any]:
    with Store.open(database, create=True) as store:
        row, runs = register(store, plan)
        _add_checkpoints(store, runs)
        local = runs[0][0].data.source in LOCAL
        sets = (EvaluationSets if local else FixedSets)(store, plan.study)
        units: dict[str, str] = {}
        for task in plan_measuring(store, plan.study, plan.root, sets=sets):
            evaluation = store.add(task.evaluation.record) if task.evaluation else None
            protocol = store.add(
                replace(task.protocol, evaluation_set_id=evaluation.id if evaluation else None)
            )
            units[f"{task.label}, protocol {protocol.parameters_hash[:8]}"] = task.unit_key
        for unit in plan_evaluation(store, plan.study):
            store.add(replace(unit.variant.protocol, id=None))
            units[unit.label] = unit.unit_key
        return {
            "config": row.config_hash,
            "runs": {
                config.label: [run.config_hash, train_key(plan, config)] for config, run in runs
            },
            "evaluation_sets": [_plain(found) for found in store.find(records.EvaluationSet)]
            if local
            else [],
            "protocols": _protocols(store),
            "units": units,
        }


def _add_checkpoints(store: Store, runs: list[tuple[RunConfig, records.Run]]) -> None:
    """Give rows of three checkpoints to the first runs of some methods; planning reads no file of
    theirs.
    """
    scale = runs[0][0].scale
    for config, run in runs:
        first = next(
            other for other, _ in runs if other.method == config.method and other.scale == scale
        )
        if config.method not in MEASURED or (config.scale, config.variant) != (
            scale,
            first.variant,
        ):
            continue
        steps = config.training.checkpoint_steps()
        for kind, step in zip(
            ("initial", "training", "final"), (0, steps[1], steps[-1]), strict=True
        ):
            store.add(
                records.Checkpoint(
                    run_id=run.id or 0,
                    step=step,
                    kind=kind,
                    tokens_seen=step,
                    path="",
                    sha256="",
                    bytes=0,
                    validation_loss=4.0,
                )
            )


def _protocols(store: Store) -> dict[str, Any]:
    """Return the protocols in the order of their planning, the hash beside what it covers."""
    found = {}
    for number, protocol in enumerate(store.find(records.Protocol)):
        body = _plain(protocol)
        if protocol.evaluation_set_id is not None:
            body["evaluation_set_id"] = store.get(
                records.EvaluationSet, protocol.evaluation_set_id
            ).sha256
        found[f"{number} {protocol.lens} {protocol.name}"] = body
    return found


def _plain(record: records.Record) -> dict[str, Any]:
    return {name: value for name, value in asdict(record).items() if name != "id"}


def archived() -> dict[str, Any] | None:
    """Read the archive; None where there is none."""
    return json.loads(PATH.read_text(encoding="utf-8")) if PATH.is_file() else None


def write(new: dict[str, Any]) -> None:
    """Replace the archive."""
    PATH.write_text(json.dumps(new, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def differences(old: Any, new: Any, where: str = "") -> Iterator[str]:
    """Name every value that differs by the keys that lead to it."""
    if isinstance(old, list) and isinstance(new, list):
        old, new = dict(enumerate(old)), dict(enumerate(new))
    if not (isinstance(old, dict) and isinstance(new, dict)):
        if old != new or type(old) is not type(new):
            yield f"{where}: archived {old!r}, now {new!r}"
        return
    for key in sorted({*old, *new}, key=str):
        place = f"{where}: {key}" if where else str(key)
        if key not in new:
            yield f"{place}: archived, now missing"
        elif key not in old:
            yield f"{place}: not in the archive; if it is meant to be there, run: {COMMAND}"
        else:
            yield from differences(old[key], new[key], place)
