"""One session of a run: build everything, make the updates, write log, checkpoints and resume
points.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NoReturn

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from lowrank import __version__, checkpoint, models, provenance
from lowrank.checkpoint import Manifest
from lowrank.config import RunConfig
from lowrank.data import open_data
from lowrank.errors import DivergedError, LowrankError, StoreAwayError
from lowrank.store import Store, records
from lowrank.train.loop import LogPoint, Loop, Stopwatch
from lowrank.train.memory import PeakMemory, model_bytes, return_freed_memory, state_bytes
from lowrank.train.resume import Progress, read_resume_point, write_resume_point
from lowrank.train.validation import validation_loss
from lowrank.work.writer import RunWriter


@dataclass(frozen=True)
class Update:
    """An update that was made, and the last loss known by then (nats per token), if any."""

    number: int
    loss: float | None


@dataclass
class Job:
    """A run to train: its configuration, its row, its study's folder and its store.

    All writes of training go through ``store``; where processes share work it is guarded by the
    claim on the run.
    """

    config: RunConfig
    run: records.Run  # its row, with an id
    root: Path  # the study's folder
    store: Store
    facts: dict[str, Any] = field(default_factory=dict)  # columns of the run, known at its end

    @property
    def folder(self) -> Path:
        """The run's folder."""
        return self.root / "runs" / self.config.folder

    @property
    def resume_folder(self) -> Path:
        """The folder of the run's resume points."""
        return self.folder / "resume"

    def checkpoint_folder(self, step: int) -> Path:
        """Return the folder of the checkpoint at ``step``."""
        return self.folder / "checkpoints" / f"step_{step:08d}"


