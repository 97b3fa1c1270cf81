"""One process's part of measuring a study that any number of processes share."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any, Literal

import torch
from tqdm import tqdm

from lowrank import provenance
from lowrank.config.schema import Study
from lowrank.errors import ClaimLostError
from lowrank.measure.bench import Workbench
from lowrank.measure.execute import Outcome, attempt, compute, share_of
from lowrank.measure.plan import ALL, Selection, Task, plan, still_missing
from lowrank.measure.sets import EvaluationSets
from lowrank.measure.team import SOLO, TeamError, joined, launched
from lowrank.progress import progress_bar, waiting
from lowrank.store import Store, records
from lowrank.store.claims import Claim, Claims, share

Group = list[Task]
Split = Literal["auto", "checkpoints", "directions"]


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
) -> Outcome:
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
        quiet = not progress or team.rank > 0
        with progress_bar(
            desc="measure", unit="unit", disable=quiet, mininterval=1.0, delay=1.0
        ) as bar:
            bench = Workbench(store, root, device or default_device(), team=team)
            shift = Shift(store, study, root, selection, bench, bar, retry_failed)
            told = (lambda units: None) if quiet else waiting("measure")
            if team.world > 1 and shift.splits(split):
                return shift.run_together(told)
            bench.team = SOLO
            return shift.run(told)


def default_device() -> torch.device:
    """The process's accelerator where there is one."""
    if torch.cuda.is_available():
        return torch.device(
            "cuda", int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count()
        )
    return torch.device("cpu")


class Shift:
    """Claims checkpoints, all missing tasks of one at a time, so that one process loads it once.

    In a team that computes together the first process does so, and says to the others what to
    compute with it.
    """

    def __init__(
        self,
        store: Store,
        study: Study,
        root: Path,
        selection: Selection,
        bench: Workbench,
        bar: tqdm[Any],
        retry_failed: bool,
    ) -> None:
        self.store, self.study, self.root, self.selection, self.bench, self.bar = (
            store,
            study,
            root,
            selection,
            bench,
            bar,
        )
        self.row = store.first(records.Study, name=study.name)
        self.sets = EvaluationSets(store, study)
        self.outcome = Outcome()
        self.retried: set[str] | None = (
            None if retry_failed else set()
        )  # None: what has failed when the first plan is made
        self.tried: set[str] = set()
        self.hashes: dict[int | None, str] = {}
        self.order: dict[str, int] = {}
        self.made_by: int | None = None
        self.team = bench.team
        self.together = False
        self.part = launched()  # (number, of how many) of the checkpoints that this process takes

    def splits(self, split: Split) -> bool:
        """Whether the team computes every unit together; one process decides, for others may begin
        to store meanwhile.
        """
        if self.team.rank == 0 and split == "auto":
            tasks = plan(self.store, self.study, self.root, self.selection, self.sets)
            checkpoints = {
                task.unit.checkpoint.checkpoint_id for task in tasks if not task.unit.blocked
            }
            split = "directions" if len(checkpoints) < self.team.world else "checkpoints"
        return bool(self.team.tell(split) == "directions")

    def run_together(self, waiting: Callable[[int], None]) -> Outcome:
        """:meth:`run` in the first process, its helpers in the others."""
        self.together, self.part = True, (0, 1)
        if self.team.rank > 0:
            self._help()
            self.outcome.loads = sum(self.bench.loads.values())
            return self.outcome
        try:
            return self.run(waiting)
        finally:
            with suppress(RuntimeError):  # a helper that has gone hears nothing
                self.team.tell(("stop", None))

    def _help(self) -> None:
        """Compute with the first process what it says, and store nothing."""
        self.outcome.helper = True
        tasks: dict[str, Task] = {}
        while (said := self.team.tell(None))[0] != "stop":
            what, body = said
            if what == "schedule":
                known = plan(
                    self.store, self.study, self.root, self.selection, self.sets, also=body
                )
                tasks = {task.unit_key: task for task in known}
                self._schedule([tasks[key] for key in body])
            elif what == "compute":
                self.bench.begin(tasks[body])
                with suppress(TeamError):  # the first process puts it down
                    compute(tasks[body], self.bench)
            else:
                self.bench.end(self.order[body])

    def _say(self, what: str, body: Any) -> None:
        if self.together:
            self.team.tell((what, body))

    def run(self, waiting: Callable[[int], None]) -> Outcome:
        """Measure until nothing is missing that can be measured."""
        claims = Claims(
            self.store, "measure checkpoint", study_id=self.row.id if self.row else None
        )
        share(claims, self.missing, lambda group: self.key(group[0]), self.work, waiting=waiting)
        self.outcome.loads = sum(self.bench.loads.values())
        return self.outcome

    def missing(self) -> list[Group]:
        """What there is to do now, by checkpoint; what is blocked or failed before is put down in
        the outcome.
        """
        number, of = self.part
        tasks = [
            t
            for t in plan(self.store, self.study, self.root, self.selection, self.sets)
            if share_of(t, of) == number
        ]
        if self.retried is None:
            self.retried = {task.unit_key for task in tasks if task.error}
        todo: Group = []
        self.outcome.blocked, self.outcome.left_alone = [], []
        for task in tasks:
            if task.unit.blocked:
                self.outcome.blocked.append(f"{task.label}: {task.unit.blocked}")
            elif task.unit_key in self.tried:
                continue
            elif task.error and task.unit_key not in self.retried:
                self.outcome.left_alone.append(
                    f"{task.label} failed earlier: {task.error} (--retry-failed tries it again)"
                )
            else:
                todo.append(task)
        return self._groups(todo)

    def _groups(self, todo: Group) -> list[Group]:
        runs = self.store.find(records.Run, study_id=self.row.id) if self.row else []
        self.hashes = {run.id: run.config_hash for run in runs}
        self._say("schedule", [task.unit_key for task in todo])
        self._schedule(todo)
        self.bar.total = self.bar.n + len(todo)
        groups: dict[str, Group] = {}
        for task in todo:
            groups.setdefault(self.key(task), []).append(task)
        return list(groups.values())

    def _schedule(self, todo: Group) -> None:
        self.bench.schedule(todo)
        self.order = {task.unit_key: index for index, task in enumerate(todo)}

    def key(self, task: Task) -> str:
        """The key under which the checkpoint of a task is claimed; it means the same in every copy
        of the store.
        """
        point = task.unit.checkpoint
        return f"measure/{self.study.name}/{self.hashes[point.run_id]}/{point.step}"

    def work(self, group: Group, claim: Claim) -> bool:
        """Measure one checkpoint; False where others have done all of it meanwhile, or have taken
        it over.
        """
        did = False
        for task in group:
            if still_missing(self.store, task):
                did = True
                self.bar.set_postfix_str(
                    f"{task.variant.lens.name()} {task.unit.checkpoint.label}", refresh=False
                )
                self._say("compute", task.unit_key)
                self.bench.begin(task)
                try:
                    attempt(self.store, self.bench, task, self._provenance(), self.outcome, claim)
                except ClaimLostError:
                    return False
            self.tried.add(task.unit_key)
            self._say("end", task.unit_key)
            self.bench.end(self.order[task.unit_key])
            self.bar.update()
        return did

    def _provenance(self) -> int | None:
        if self.made_by is None:
            self.made_by = self.store.add(provenance.current()).id
        return self.made_by
