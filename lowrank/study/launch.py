"""``lowrank study run`` with other launchers than its own process."""

from __future__ import annotations

import sys
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from lowrank import logs
from lowrank.config import RunConfig
from lowrank.config.schema import Slurm
from lowrank.errors import UsageError
from lowrank.progress import waiting
from lowrank.store import Store
from lowrank.store.claims import Claims
from lowrank.study import (
    SHARED,
    STAGES,
    Outcome,
    Plan,
    forget_failures,
    missing_training,
    processes,
    register,
    run_study,
    slurm,
    train_key,
)

SQLITE_WRITERS = 8  # processes that may write to one SQLite file at once
SLURM_JOBS = 16
POLL = 5.0


@dataclass(frozen=True)
class Launch:
    """How to run a study: ``workers`` None takes what the launcher thinks fit; ``overrides`` are
    those of the plan.
    """

    launcher: str
    url: str
    workers: int | None = None
    overrides: tuple[str, ...] = ()


def launch(
    store: Store, plan: Plan, how: Launch, only: Collection[str] = (), retry_failed: bool = False
) -> Outcome:
    """Do all missing work of a study with several workers; training, measuring and evaluating are
    theirs.
    """
    stages = [stage for stage in STAGES if not only or stage in only]
    shared, own = (
        [stage for stage in stages if stage in SHARED],
        [stage for stage in stages if stage not in SHARED],
    )
    section = plan.study.slurm or Slurm()
    accelerators = _accelerators() if how.launcher == "processes" else 0
    workers = how.workers or (
        accelerators or processes.cores() if how.launcher == "processes" else SLURM_JOBS
    )
    _refuse_sqlite(store, how, workers, section)
    register(store, plan)
    if retry_failed:
        forget_failures(store, plan)
    before = {stage: unfinished(store, plan, stage) for stage in shared}
    if how.launcher == "processes":
        failures = _by_processes(
            plan, how, workers, accelerators, shared if any(before.values()) else []
        )
    else:
        failures = _by_jobs(store, plan, how, workers, section, shared)
    outcome = run_study(store, plan, only=own) if own else Outcome()
    for stage in shared:
        outcome.failures += failed(store, plan, stage)
    outcome.failures += failures
    return outcome


def _accelerators() -> int:
    import torch

    return torch.cuda.device_count()


def _refuse_sqlite(store: Store, how: Launch, workers: int, section: Slurm) -> None:
    if store.dialect != "sqlite":
        return
    if how.launcher == "slurm" and section.cluster == "slurm":
        raise UsageError(
            "jobs of a cluster run on other machines, and an SQLite file is for one; give --db postgresql://…"
        )
    if workers > SQLITE_WRITERS:
        raise UsageError(
            f"{workers} workers are too many for an SQLite file, which takes {SQLITE_WRITERS} that write at once; "
            "use fewer, or PostgreSQL: --db postgresql://…"
        )


def study_command(plan: Plan, how: Launch, stages: Sequence[str]) -> list[str]:
    """The command of one worker; the database is in its environment."""
    command = [
        sys.executable,
        "-m",
        "lowrank",
        "study",
        "run",
        str(Path(plan.file).absolute()),
        "--launcher",
        "inline",
    ]
    for stage in stages:
        command += ["--only", stage]
    command += logs.flags()
    return command + [word for override in how.overrides for word in ("--set", override)]


def _by_processes(
    plan: Plan, how: Launch, workers: int, accelerators: int, stages: Sequence[str]
) -> list[str]:
    if not stages:
        return []
    folder = plan.root / "logs"
    commands = [study_command(plan, how, stages)] * workers
    statuses = processes.run_workers(
        commands, processes.environments(workers, how.url, accelerators), folder
    )
    ended = {
        index: status for index, status in enumerate(statuses, start=1) if status not in (0, 1)
    }
    return [
        f"worker {index} {f'was killed by signal {-status}' if status < 0 else f'ended with status {status}'} "
        f"(what it said: {folder / f'worker-{index}.log'})"
        for index, status in ended.items()
    ]