class Session:
    """One run in one process, from its last resume point on: model, data, loop and writer."""

    def __init__(self, job: Job, accelerator: Accelerator) -> None:
        self.job, self.accelerator, self.config = job, accelerator, job.config
        self.main = accelerator.is_main_process
        training = self.config.training
        with accelerator.main_process_first():  # the corpus is tokenised once
            self.data = open_data(self.config.data, self.config.data_seed)
        self.data.require(training.batch_size)
        self.validation = self.data.evaluation_set(
            "validation", split="validation", tokens=self.config.data.validation_tokens
        )
        self.memory = PeakMemory()
        model, method = models.build(self.config, self.data.vocabulary_size, self.data.special)
        self.facts: dict[str, Any] = {"init_hash": models.init_hash(model, method)}
        self.loop = Loop(self.config, model, method, self.data, accelerator)
        self.facts |= model_bytes(model, training.per_layer_updates)
        self.watch = Stopwatch()
        self.writer = RunWriter(job.store)
        self.progress = Progress()
        self.kept = training.checkpoint_steps()
        every = training.resume_every
        self.resume_steps = set(self.kept[1:]) | (
            set(range(every, training.updates + 1, every)) if every else set()
        )
        self.validation_id: int | None = None

    def updates(self) -> Iterator[Update]:
        """Train from the last resume point to the end of the run.

        Yields the last update that exists at the start, then every update as it is made, before
        anything of it is written. The caller may stop there: the same command goes on from the last
        resume point. Raises :class:`DivergedError` for a loss or gradient norm that is not finite,
        and :class:`StoreAwayError` where the database is away for too long.
        """
        training = self.config.training
        self._resume()
        start = self.progress.update
        if self.main:
            self._record_start()
            self.writer.restore(
                self.progress.pending, run_id=self.job.run.id, evaluation_set_id=self.validation_id
            )
        if training.trackers:
            self.accelerator.init_trackers(self.config.label)
        yield Update(start, self.loop.last_finite_loss)
        self._keep(start)
        self.writer.write()
        try:
            for update in range(start + 1, training.updates + 1):
                if update > 1:
                    self.loop.after_update(update - 1)
                self._make(update)
                yield Update(update, self.loop.last_finite_loss)
                self._keep_up(update)
        except DivergedError:
            self.writer.drain()  # the curve up to the failure is part of the result
            raise
        self.writer.drain()
        if training.trackers:
            self.accelerator.end_training()

    def facts_at_end(self) -> dict[str, Any]:
        """Return the columns of the run that are only known when all updates are made."""
        return {
            "optimizer_state_bytes": state_bytes(self.loop.optimizer),
            "peak_memory_bytes": self._peak(),
            "train_seconds": self.progress.seconds,
            "last_finite_loss": self.loop.last_finite_loss,
        }

    def _resume(self) -> None:
        found = read_resume_point(self.job.resume_folder)
        if found is not None:
            self.progress, state = found
            self.loop.restore(state)
            self.loop.last_finite_loss = self.progress.last_finite_loss

    def _record_start(self) -> None:
        """Store what is known before the first update.

        Raises :class:`LowrankError` if the corpus or its tokenizer changed since the run began.
        """
        run = self.job.run
        for column, now in (
            ("dataset_fingerprint", self.data.fingerprint),
            ("tokenizer_hash", self.data.tokenizer_hash),
        ):
            before = getattr(run, column)
            if before and before != now:
                raise LowrankError(
                    f"run {self.config.label}: the corpus or its tokenizer changed since the run began "
                    f"({column} was {before[:12]}, is {now[:12]}); "
                    "restore the packages or files as they were, or start a study under another name"
                )
        self.validation_id = self.writer.add_now(self.validation.record).id
        made_by = self.writer.add_now(provenance.current()).id
        self.facts |= {
            "dataset_fingerprint": self.data.fingerprint,
            "tokenizer_hash": self.data.tokenizer_hash,
            "provenance_id": made_by,
        }
        self.job.run = self.writer.update_run(run.id, **self.facts)
        self.writer.forget_curve(run.id, after_step=self.progress.update)

    def _make(self, update: int) -> None:
        """Make one update and log its numbers."""
        for point in self.loop.update(update):
            self._note(point)

    def _keep_up(self, update: int) -> None:
        """Write what is due after an update: resume point, checkpoint, rows."""
        if update in self.resume_steps:
            for point in self.loop.drain():
                self._note(point)
            with self.watch.paused():
                self.writer.write()
                self._save(update)
                self._keep(update)
        if self.writer.due() or update in self.resume_steps:
            with self.watch.paused():
                self.writer.write()
        overdue = self.writer.overdue()
        if overdue is not None:
            self._stop(update, overdue)

    def _save(self, update: int) -> None:
        """Write the resume point after ``update``, with the rows that are not stored yet."""
        self.progress = replace(
            self.progress,
            update=update,
            seconds=self.progress.seconds + self.watch.total(),
            last_finite_loss=self.loop.last_finite_loss,
            peak_memory_bytes=self._peak(),
            pending=self.writer.pending(),
        )
        if self.main:
            write_resume_point(self.job.resume_folder, self.progress, self.loop.state())

    def _stop(self, update: int, reason: StoreAwayError) -> NoReturn:
        """Stop because the database is away, with the work so far in a resume point."""
        # Other processes do not know that this one stops, and would not join in draining.
        alone = self.accelerator.num_processes == 1
        if alone and update not in self.resume_steps:
            for point in self.loop.drain():
                self._note(point)
            self._save(update)
        raise StoreAwayError(
            f"{self.config.label}: stopped at update {update} after {self.writer.limit:.0f} seconds without its database; "
            f"the same command goes on from its last resume point ({reason})"
        ) from reason

    def _note(self, point: LogPoint) -> None:
        """Count an update and add it to the training log."""
        training = self.config.training
        self.progress = replace(self.progress, tokens_seen=self.progress.tokens_seen + point.tokens)
        rate = self.watch.lap(point.tokens)
        if training.trackers:
            self.accelerator.log(
                {
                    "loss": point.loss,
                    "gradient_norm": point.gradient_norm,
                    "learning_rate": point.learning_rate,
                },
                step=point.update,
            )
        if not self.main or (
            point.update % training.log_every and point.update != training.updates
        ):
            return
        self.writer.add(
            records.TrainingLog(
                run_id=self.job.run.id or 0,
                step=point.update,
                loss=point.loss,
                learning_rate=point.learning_rate,
                gradient_norm=point.gradient_norm,
                tokens_seen=self.progress.tokens_seen,
                tokens_per_second=rate,
            )
        )

    def _peak(self) -> int | None:
        known = [p for p in (self.memory.peak(), self.progress.peak_memory_bytes) if p is not None]
        return max(known, default=None)

    def _keep(self, step: int) -> None:
        """Write the checkpoint of ``step``, folder first, then row, if its weights are kept.

        A folder that exists is taken as it is.
        """
        if step not in self.kept:
            return
        folder = self.job.checkpoint_folder(step)
        complete = [folder.exists()]
        broadcast_object_list(complete)  # all processes follow the first one's view of the disk
        if not complete[0]:
            # Otherwise the batches of validation add to the memory that training has freed.
            return_freed_memory()
            loss, tokens = validation_loss(
                self.loop.wrapped, self.validation, self.config.training, self.accelerator
            )
            if self.main:
                checkpoint.save(
                    folder, self.loop.model, self._manifest(step, loss, tokens), self.data.tokenizer
                )
        if self.main:
            self._record_checkpoint(folder)
        self.accelerator.wait_for_everyone()

    def _manifest(self, step: int, loss: float, tokens: int) -> Manifest:
        kind = (
            "initial"
            if step == 0
            else "final"
            if step == self.config.training.updates
            else "training"
        )
        return Manifest(
            step=step,
            kind=kind,
            tokens_seen=self.progress.tokens_seen,
            method=self.config.method,
            settings=self.config.settings,
            run_config_hash=self.config.fingerprint(),
            validation_loss=loss,
            validation_tokens=tokens,
            evaluation_set_sha256=self.validation.record.sha256,
            tokenizer_hash=self.data.tokenizer_hash,
            lowrank_version=__version__,
        )

    def _record_checkpoint(self, folder: Path) -> None:
        manifest = checkpoint.read_manifest(folder)
        if manifest.evaluation_set_sha256 != self.validation.record.sha256:
            raise LowrankError(
                f"{folder}: its validation loss was computed on another evaluation set; "
                "restore data.validation_tokens, or start a study under another name"
            )
        self.writer.add(
            records.Checkpoint(
                run_id=self.job.run.id or 0,
                step=manifest.step,
                kind=manifest.kind,
                tokens_seen=manifest.tokens_seen,
                path=folder.relative_to(self.job.root).as_posix(),
                sha256=manifest.weights_sha256,
                bytes=manifest.bytes,
                validation_loss=manifest.validation_loss,
                validation_tokens=manifest.validation_tokens,
                evaluation_set_id=self.validation_id,
            )
        )
