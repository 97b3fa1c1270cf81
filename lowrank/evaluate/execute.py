"""Doing the missing evaluations: a checkpoint is loaded once, each task is one transaction, a failed task stops no other."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from lowrank import checkpoint, provenance
from lowrank.config.schema import Downstream, Study
from lowrank.errors import CheckpointError, LowrankError, StoreError
from lowrank.evaluate import harness
from lowrank.evaluate.definitions import define
from lowrank.evaluate.errors import EvaluationError
from lowrank.evaluate.plan import ALL, KIND, Selection, Unit, Variant, misspelt, plan
from lowrank.evaluate.scores import Score, scores
from lowrank.store import Store, records


@dataclass
class Outcome:
    """What a call of :func:`evaluate` did: tasks and rows stored, sentences of what failed or was left alone."""

    units: int = 0
    rows: int = 0
    failed: list[str] = field(default_factory=list)
    left_alone: list[str] = field(default_factory=list)


def evaluate(
    store: Store, study: Study, root: Path, settings: Downstream | None = None, selection: Selection = ALL, *,
    retry_failed: bool = False, progress: bool = True, device: torch.device | None = None,
) -> Outcome:
    """Compute and store the missing downstream scores of ``study`` under ``root``.

    ``settings`` None: the study's ``downstream`` section, or none at all. Tasks that failed before are left alone
    unless ``retry_failed``. With several processes (RANK and WORLD_SIZE are set) each takes its share of the
    checkpoints. Killed at any moment, it loses the task in flight.
    """
    outcome, settings = Outcome(), settings or study.downstream
    if settings is None:
        return outcome
    outcome.failed += misspelt(settings)
    rank, world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    units = [unit for unit in plan(store, study, settings, selection) if (unit.run.id or 0) * 1_000_003 % world == rank]
    todo = [unit for unit in units if retry_failed or not unit.error]
    left = Counter(unit.error for unit in units if unit.error and not retry_failed)
    outcome.left_alone += [f"{error}{_times(n)}; left alone since it failed before (--retry-failed tries it again)" for error, n in left.items()]
    if not todo:
        return outcome
    bench = Bench(store, root, settings, device or default_device())
    made_by = store.add(provenance.current()).id
    failures: Counter[str] = Counter()
    with tqdm(total=len(todo), desc="evaluate", unit="task", disable=not progress, mininterval=1.0) as bar:
        for _, group in groupby(todo, key=lambda unit: unit.checkpoint.id):
            for unit in group:
                bar.set_postfix_str(unit.label, refresh=False)
                _attempt(store, bench, unit, made_by, outcome, failures)
                bar.update()
            bench.release()
    outcome.failed += [f"{error}{_times(n)}" for error, n in failures.items()]
    return outcome


def default_device() -> torch.device:
    """The process's accelerator where there is one."""
    if torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
    return torch.device("cpu")


class Bench:
    """What the units share: one checkpoint at a time, one loaded task a suite and name, one harness model a tokenizer."""

    def __init__(self, store: Store, root: Path, settings: Downstream, device: torch.device) -> None:
        self.store, self.root, self.settings, self.device = store, root.resolve(), settings, device
        self._current: tuple[int, Any] | None = None
        self._models: dict[tuple[str, int], Any] = {}
        self._tasks: dict[tuple[str, str], harness.LoadedTask | LowrankError] = {}

    def scores(self, unit: Unit) -> tuple[harness.LoadedTask, list[Score], int]:
        """The task, its scores for the unit's checkpoint, and how many requests were cut to the model's context."""
        task = self.task(unit.variant, unit.task)
        lm = self.model(unit)
        with harness.evaluating(lm.model):
            results = harness.run(lm, task, self.settings.bootstrap)
        return task, scores(task, sorted(unit.metrics | unit.item_metrics), results), lm.truncated

    def task(self, variant: Variant, name: str) -> harness.LoadedTask:
        """A loaded task; one that could not be loaded is not tried again."""
        key = (variant.suite.name, name)
        if key not in self._tasks:
            try:
                data_dir = Path(self.settings.data_dir) if self.settings.data_dir else None
                definition = define(name, variant.suite.tasks[name], data_dir, variant.embedded)
                self._tasks[key] = harness.load(definition, self.settings.limit)
            except LowrankError as error:
                self._tasks[key] = error
        found = self._tasks[key]
        if isinstance(found, LowrankError):
            raise found
        return found

    def model(self, unit: Unit) -> Any:
        """The harness's model with the weights of the unit's checkpoint."""
        if self._current is None or self._current[0] != unit.checkpoint.id:
            self._current = (unit.checkpoint.id or 0, self._load(unit))
        found = self._current[1]
        if isinstance(found, LowrankError):
            raise found
        return found

    def release(self) -> None:
        """The current checkpoint is done."""
        self._current = None

    def _load(self, unit: Unit) -> Any:
        """A checkpoint in float32, verified against manifest and database; what is wrong with it is kept."""
        try:
            folder = (self.root / unit.checkpoint.path).resolve()
            if not folder.is_relative_to(self.root):
                raise CheckpointError(f"the path '{unit.checkpoint.path}' leads outside the study's folder {self.root}")
            loaded = checkpoint.load(folder, unit.checkpoint.sha256, dtype=torch.float32)
            for name, tensor in loaded.model.state_dict().items():
                if not torch.isfinite(tensor).all():
                    raise EvaluationError(f"{folder}: the weight '{name}' is not finite; the run diverged")
            return self._in_harness(unit, folder, loaded)
        except LowrankError as error:
            return error

    def _in_harness(self, unit: Unit, folder: Path, loaded: checkpoint.Loaded) -> Any:
        model = loaded.model.to(self.device)
        entry = loaded.manifest.files.get("tokenizer.json")
        key = (entry["sha256"] if entry else unit.run.tokenizer_hash, int(model.config.max_position_embeddings))
        if key in self._models:
            check_vocabulary(folder, self._models[key].tokenizer, model)
            self._models[key].use(model)
        else:
            tokenizer = tokenizer_of(folder)
            check_vocabulary(folder, tokenizer, model)
            self._models[key] = harness.language_model(model, tokenizer, self.settings.batch_size, key[1])
        return self._models[key]


