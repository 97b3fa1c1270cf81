"""Training as a stage of missing work: the runs that a study's store lacks."""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from lowrank import logs
from lowrank.config import RunConfig
from lowrank.errors import BusyError, DivergedError
from lowrank.progress import progress
from lowrank.store import Store, records
from lowrank.study.plan import Plan
from lowrank.work import Claimed, Item, Stage, Worker

if TYPE_CHECKING:
    from lowrank.train.session import Job


@dataclass(frozen=True)
class MissingRun:
    """A run that is not finished, its row where it has one, and the reason in words."""

    config: RunConfig
    run: records.Run | None
    reason: str

    @property
    def status(self) -> str:
        """The status of the run; planned where it has no row."""
        return self.run.status if self.run else "planned"


def missing_training(store: Store, plan: Plan) -> list[MissingRun]:
    """Return the runs of a study that are not finished."""
    row = store.first(records.Study, name=plan.study.name)
    known = (
        {run.config_hash: run for run in store.find(records.Run, study_id=row.id)} if row else {}
    )
    kept: dict[int, set[int]] = {}
    ids = [run.id for run in known.values()]
    for saved in store.find(records.Checkpoint, run_id=ids) if known else ():
        kept.setdefault(saved.run_id, set()).add(saved.step)
    missing = []
    for config in plan.runs:
        run = known.get(config.fingerprint())
        reason = _reason(config, run, kept.get((run.id if run else None) or 0, set()))
        if reason:
            missing.append(MissingRun(config, run, reason))
    return missing


def _reason(config: RunConfig, run: records.Run | None, kept: set[int]) -> str:
    """Return why a run is missing, '' where it is not."""
    if run is None or run.status == "planned":
        return "not started"
    if run.status == "failed":
        return f"failed: {run.error}"
    if run.status != "done":
        return run.status
    lacking = sorted(set(config.training.checkpoint_steps()) - kept)
    return f"checkpoints missing: {', '.join(map(str, lacking))}" if lacking else ""


class TrainStage(Stage[MissingRun, "Job"]):
    """The training runs of a study; each is a separate group."""

    name = "train"
    unit = "run"
    claims = "train"
    bar = False

    def __init__(self, store: Store, plan: Plan, *, progress: bool = True) -> None:
        self.store, self.plan, self.shown = store, plan, progress
        self.row = store.first(records.Study, name=plan.study.name)

    @property
    def study_id(self) -> int | None:
        """The id of the study's row, where there is one."""
        return self.row.id if self.row else None

    def items(self) -> list[Item[MissingRun]]:
        """Return the runs that have a row and are neither finished nor cancelled."""
        missing = missing_training(self.store, self.plan)
        return [self.item(m) for m in missing if m.run is not None and m.status != "cancelled"]

    def item(self, missing: MissingRun) -> Item[MissingRun]:
        """Return a run as an item of work."""
        key = train_key(self.plan, missing.config)
        failed = missing.run is not None and missing.run.status == "failed"
        error = (missing.run.error or "failed") if missing.run and failed else ""
        return Item(missing, key=key, group=key, label=missing.config.label, error=error)

    def still_missing(self, work: MissingRun) -> bool:
        """Return whether the run is still unfinished, whoever may have trained it meanwhile."""
        wanted = work.config.fingerprint()
        found = (m for m in missing_training(self.store, self.plan) if m.status != "cancelled")
        return any(m.config.fingerprint() == wanted for m in found)

    def compute(self, claimed: Claimed[MissingRun]) -> Job:
        """Train the run to its end, with a progress bar that counts updates."""
        from lowrank.train.job import updates
        from lowrank.train.session import Job

        config, run = claimed.work.config, claimed.work.run
        assert run is not None  # only registered runs are items
        job = Job(config, run, self.plan.root, claimed.store)
        made, training = updates(job), config.training
        start = next(made).number
        with progress(
            config.label, "update", shown=self.shown, total=training.updates, done=start
        ) as bar:
            if training.compile:
                bar.show("compiling the model")  # half a minute or more, within the first update
            for update in made:
                claimed.check()
                bar.advance()
                bar.show(f"loss {math.nan if update.loss is None else update.loss:.3f}")
        return job

    def save(self, work: MissingRun, result: Job, store: Store) -> int:
        """Store that the run is done."""
        from lowrank.train.job import finish

        finish(result, store)
        return 1

    def release(self, work: MissingRun) -> None:
        """Delete the resume points of a run that is finished: it has its checkpoints."""
        clear_resume_points(self.store, self.plan, [work.config])

    def stored_error(self, item: Item[MissingRun]) -> str:
        """Return the error of a run that has failed, as its row has it now; '' for any other."""
        run = self.store.get(records.Run, item.work.run.id) if item.work.run else None
        return (run.error or "failed") if run is not None and run.status == "failed" else ""

    def is_result(self, error: Exception) -> bool:
        """Return whether the run diverged: a loss that is no longer finite is a result."""
        return isinstance(error, DivergedError)

    def logged(self, work: MissingRun) -> AbstractContextManager[None]:
        """Return a context in which lines of the log name the run."""
        return logs.context(run=work.run.id if work.run else None)

    def note(self, item: Item[MissingRun], sentence: str) -> str:
        """Return the sentence that reports a diverged run."""
        return f"{item.label} diverged: {sentence}"

    def fail(self, item: Item[MissingRun], error: Exception, trace: str, store: Store) -> None:
        """Store the failure in the run's row; its resume points stay."""
        run = item.work.run
        sentence = self.sentence(item, error)
        columns: dict[str, Any] = {"status": "failed", "error": sentence, "traceback": trace}
        if isinstance(error, DivergedError):
            columns |= {"failed_step": error.step, "last_finite_loss": error.last_finite_loss}
        store.update(records.Run, run.id if run else None, **columns)