def _by_jobs(
    store: Store, plan: Plan, how: Launch, workers: int, section: Slurm, stages: Sequence[str]
) -> list[str]:
    """One array of jobs a stage; jobs that end without their work done (preempted, out of time) are
    submitted again.
    """
    folder, failures = plan.root / "logs" / "jobs", []
    with processes.environment({"LOWRANK_DATABASE_URL": how.url}):
        for stage in stages:
            for _ in range(1 + section.resubmit):
                commands = (
                    _runs(store, plan, how, section)
                    if stage == "train"
                    else _chunks(store, plan, how, stage, workers)
                )
                if not commands:
                    break
                jobs = slurm.submit(
                    commands,
                    section,
                    workers,
                    folder,
                    f"{plan.study.name}-{stage}",
                    whole_nodes=stage == "train",
                )
                slurm.wait(jobs, stage)
            left = unfinished(store, plan, stage)
            if left:
                failures.append(
                    f"{stage}: {left} units are not done after {1 + section.resubmit} rounds of jobs; see {folder}"
                )
    return failures


def _chunks(store: Store, plan: Plan, how: Launch, stage: str, workers: int) -> list[list[str]]:
    """Workers that share the checkpoints of a stage by claiming them, no more than there are
    checkpoints.
    """
    return [study_command(plan, how, [stage])] * min(workers, unfinished(store, plan, stage))


def _runs(store: Store, plan: Plan, how: Launch, section: Slurm) -> list[list[str]]:
    """A command for each run that nobody has finished; those that others are at are waited for
    first, if nothing else is left.
    """
    claims, tell = Claims(store, "train"), waiting("train")
    while True:
        missing = missing_training(store, plan)
        todo = [
            config
            for config, run, _ in missing
            if run is not None and run.status not in ("failed", "cancelled")
        ]
        taken = claims.taken()
        free = [config for config in todo if train_key(plan, config) not in taken]
        tell(0 if free else len(todo))
        if free or not todo:
            break
        time.sleep(POLL)
    overrides = [word for override in how.overrides for word in ("--set", override)]
    return [
        slurm.accelerate_launch(section, [*_arguments(plan, config), *overrides]) for config in free
    ]


def _arguments(plan: Plan, config: RunConfig) -> list[str]:
    """What ``lowrank.train`` needs to know of a run."""
    chosen = {
        "method": config.method,
        "scale": config.scale,
        "seed": str(config.seed),
        "variant": config.variant,
    }
    named = [word for name, value in chosen.items() for word in (f"--{name}", value)]
    return ["--config", str(Path(plan.file).absolute()), *named, "--resume", *logs.flags()]


def unfinished(store: Store, plan: Plan, stage: str) -> int:
    """How many runs (train) or checkpoints (measure, evaluate) lack something that
    has not failed.
    """
    if stage == "train":
        states = [run.status if run else "planned" for _, run, _ in missing_training(store, plan)]
        return sum(state not in ("failed", "cancelled") for state in states)
    return len({checkpoint for checkpoint, _, error in _units(store, plan, stage) if not error})


def failed(store: Store, plan: Plan, stage: str) -> list[str]:
    """Sentences of what failed; a run that diverged is a result."""
    if stage == "train":
        runs = [
            (config, run)
            for config, run, _ in missing_training(store, plan)
            if run is not None and run.status == "failed"
        ]
        return [f"{config.label}: {run.error}" for config, run in runs if run.failed_step is None]
    return [f"{label}: {error}" for _, label, error in _units(store, plan, stage) if error]


def _units(store: Store, plan: Plan, stage: str) -> list[tuple[int | None, str, str]]:
    """(checkpoint, label, error) of the missing units of a stage that nothing blocks."""
    if stage == "measure":
        from lowrank.measure import plan as measure_plan

        tasks = measure_plan(store, plan.study, plan.root)
        return [
            (task.unit.checkpoint.checkpoint_id, task.label, task.error)
            for task in tasks
            if not task.unit.blocked
        ]
    from lowrank.evaluate.plan import plan as evaluate_plan

    return [
        (unit.checkpoint.id, unit.label, unit.error) for unit in evaluate_plan(store, plan.study)
    ]
