"""Measuring as a stage of missing work: a lens on a checkpoint, alone or against a reference."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from lowrank import provenance
from lowrank.config.schema import Study
from lowrank.measure.bench import Workbench
from lowrank.measure.plan import KIND, Task, plan, still_missing
from lowrank.measure.results import save_results
from lowrank.measure.sets import EvaluationSets
from lowrank.measure.team import SOLO, Team, TeamError, joined
from lowrank.metrics.base import Result
from lowrank.store import Store, records
from lowrank.work import Claimed, Item, Stage, Summary, Worker, do_missing
from lowrank.work.loading import default_device, launched, part_of
from lowrank.work.selection import ALL, Selection

Split = Literal["auto", "checkpoints", "directions"]


@dataclass
class MeasureSummary(Summary):
    """What a call of :func:`measure` did.

    ``loads`` counts loaded checkpoints; ``helper`` marks a process that computed together with
    another one, which stored and reports.
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
    retry_failed: bool = False,
    progress: bool = True,
    device: torch.device | None = None,
    split: Split = "auto",
) -> MeasureSummary:
    """Compute and store the missing rows of ``study`` under ``root``.

    Units that failed before are left alone unless ``retry_failed``. Any number of processes on any
    number of machines may call this at once: they claim checkpoints, wait for one another, and
    succeed those that die. Killed at any moment, it loses the unit in flight.

    The processes of one launch (``torchrun``, ``accelerate launch``: RANK and WORLD_SIZE are set)
    share the checkpoints evenly, or (``split`` directions) compute every unit together and share
    its directions, offsets and probes; the first one stores. ``auto`` does the latter where fewer
    checkpoints are missing than there are processes.
    """
    with joined() if split != "checkpoints" else nullcontext(SOLO) as team:
        bench = Workbench(store, root, device or default_device(), team=team)
        stage = Measuring(store, study, root, selection, bench)
        together = team.world > 1 and stage.splits(split)
        if not together:
            bench.team = SOLO
        elif team.rank > 0:
            return stage.help()
        with stage.leading() if together else nullcontext():
            worker = Worker(
                store, stage, retry_failed=retry_failed, shown=progress and team.rank == 0
            )
            done = do_missing(stage, worker)
        return MeasureSummary(**vars(done), loads=sum(bench.loads.values()))


class Measuring(Stage[Task, list[Result]]):
    """The lenses of a study on its checkpoints; a group is a checkpoint, which is loaded once.

    Where the processes of a launch compute every unit together, the first one is the worker, and
    tells the others what to compute with it.
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
        bench: Workbench | None = None,
    ) -> None:
        self.store, self.study, self.root, self.selection = store, study, root, selection
        self.row = store.first(records.Study, name=study.name)
        self.sets = EvaluationSets(store, study)
        self.order: dict[str, int] = {}
        self.together = False
        self.part = launched()
        self._bench = bench
        self._made_by: int | None = None

    @property
    def study_id(self) -> int | None:
        """The study's row, where there is one."""
        return self.row.id if self.row else None

    @property
    def bench(self) -> Workbench:
        """What computing needs; a stage that only plans has none."""
        if self._bench is None:
            self._bench = Workbench(self.store, self.root, default_device())
        return self._bench

    @property
    def team(self) -> Team:
        """The processes that compute together."""
        return self.bench.team

    # -- the work

    def items(self) -> list[Item[Task]]:
        """Return the missing units; of a launch's processes, each takes checkpoints of its own."""
        number, of = self.part
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
            if part_of(point.run_id, point.step, of) == number
        ]

    def still_missing(self, work: Task) -> bool:
        """Say whether the unit still lacks rows."""
        return still_missing(self.store, work)

    def compute(self, claimed: Claimed[Task]) -> list[Result]:
        """Compute the unit's results, with the other processes of a team."""
        self._tell("compute", claimed.item.key)
        return self._compute(claimed.work)

    def _compute(self, task: Task) -> list[Result]:
        self.bench.begin(task)
        lens, settings = task.variant.lens, task.variant.settings
        return self.team.together(lambda: list(lens.compute(task.unit, self.bench, settings)))

    def save(self, work: Task, result: list[Result], store: Store) -> int:
        """Store the rows that the unit lacks."""
        if self._made_by is None:
            self._made_by = self.store.add(provenance.current()).id
        return save_results(store, work, result, self._made_by)

    def announce(self, items: Sequence[Item[Task]]) -> None:
        """Tell the cache of checkpoints, and the team, which units come next."""
        self._tell("announce", [item.key for item in items])
        self._announce([item.work for item in items])

    def _announce(self, tasks: Sequence[Task]) -> None:
        self.bench.schedule(tasks)
        self.order = {task.unit_key: index for index, task in enumerate(tasks)}

    def release(self, work: Task) -> None:
        """Drop the checkpoints that no later unit needs."""
        self._tell("release", work.unit_key)
        self.bench.end(self.order[work.unit_key])

    def sentence(self, item: Item[Task], error: Exception) -> str:
        """Return the error without the unit's name, which every list of failures shows."""
        return super().sentence(item, error).removeprefix(f"{item.work.unit.label}: ")

    # -- several processes that compute every unit together

    def splits(self, split: Split) -> bool:
        """Say whether the team computes every unit together.

        One process decides, for others may begin to store meanwhile.
        """
        if self.team.rank == 0 and split == "auto":
            tasks = plan(self.store, self.study, self.root, self.selection, self.sets)
            points = {task.unit.checkpoint.checkpoint_id for task in tasks if not task.unit.blocked}
            split = "directions" if len(points) < self.team.world else "checkpoints"
        self.together = bool(self.team.tell(split) == "directions")
        if self.together:
            self.part = (0, 1)
        return self.together

    def leading(self) -> _Leading:
        """Lead the team in the block; at its end the other processes stop."""
        return _Leading(self.team)

    def help(self) -> MeasureSummary:
        """Compute with the first process what it says, and store nothing."""
        tasks: dict[str, Task] = {}
        while (said := self.team.tell(None))[0] != "stop":
            what, body = said
            if what == "announce":
                known = plan(
                    self.store, self.study, self.root, self.selection, self.sets, also=body
                )
                tasks = {task.unit_key: task for task in known}
                self._announce([tasks[key] for key in body])
            elif what == "compute":
                with suppress(TeamError):  # the first process stores the failure
                    self._compute(tasks[body])
            else:
                self.bench.end(self.order[body])
        return MeasureSummary(loads=sum(self.bench.loads.values()), helper=True)

    def _tell(self, what: str, body: Any) -> None:
        if self.together:
            self.team.tell((what, body))


class _Leading:
    """The first process of a team at work."""

    def __init__(self, team: Team) -> None:
        self.team = team

    def __enter__(self) -> None:
        """Begin."""

    def __exit__(self, *_: object) -> None:
        with suppress(RuntimeError):  # a process that has gone hears nothing
            self.team.tell(("stop", None))