def tokenizer_of(folder: Path) -> Any:
    """The tokenizer in a checkpoint's folder."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # transformers raises OSError, ValueError, KeyError and others alike
        raise EvaluationError(f"{folder}: holds no tokenizer that can be loaded; save one there (tokenizer.json)") from error
    if tokenizer.eos_token_id is None:
        raise EvaluationError(f"{folder}: its tokenizer has no end-of-sequence token, which stands for the start of a text")
    return tokenizer


def check_vocabulary(folder: Path, tokenizer: Any, model: Any) -> None:
    """Every token must have a row in the model's embedding."""
    highest, rows = max(tokenizer.get_vocab().values()), model.get_input_embeddings().weight.shape[0]
    if highest >= rows:
        raise EvaluationError(
            f"{folder}: its tokenizer does not fit the model (token {highest}, but {rows} rows in the embedding); "
            "save the tokenizer that the model was trained with"
        )


def _attempt(store: Store, bench: Bench, unit: Unit, made_by: int | None, outcome: Outcome, failures: Counter[str]) -> None:
    """Compute and store one task of one checkpoint; a failure is a row of its own."""
    try:
        task, found, truncated = bench.scores(unit)
        outcome.rows += store_scores(store, unit, task, found, truncated, made_by)
        outcome.units += 1
    except StoreError:
        raise
    except LowrankError as error:
        _fail(store, unit, f"{unit.variant.suite.name}/{unit.task}: {error}", failures)
    except Exception as error:
        _fail(store, unit, f"{unit.variant.suite.name}/{unit.task}: {type(error).__name__}: {error}", failures)


def _fail(store: Store, unit: Unit, error: str, failures: Counter[str]) -> None:
    failures[error] += 1
    known = store.first(records.WorkUnit, unit_key=unit.unit_key)
    attempts = (known.attempts if known else 0) + 1
    store.put(records.WorkUnit(unit_key=unit.unit_key, kind=KIND, status="failed", attempts=attempts, error=error))


def store_scores(store: Store, unit: Unit, task: harness.LoadedTask, found: Iterable[Score], truncated: int, made_by: int | None) -> int:
    """Store what the unit lacks in one transaction; the number of new rows."""
    note = f"the contexts of {truncated} requests were cut on the left to fit the model" if truncated else ""
    with store.transaction():
        protocol = store.add(replace(unit.variant.protocol, id=None))
        common: dict[str, Any] = {"checkpoint_id": unit.checkpoint.id, "protocol_id": protocol.id, "task": unit.task}
        made: list[records.Record] = [
            records.DownstreamScore(
                **common, category=unit.info.category, metric=score.metric, value=score.value, standard_error=score.standard_error,
                n=score.n, chance=score.chance, task_version=task.version, harness_version=harness.version(), note=note,
                provenance_id=made_by,
            ) for score in found if score.metric in unit.metrics
        ]
        there = _stored_items(store, unit, protocol.id)
        made += [
            records.DownstreamItem(**common, metric=score.metric, item=item, value=value)
            for score in found if score.metric in unit.item_metrics
            for item, value in score.items.items() if (score.metric, item) not in there
        ]
        return store.add_all(made)


def _stored_items(store: Store, unit: Unit, protocol_id: int | None) -> set[tuple[str, str]]:
    """(metric, item) that the store has of the unit."""
    _, rows = store.select(
        "SELECT metric, item FROM downstream_item WHERE checkpoint_id = :checkpoint AND protocol_id = :protocol AND task = :task",
        {"checkpoint": unit.checkpoint.id, "protocol": protocol_id, "task": unit.task},
    )
    return {(metric, item) for metric, item in rows}


def _times(n: int) -> str:
    return f" ({n} checkpoints)" if n > 1 else ""
