"""Downstream evaluation as a stage of missing work: a task of a suite on a checkpoint."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from lowrank import provenance
from lowrank.config.schema import Downstream, Study
from lowrank.evaluate import harness
from lowrank.evaluate.bench import Bench
from lowrank.evaluate.plan import KIND, Unit, misspelt, plan, still_missing
from lowrank.evaluate.scores import Score
from lowrank.store import Store, records, results
from lowrank.work import Claimed, Item, Stage, Summary, Worker, do_missing
from lowrank.work.loading import default_device, launched, part_of
from lowrank.work.selection import ALL, Selection

Scored = tuple[harness.LoadedTask, list[Score], int]
"""A task, its scores, and how many requests were cut to the model's context."""


class EvaluateSummary(Summary):
    """What a call of :func:`evaluate` did."""

    def row(self) -> dict[str, Any]:
        """Return the counts as a row for people."""
        return {
            "tasks": self.units,
            "rows": self.rows,
            "failed": len(self.failed),
            "left_alone": len(self.left_alone),
        }


def evaluate(
    store: Store,
    study: Study,
    root: Path,
    settings: Downstream | None = None,
    selection: Selection = ALL,
    *,
    retry_failed: bool = False,
    progress: bool = True,
    device: torch.device | None = None,
) -> EvaluateSummary:
    """Compute and store the missing downstream scores of ``study`` under ``root``.

    ``settings`` None: the study's ``downstream`` section, or nothing at all. Tasks that failed
    before are left alone unless ``retry_failed``. Any number of processes may call this at once:
    they claim checkpoints, wait for one another and succeed those that die. Killed at any moment,
    it loses the task in flight.
    """
    settings = settings or study.downstream
    if settings is None:
        return EvaluateSummary()
    stage = Evaluating(store, study, root, settings, selection, device)
    worker = Worker(store, stage, retry_failed=retry_failed, shown=progress)
    done = do_missing(stage, worker)
    failed = Counter(failure.sentence for failure in worker.failures)
    left = Counter(item.error for item in worker.left_alone)
    again = "it failed before (--retry-failed tries it again)"
    return EvaluateSummary(
        units=done.units,
        rows=done.rows,
        failed=[*misspelt(settings), *(f"{error}{_times(n)}" for error, n in failed.items())],
        left_alone=[f"{error}{_times(n)}; {again}" for error, n in left.items()],
        notes=done.notes,
    )


class Evaluating(Stage[Unit, Scored]):
    """The downstream tasks of a study on its checkpoints; a group is a checkpoint, loaded once."""

    name = KIND
    unit = "task"
    claims = "evaluate checkpoint"

    def __init__(
        self,
        store: Store,
        study: Study,
        root: Path,
        settings: Downstream | None,
        selection: Selection = ALL,
        device: torch.device | None = None,
    ) -> None:
        self.store, self.study, self.root, self.selection = store, study, root, selection
        self.settings = settings or study.downstream
        self.row = store.first(records.Study, name=study.name)
        self._device = device
        self._bench: Bench | None = None
        self._made_by: int | None = None

    @property
    def study_id(self) -> int | None:
        """The study's row, where there is one."""
        return self.row.id if self.row else None

    @property
    def bench(self) -> Bench:
        """What computing needs; a stage that only plans has none."""
        if self._bench is None:
            assert self.settings is not None  # without them there is nothing to compute
            self._bench = Bench(self.root, self.settings, self._device or default_device())
        return self._bench

    def items(self) -> list[Item[Unit]]:
        """Return the missing tasks; of a launch's processes, each takes checkpoints of its own."""
        rank, world = launched()
        return [
            Item(
                work=unit,
                key=unit.unit_key,
                group=f"evaluate/{self.study.name}/{unit.run.config_hash}/{unit.checkpoint.step}",
                label=unit.label,
                error=unit.error,
            )
            for unit in plan(self.store, self.study, self.settings, self.selection)
            if part_of(unit.run.id, unit.checkpoint.step, world) == rank
        ]

    def still_missing(self, work: Unit) -> bool:
        """Say whether the task still lacks scores."""
        return still_missing(self.store, work)

    def compute(self, claimed: Claimed[Unit]) -> Scored:
        """Score the checkpoint on the task."""
        return self.bench.scores(claimed.work)

    def save(self, work: Unit, result: Scored, store: Store) -> int:
        """Store the scores and items that the task lacks."""
        if self._made_by is None:
            self._made_by = self.store.add(provenance.current()).id
        return save_scores(store, work, result, self._made_by)

    def leave(self) -> None:
        """Drop the checkpoint."""
        if self._bench is not None:
            self._bench.release()

    def sentence(self, item: Item[Unit], error: Exception) -> str:
        """Return the error with the task's name, but not the checkpoint's.

        So the same fault of a task on many checkpoints is one sentence with their number.
        """
        return f"{item.work.variant.suite.name}/{item.work.task}: {super().sentence(item, error)}"


def save_scores(store: Store, unit: Unit, scored: Scored, made_by: int | None) -> int:
    """Store the rows that ``unit`` lacks, inside a transaction; return the number of new rows."""
    task, found, truncated = scored
    protocol = store.add(replace(unit.variant.protocol, id=None))
    made: list[records.Record] = _score_rows(unit, task, found, truncated, protocol.id, made_by)
    there = _stored_items(store, unit, protocol.id)
    made += [
        records.DownstreamItem(
            checkpoint_id=unit.checkpoint.id or 0,
            protocol_id=protocol.id or 0,
            task=unit.task,
            metric=score.metric,
            item=item,
            value=value,
        )
        for score in found
        if score.metric in unit.item_metrics
        for item, value in score.items.items()
        if (score.metric, item) not in there
    ]
    return store.add_all(made)


def _score_rows(
    unit: Unit,
    task: harness.LoadedTask,
    scores: Sequence[Score],
    truncated: int,
    protocol_id: int | None,
    made_by: int | None,
) -> list[records.Record]:
    cut = f"the contexts of {truncated} requests were cut on the left to fit the model"
    return [
        records.DownstreamScore(
            checkpoint_id=unit.checkpoint.id or 0,
            protocol_id=protocol_id or 0,
            task=unit.task,
            category=unit.info.category,
            metric=score.metric,
            value=score.value,
            standard_error=score.standard_error,
            n=score.n,
            chance=score.chance,
            task_version=task.version,
            harness_version=harness.version(),
            note=cut if truncated else "",
            provenance_id=made_by,
        )
        for score in scores
        if score.metric in unit.metrics
    ]


def _stored_items(store: Store, unit: Unit, protocol_id: int | None) -> set[tuple[str, str]]:
    """(metric, item) that the store has of the unit."""
    return results.stored_items(store, unit.checkpoint.id, protocol_id, unit.task)


def _times(n: int) -> str:
    return f" ({n} checkpoints)" if n > 1 else ""
