"""Measuring as a stage of missing work: a lens on a checkpoint, alone or against a reference."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Unpack

import torch

from lowrank import provenance
from lowrank.config.schema import Study
from lowrank.measure.cache import CheckpointCache
from lowrank.measure.group import SINGLE, GroupError, ProcessGroup, launched_group
from lowrank.measure.plan import KIND, Task, plan, still_missing
from lowrank.measure.results import save_results
from lowrank.measure.sets import EvaluationSets
from lowrank.metrics.base import Result
from lowrank.store import Store, records
from lowrank.work import Claimed, Item, Stage, Worker, WorkerOptions, WorkSummary, do_missing
from lowrank.work.loading import assigned_rank, default_device, rank_and_world_size
from lowrank.work.selection import ALL, Selection

Split = Literal["auto", "checkpoints", "directions"]


@dataclass
class MeasureSummary(WorkSummary):
    """What a call of :func:`measure` did.

    ``loads`` counts loaded checkpoints. ``helper`` marks a process that computed together with the
    first one of its launch, which stored the rows and reports them.
    """

    loads: int = 0
    helper: bool = False

    def row(self) -> dict[str, Any]:
        """Return the counts as a row for people."""
        return {
            "units": self.units,
            "rows": self.rows,
            "failed": len(self.failed),
            "blocked": len(self.blocked),
            "left_alone": len(self.left_alone),
            "checkpoints_loaded": self.loads,
        }


def measure(
    store: Store,
    study: Study,
    root: Path,
    selection: Selection = ALL,
    *,
    split: Split = "auto",
    device: torch.device | None = None,
    **options: Unpack[WorkerOptions],
) -> MeasureSummary:
    """Compute and store the missing rows of ``study`` under ``root``.

    Units that failed before are left alone unless ``retry_failed``. Any number of processes on any
    number of machines may call this at once: they claim checkpoints, wait for one another, and take
    over from those that die. Killed at any moment, a process loses the unit in flight.

    The processes of one launch (``torchrun``, ``accelerate launch``: RANK and WORLD_SIZE are set)
    share the checkpoints evenly, or (``split`` directions) compute every unit together and share
    its directions, offsets and probes; the first one stores. ``auto`` does the latter where fewer
    checkpoints are missing than there are processes.

    Args:
        store: where the rows are read and written.
        study: the study file, validated.
        root: the study's folder, which checkpoints' paths are relative to.
        selection: which checkpoints and lenses to work on.
        split: what the processes of one launch share.
        device: where networks run; None is this process's accelerator, else the CPU.
        options: see :class:`WorkerOptions`.
    """
    with launched_group() if split != "checkpoints" else nullcontext(SINGLE) as group:
        cache = CheckpointCache(store, root, device or default_device(), group=group)
        stage = MeasureStage(store, study, root, selection, cache)
        together = group.world_size > 1 and stage.decide_split(split)
        if not together:
            cache.group = SINGLE
        elif group.rank > 0:
            return stage.follow()
        if group.rank > 0:
            options["progress"] = False
        with stage.leading() if together else nullcontext():
            done = do_missing(stage, Worker(store, stage, **options))
        return MeasureSummary(**vars(done), loads=sum(cache.loads.values()))


class MeasureStage(Stage[Task, list[Result]]):
    """The lenses of a study on its checkpoints; a group is a checkpoint, which is loaded once.

    Where the processes of a launch compute every unit together, the first one is the worker. It
    broadcasts what the others compute with it.
    """

    name = KIND
    unit = "unit"
    claims = "measure checkpoint"

    def __init__(
        self,
        store: Store,
        study: Study,
        root: Path,
        selection: Selection = ALL,
        cache: CheckpointCache | None = None,
    ) -> None:
        self.store, self.study, self.root, self.selection = store, study, root, selection
        self.row = store.first(records.Study, name=study.name)
        self.sets = EvaluationSets(store, study)
        self.order: dict[str, int] = {}
        self.together = False
        self.part = rank_and_world_size()
        self._cache = cache
        self._made_by: int | None = None

    @property
    def study_id(self) -> int | None:
        """The id of the study's row, where there is one."""
        return self.row.id if self.row else None

    @property
    def cache(self) -> CheckpointCache:
        """The loaded checkpoints; a stage that only plans makes no cache."""
        if self._cache is None:
            self._cache = CheckpointCache(self.store, self.root, default_device())
        return self._cache

    @property
    def group(self) -> ProcessGroup:
        """The processes that compute together."""
        return self.cache.group

    # -- the work

    def items(self) -> list[Item[Task]]:
        """Return the missing units, of a launch's processes those assigned to this one."""
        rank, world_size = self.part
        runs = self.store.find(records.Run, study_id=self.study_id) if self.row else []
        hashes = {run.id: run.config_hash for run in runs}
        tasks = plan(self.store, self.study, self.root, self.selection, self.sets)
        return [
            Item(
                work=task,
                key=task.unit_key,
                group=f"measure/{self.study.name}/{hashes[point.run_id]}/{point.step}",
                label=task.label,
                error=task.error,
                blocked=task.unit.blocked,
            )
            for task in tasks
            for point in [task.unit.checkpoint]
            if assigned_rank(point.run_id, point.step, world_size) == rank
        ]

    def still_missing(self, work: Task) -> bool:
        """Return whether the unit still lacks rows."""
        return still_missing(self.store, work)

    def compute(self, claimed: Claimed[Task]) -> list[Result]:
        """Compute the unit's results, together with the other processes of the group."""
        self._broadcast("compute", claimed.item.key)
        return self._compute(claimed.work)

    def _compute(self, task: Task) -> list[Result]:
        self.cache.begin(task)
        lens, settings = task.variant.lens, task.variant.settings
        return self.group.run(lambda: list(lens.compute(task.unit, self.cache, settings)))

    def save(self, work: Task, result: list[Result], store: Store) -> int:
        """Store the rows that the unit lacks."""
        if self._made_by is None:
            self._made_by = self.store.add(provenance.current()).id
        return save_results(store, work, result, self._made_by)

    def announce(self, items: Sequence[Item[Task]]) -> None:
        """Schedule the coming units in the cache of every process that computes them."""
        self._broadcast("announce", [item.key for item in items])
        self._announce([item.work for item in items])

    def _announce(self, tasks: Sequence[Task]) -> None:
        self.cache.schedule(tasks)
        self.order = {task.unit_key: index for index, task in enumerate(tasks)}

    def release(self, work: Task) -> None:
        """Drop the checkpoints that no later unit needs."""
        self._broadcast("release", work.unit_key)
        self.cache.end(self.order[work.unit_key])

    def sentence(self, item: Item[Task], error: Exception) -> str:
        """Return the error without the unit's name, which every list of failures shows."""
        return super().sentence(item, error).removeprefix(f"{item.work.unit.label}: ")

    # -- several processes that compute every unit together

    def decide_split(self, split: Split) -> bool:
        """Return whether the process group computes every unit together.

        The first process decides for all, since others may begin to store meanwhile.
        """
        if self.group.rank == 0 and split == "auto":
            tasks = plan(self.store, self.study, self.root, self.selection, self.sets)
            points = {task.unit.checkpoint.checkpoint_id for task in tasks if not task.unit.blocked}
            split = "directions" if len(points) < self.group.world_size else "checkpoints"
        self.together = bool(self.group.broadcast(split) == "directions")
        if self.together:
            self.part = (0, 1)
        return self.together

    @contextmanager
    def leading(self) -> Iterator[None]:
        """Stop the other processes of the group at the end of the block, however it ends."""
        try:
            yield
        finally:
            with suppress(RuntimeError):  # a process that has gone receives nothing
                self.group.broadcast(("stop", None))

    def follow(self) -> MeasureSummary:
        """Compute with the first process what it broadcasts, until it stops; store nothing."""
        tasks: dict[str, Task] = {}
        while (message := self.group.broadcast(None))[0] != "stop":
            what, body = message
            if what == "announce":
                known = plan(
                    self.store, self.study, self.root, self.selection, self.sets, also=body
                )
                tasks = {task.unit_key: task for task in known}
                self._announce([tasks[key] for key in body])
            elif what == "compute":
                with suppress(GroupError):  # the first process stores the failure
                    self._compute(tasks[body])
            else:
                self.cache.end(self.order[body])
        return MeasureSummary(loads=sum(self.cache.loads.values()), helper=True)

    def _broadcast(self, what: str, body: Any) -> None:
        if self.together:
            self.group.broadcast((what, body))
