"""One sitting of a run: build everything, walk the updates, keep checkpoints, curve and resume
points.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NoReturn

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from tqdm import tqdm

from lowrank import __version__, checkpoint, models, provenance
from lowrank.checkpoint import Manifest
from lowrank.config import RunConfig
from lowrank.data import open_data
from lowrank.errors import DivergedError, LowrankError, StoreAwayError
from lowrank.progress import progress_bar
from lowrank.store import Store, records
from lowrank.store.claims import Claim
from lowrank.store.patience import patiently
from lowrank.train.ledger import Ledger
from lowrank.train.loop import Loop, Point, Stopwatch
from lowrank.train.memory import PeakMemory, give_back, model_bytes, state_bytes
from lowrank.train.snapshot import Progress, read_snapshot, write_snapshot
from lowrank.train.validation import validation_loss


@dataclass
class Job:
    """What a run needs beside its configuration."""

    config: RunConfig
    run: records.Run  # its row, with an id
    root: Path  # the study's folder
    store: Store
    show_progress: bool = True
    claim: Claim | None = None  # on the run, where processes share work; of the main process

    @property
    def folder(self) -> Path:
        """The run's folder."""
        return self.root / "runs" / self.config.folder

    @property
    def resume_folder(self) -> Path:
        """Where its resume points are."""
        return self.folder / "resume"

    def checkpoint_folder(self, step: int) -> Path:
        """Folder of the checkpoint at ``step``."""
        return self.folder / "checkpoints" / f"step_{step:08d}"


class Session:
    """Everything of one run in one process, built once."""

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
        self.ledger = Ledger(job.store, job.claim)
        self.progress = Progress()
        self.kept = training.checkpoint_steps()
        every = training.resume_every
        self.resume_steps = set(self.kept[1:]) | (
            set(range(every, training.updates + 1, every)) if every else set()
        )
        self.validation_id: int | None = None

    def train(self) -> dict[str, Any]:
        """Make all updates that are still to do; returns the columns of the run that are known at
        the end.
        """
        training = self.config.training
        self._resume()
        start = self.progress.update
        if self.main:
            self._record_start()
            self.ledger.restore(
                self.progress.pending, run_id=self.job.run.id, evaluation_set_id=self.validation_id
            )
        if training.trackers:
            self.accelerator.init_trackers(self.config.label)
        shown = self.main and self.job.show_progress
        with progress_bar(
            total=training.updates,
            initial=start,
            desc=self.config.label,
            unit="update",
            disable=not shown,
        ) as bar:
            self._keep(start)
            self.ledger.write()
            try:
                self._walk(start, bar)
            except DivergedError:
                self.ledger.drain()  # the curve up to the failure is part of the result
                raise
            self.ledger.drain()
        if training.trackers:
            self.accelerator.end_training()
        return {
            "optimizer_state_bytes": state_bytes(self.loop.optimizer),
            "peak_memory_bytes": self._peak(),
            "train_seconds": self.progress.seconds,
            "last_finite_loss": self.loop.last_finite_loss,
        }

    def _walk(self, start: int, bar: tqdm) -> None:
        if self.config.training.compile:
            bar.set_postfix_str(
                "compiling the model"
            )  # half a minute or more, within the first update
        for update in range(start + 1, self.config.training.updates + 1):
            if update > 1:
                self.loop.settle(update - 1)
            self._step(update)
            bar.update()
            bar.set_postfix_str(f"loss {self.loop.last_finite_loss or math.nan:.3f}", refresh=False)

    def _resume(self) -> None:
        found = read_snapshot(self.job.resume_folder)
        if found is not None:
            self.progress, state = found
            self.loop.restore(state)
            self.loop.last_finite_loss = self.progress.last_finite_loss

    def _record_start(self) -> None:
        """Store what is known before the first update; a corpus that changed under a run is an
        error.
        """
        store, run = self.job.store, self.job.run
        for column, now in (
            ("dataset_fingerprint", self.data.fingerprint),
            ("tokenizer_hash", self.data.tokenizer_hash),
        ):
            before = getattr(run, column)
            if before and before != now:
                raise LowrankError(
                    f"run {self.config.label}: the corpus or its tokenizer changed since the run began "
                    f"({column} was {before[:12]}, is {now[:12]}); "
                    "restore the packages or files of then, or start a study under another name"
                )
        self.validation_id = patiently(lambda: store.add(self.validation.record)).id
        made_by = patiently(lambda: store.add(provenance.current())).id
        self.facts |= {
            "dataset_fingerprint": self.data.fingerprint,
            "tokenizer_hash": self.data.tokenizer_hash,
            "provenance_id": made_by,
        }
        self.job.run = patiently(lambda: store.update(records.Run, run.id, **self.facts))
        patiently(lambda: store.forget_training_log(run.id, after_step=self.progress.update))

    def _step(self, update: int) -> None:
        """One update, and what is due after it."""
        for point in self.loop.update(update):
            self._note(point)
        if self.job.claim is not None:
            self.job.claim.check()
        if update in self.resume_steps:
            for point in self.loop.drain():
                self._note(point)
            with self.watch.paused():
                self.ledger.write()
                self._save(update)
                self._keep(update)
        if self.ledger.due() or update in self.resume_steps:
            with self.watch.paused():
                self.ledger.write()
        overdue = self.ledger.overdue()
        if overdue is not None:
            self._stop(update, overdue)

    def _save(self, update: int) -> None:
        """The resume point after ``update``, with the rows that are not stored yet."""
        self.progress = replace(
            self.progress,
            update=update,
            seconds=self.progress.seconds + self.watch.total(),
            last_finite_loss=self.loop.last_finite_loss,
            peak_memory_bytes=self._peak(),
            pending=self.ledger.pending(),
        )
        if self.main:
            write_snapshot(self.job.resume_folder, self.progress, self.loop.state())

    def _stop(self, update: int, reason: StoreAwayError) -> NoReturn:
        """End the sitting without its database, the work so far kept in a resume point."""
        alone = (
            self.accelerator.num_processes == 1
        )  # other processes know nothing of it and would take no part
        if alone and update not in self.resume_steps:
            for point in self.loop.drain():
                self._note(point)
            self._save(update)
        raise StoreAwayError(
            f"{self.config.label}: stopped at update {update} after {self.ledger.patience:.0f} seconds without its database; "
            f"the same command goes on from its last resume point ({reason})"
        ) from reason

    def _note(self, point: Point) -> None:
        """Count an update and put it on the training curve."""
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
        self.ledger.add(
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
        """The checkpoint of ``step``, if its weights are kept: folder first, then row; what exists
        is taken as it is.
        """
        if step not in self.kept:
            return
        folder = self.job.checkpoint_folder(step)
        complete = [folder.exists()]
        broadcast_object_list(complete)  # all processes follow the first one's view of the disk
        if not complete[0]:
            give_back()  # else the batches of the validation come on top of what training has freed
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
                f"{folder}: its validation loss was taken on another evaluation set; "
                "keep data.validation_tokens as it was, or start a study under another name"
            )
        self.ledger.add(
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