def train_run(
    store: Store, plan: Plan, missing: MissingRun, *, progress: bool = True
) -> records.Run:
    """Train one registered run in this process to its end; return its row.

    Of the processes of a launch, the first one claims the run and stores its rows. A run that
    diverges ends with the status failed. Raises :class:`BusyError` if another process holds the
    run; any other error is raised after it was stored in the row.
    """
    assert missing.run is not None  # only registered runs are trained
    if int(os.environ.get("RANK", "0")) > 0:
        return _follow(store, plan, missing)
    stage = TrainStage(store, plan, progress=progress)
    item, worker = stage.item(missing), Worker(store, stage, progress=progress)
    with worker.required(item) as claimed:
        if not any(m.config is missing.config for m in missing_training(store, plan)):
            return _finished_elsewhere(store, missing)
        with worker.attempt(claimed):
            worker.store_result(claimed, stage.compute(claimed))
    stage.release(missing)
    for failure in worker.failures:
        if not failure.is_result:
            raise failure.error
    for note in worker.notes:
        raise BusyError(note)
    return store.get(records.Run, missing.run.id)


def _finished_elsewhere(store: Store, missing: MissingRun) -> records.Run:
    """Return the row of a run that another process has finished before this one claimed it.

    Raises :class:`BusyError` in a launch of several processes: the others have begun to wait for
    this one, and end with it.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise BusyError(f"{missing.config.label}: another process has finished it; nothing is left")
    assert missing.run is not None
    return store.get(records.Run, missing.run.id)


def _follow(store: Store, plan: Plan, missing: MissingRun) -> records.Run:
    """Make the updates of a run together with the first process of a launch, which stores them."""
    from lowrank.train.job import updates
    from lowrank.train.session import Job

    assert missing.run is not None
    for _ in updates(Job(missing.config, missing.run, plan.root, store)):
        pass
    return replace(missing.run, status="done", error="")


def train_key(plan: Plan, config: RunConfig) -> str:
    """Return the key under which a process claims a run that it trains."""
    return f"train/{plan.study.name}/{config.fingerprint()}"


def clear_resume_points(store: Store, plan: Plan, configs: Sequence[RunConfig]) -> None:
    """Delete the resume points of those of ``configs`` that are finished.

    A process that is killed right after the end of a run leaves them behind.
    """
    folders = {c.fingerprint(): plan.root / "runs" / c.folder / "resume" for c in configs}
    kept = {key: folder for key, folder in folders.items() if folder.is_dir()}
    missing = {m.config.fingerprint() for m in missing_training(store, plan)} if kept else set()
    for key, folder in kept.items():
        if key not in missing:
            shutil.rmtree(folder, ignore_errors=True)
