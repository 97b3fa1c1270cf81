"""One training run, from its row in the store to its checkpoints; safe to kill and call again at
any moment.

Order at a step whose weights are kept: the training curve is flushed, the resume point is written,
then the checkpoint folder, then its row. Whatever a kill leaves undone is found and done by the
next call before it trains on.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import filelock
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.tracking import get_available_trackers

from lowrank.checkpoint import forget_unfinished
from lowrank.config import Training
from lowrank.errors import (
    BusyError,
    ConfigError,
    LowrankError,
    suggestion,
)
from lowrank.store import Store, records
from lowrank.train.session import Job, Session, Update


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
    """Train a run to its end from wherever it is; returns its row.

    Nobody else may be working on the run; :mod:`lowrank.study.training` claims it. A run that
    diverges raises :class:`DivergedError`.
    """
    for _ in updates(job):
        pass
    return finish(job, job.store)


def updates(job: Job) -> Iterator[Update]:
    """Bring a run to its end; yield update by update, as :meth:`Session.updates` does.

    At the end the run's last columns are in ``job.facts``; :func:`finish` stores them. The run has
    not failed, and goes on later, where its store or its disk is away or another process has it.
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
                traceback="",
                failed_step=None,
                world_size=accelerator.num_processes,
            )
        session = Session(job, accelerator)
        yield from session.updates()
        job.facts = session.facts_at_end()
        accelerator.wait_for_everyone()


def finish(job: Job, store: Store) -> records.Run:
    """Store that all updates of a run are made, and its last columns; returns the row."""
    job.run = store.update(records.Run, job.run.id, status="done", **job.facts)
    return job.run


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
