"""Downstream evaluation as a stage of missing work: a task of a suite on a checkpoint."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any, Unpack

import torch

from lowrank import provenance
from lowrank.config.schema import Downstream, Study
from lowrank.evaluate import harness
from lowrank.evaluate.cache import TaskCache
from lowrank.evaluate.plan import KIND, MissingScores, plan, still_missing, unknown_task_sentences
from lowrank.evaluate.scores import Score
from lowrank.store import Store, records, results
from lowrank.work import Claimed, Item, Stage, Worker, WorkerOptions, WorkSummary, do_missing
from lowrank.work.loading import assigned_rank, default_device, rank_and_world_size
from lowrank.work.selection import ALL, Selection

Scored = tuple[harness.LoadedTask, list[Score], int]
"""A task, its scores, and the number of requests that were cut to the model's context."""


class EvaluateSummary(WorkSummary):
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
    device: torch.device | None = None,
    **options: Unpack[WorkerOptions],
) -> EvaluateSummary:
    """Compute and store the missing downstream scores of ``study`` under ``root``.

    Tasks that failed before are left alone unless ``retry_failed``. Any number of processes may
    call this at once: they claim checkpoints, wait for one another and take over from those that
    die. Killed at any moment, a process loses the task in flight.

    Args:
        store: where the rows are read and written.
        study: the study file, validated.
        root: the study's folder, which checkpoints' paths are relative to.
        settings: what to evaluate; None is the study's ``downstream`` section, without which there
            is nothing to do.
        selection: which checkpoints to work on.
        device: where models run; None is this process's accelerator, else the CPU.
        options: see :class:`WorkerOptions`.
    """
    settings = settings or study.downstream
    if settings is None:
        return EvaluateSummary()
    stage = EvaluateStage(store, study, root, settings, selection, device)
    worker = Worker(store, stage, **options)
    done = do_missing(stage, worker)
    failed = Counter(failure.sentence for failure in worker.failures)
    left = Counter(item.error for item in worker.left_alone)
    again = "it failed before (--retry-failed tries it again)"
    return EvaluateSummary(
        units=done.units,
        rows=done.rows,
        failed=[
            *unknown_task_sentences(settings),
            *(f"{error}{_times(n)}" for error, n in failed.items()),
        ],
        left_alone=[f"{error}{_times(n)}; {again}" for error, n in left.items()],
        notes=done.notes,
    )


class EvaluateStage(Stage[MissingScores, Scored]):
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
        self._cache: TaskCache | None = None
        self._made_by: int | None = None

    @property
    def study_id(self) -> int | None:
        """The id of the study's row, where there is one."""
        return self.row.id if self.row else None

    @property
    def cache(self) -> TaskCache:
        """The loaded checkpoint and tasks; a stage that only plans makes no cache."""
        if self._cache is None:
            assert self.settings is not None  # without them there is nothing to compute
            self._cache = TaskCache(self.root, self.settings, self._device or default_device())
        return self._cache

    def items(self) -> list[Item[MissingScores]]:
        """Return the missing tasks, of a launch's processes those assigned to this one."""
        rank, world_size = rank_and_world_size()
        return [
            Item(
                work=work,
                key=work.unit_key,
                group=f"evaluate/{self.study.name}/{work.run.config_hash}/{work.checkpoint.step}",
                label=work.label,
                error=work.error,
            )
            for work in plan(self.store, self.study, self.settings, self.selection)
            if assigned_rank(work.run.id, work.checkpoint.step, world_size) == rank
        ]

    def still_missing(self, work: MissingScores) -> bool:
        """Return whether the task still lacks scores."""
        return still_missing(self.store, work)

    def compute(self, claimed: Claimed[MissingScores]) -> Scored:
        """Score the checkpoint on the task."""
        return self.cache.scores(claimed.work)

    def save(self, work: MissingScores, result: Scored, store: Store) -> int:
        """Store the scores and items that the task lacks."""
        if self._made_by is None:
            self._made_by = self.store.add(provenance.current()).id
        return save_scores(store, work, result, self._made_by)

    def leave(self) -> None:
        """Drop the checkpoint."""
        if self._cache is not None:
            self._cache.release()

    def sentence(self, item: Item[MissingScores], error: Exception) -> str:
        """Return the error with the task's name, but not the checkpoint's.

        The same error of a task on many checkpoints is then one sentence with their number.
        """
        return f"{item.work.variant.suite.name}/{item.work.task}: {super().sentence(item, error)}"


def save_scores(store: Store, work: MissingScores, scored: Scored, made_by: int | None) -> int:
    """Store the missing rows, inside a transaction; return the number of new rows.

    ``made_by`` is the id of the provenance.
    """
    protocol = store.add(replace(work.variant.protocol, id=None))
    made: list[records.Record] = _score_rows(work, scored, protocol.id, made_by)
    there = _stored_items(store, work, protocol.id)
    made += [
        records.DownstreamItem(
            checkpoint_id=work.checkpoint.id or 0,
            protocol_id=protocol.id or 0,
            task=work.task,
            metric=score.metric,
            item=item,
            value=value,
        )
        for score in scored[1]
        if score.metric in work.item_metrics
        for item, value in score.items.items()
        if (score.metric, item) not in there
    ]
    return store.add_all(made)


def _score_rows(
    work: MissingScores, scored: Scored, protocol_id: int | None, made_by: int | None
) -> list[records.Record]:
    task, scores, truncated = scored
    cut = f"the contexts of {truncated} requests were cut on the left to fit the model"
    return [
        records.DownstreamScore(
            checkpoint_id=work.checkpoint.id or 0,
            protocol_id=protocol_id or 0,
            task=work.task,
            category=work.info.category,
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
        if score.metric in work.metrics
    ]


def _stored_items(
    store: Store, unit: MissingScores, protocol_id: int | None
) -> set[tuple[str, str]]:
    """(metric, item) that the store has of the unit."""
    return results.stored_items(store, unit.checkpoint.id, protocol_id, unit.task)


def _times(n: int) -> str:
    return f" ({n} checkpoints)" if n > 1 else ""
