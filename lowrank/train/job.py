"""One training run, from its row in the store to its checkpoints; safe to kill and call again at
any moment.

Order at a step whose weights are kept: the training curve is flushed, the resume point is written,
then the checkpoint folder, then its row. Whatever a kill leaves undone is found and done by the
next call before it trains on.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import filelock
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.tracking import get_available_trackers

from lowrank.checkpoint import forget_unfinished
from lowrank.config import Training
from lowrank.errors import (
    BusyError,
    ClaimLostError,
    ConfigError,
    DiskError,
    DivergedError,
    LowrankError,
    StoreAwayError,
    StoreError,
    suggestion,
)
from lowrank.store import records
from lowrank.store.patience import patiently
from lowrank.train.session import Job, Session
from lowrank.train.snapshot import clear_snapshots


def make_accelerator(training: Training, folder: Path | None) -> Accelerator:
    """The process's ``Accelerator`` for a run; several runs in one process may
    differ in precision.
    """
    known = [str(tracker) for tracker in get_available_trackers()]
    for tracker in training.trackers:
        if tracker not in known:
            raise ConfigError(
                f"the tracker '{tracker}' is not installed{suggestion(tracker, known)} "
                "(for TensorBoard: pip install 'lowrank[tensorboard]'); "
                f"installed: {', '.join(known) or 'none'}"
            )
    AcceleratorState._reset_state()
    accelerator = Accelerator(
        cpu=not torch.cuda.is_available(),
        mixed_precision="bf16" if training.precision == "bfloat16_autocast" else "no",
        log_with=list(training.trackers) or None,
        project_dir=str(folder / "trackers") if folder and training.trackers else None,
    )
    expected = int(os.environ.get("WORLD_SIZE", "1"))
    if accelerator.num_processes != expected:
        raise LowrankError(
            f"{expected} processes were launched but Accelerate joined {accelerator.num_processes}; "
            "on CPUs use: torchrun --nproc_per_node N -m lowrank.train"
        )
    return accelerator


def train(job: Job) -> records.Run:
    """Bring a run to its end from wherever it is; returns its row. A diverged run is a result:
    status failed, no exception.

    Raises :class:`LowrankError` for what a user can mend; the run's row then says so, and its
    resume point stays.
    """
    accelerator = make_accelerator(job.config.training, job.folder)
    main = accelerator.is_main_process
    with _locked(job.folder / "train.lock", main):
        job.run = job.store.get(records.Run, job.run.id)
        if main:
            forget_unfinished(job.folder)
            job.run = job.store.update(
                records.Run,
                job.run.id,
                status="running",
                attempts=job.run.attempts + 1,
                error="",
                failed_step=None,
                world_size=accelerator.num_processes,
            )
        try:
            facts = Session(job, accelerator).train()
            outcome: dict[str, Any] = {"status": "done", **facts}
        except DivergedError as error:
            outcome = {
                "status": "failed",
                "error": str(error),
                "failed_step": error.step,
                "last_finite_loss": error.last_finite_loss,
            }
        except (StoreAwayError, ClaimLostError, DiskError):
            raise  # the run has not failed: it goes on later, or with another process
        except Exception as error:
            if main:
                with suppress(StoreError):  # what stopped the run matters more
                    job.store.update(
                        records.Run,
                        job.run.id,
                        status="failed",
                        error=f"{error or type(error).__name__}",
                    )
            raise
        if main:
            job.run = patiently(lambda: _finish(job, outcome))
            if outcome["status"] == "done":
                clear_snapshots(job.folder / "resume")
        accelerator.wait_for_everyone()
    return job.run


def _finish(job: Job, outcome: dict[str, Any]) -> records.Run:
    """The run's last columns, in one transaction with the end of its claim."""
    with job.store.transaction():
        if job.claim is not None:
            job.claim.finish()
        return job.store.update(records.Run, job.run.id, **outcome)


@contextmanager
def _locked(path: Path, main: bool) -> Iterator[None]:
    """Hold the run's lock in the main process; the kernel frees it when the process dies."""
    if not main:
        yield
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(path, timeout=0)
    try:
        lock.acquire()
    except filelock.Timeout as error:
        raise BusyError(
            f"{path.parent.name}: another process is training this run; wait for it or stop it"
        ) from error
    try:
        yield
    finally:
        lock.release()
