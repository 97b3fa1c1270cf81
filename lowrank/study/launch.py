"""Running a study with worker processes on this machine or with jobs of a Slurm cluster."""

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
from lowrank.study import processes, slurm
from lowrank.study.plan import Plan, register
from lowrank.study.stages import STAGES, Outcome, StudyStage, forget_failures, run_study

SQLITE_WRITERS = 8  # processes that may write to one SQLite file at once
SLURM_JOBS = 16
POLL = 5.0


@dataclass(frozen=True)
class Launch:
    """How to run a study.

    ``launcher`` is processes or slurm, ``url`` the database, ``workers`` the number of processes or
    of jobs at once (None: the launcher's default), ``overrides`` those of the plan.
    """

    launcher: str
    url: str
    workers: int | None = None
    overrides: tuple[str, ...] = ()


def launch(
    store: Store, plan: Plan, how: Launch, only: Collection[str] = (), retry_failed: bool = False
) -> Outcome:
    """Do all missing work of a study with several workers.

    The workers train, measure and evaluate; this process does the stages that cannot be shared.
    Raises :class:`UsageError` where an SQLite file cannot serve so many workers.
    """
    stages = [stage for stage in STAGES.values() if not only or stage.name in only]
    shared = [stage for stage in stages if stage.shared]
    unshared = [stage.name for stage in stages if not stage.shared]
    section = plan.study.slurm or Slurm()
    accelerators = _accelerators() if how.launcher == "processes" else 0
    workers = how.workers or (
        accelerators or processes.cores() if how.launcher == "processes" else SLURM_JOBS
    )
    _refuse_sqlite(store, how, workers, section)
    register(store, plan)
    if retry_failed:
        forget_failures(store, plan, [stage.name for stage in shared])
    missing = any(stage.unfinished(store, plan) for stage in shared)
    if how.launcher == "processes":
        names = [stage.name for stage in shared] if missing else []
        failures = _by_processes(plan, how, workers, accelerators, names)
    else:
        failures = _by_jobs(store, plan, how, workers, section, shared)
    outcome = run_study(store, plan, only=unshared) if unshared else Outcome()
    for stage in shared:
        outcome.failures += stage.failed(store, plan)
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
            "jobs of a cluster run on other machines, and an SQLite file serves one machine; give --db postgresql://…"
        )
    if workers > SQLITE_WRITERS:
        raise UsageError(
            f"{workers} workers are too many for an SQLite file, which takes {SQLITE_WRITERS} at once; "
            "use fewer, or PostgreSQL: --db postgresql://…"
        )


def study_command(plan: Plan, how: Launch, stages: Sequence[str]) -> list[str]:
    """Return the command of one worker; the database is in its environment."""
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
        f"(its output: {folder / f'worker-{index}.log'})"
        for index, status in ended.items()
    ]


def _by_jobs(
    store: Store,
    plan: Plan,
    how: Launch,
    workers: int,
    section: Slurm,
    stages: Sequence[StudyStage],
) -> list[str]:
    """Submit one array of jobs per stage; return a sentence for each stage that is not done.

    Jobs that end before their work is done (preempted, out of time) are submitted again.
    """
    folder, failures = plan.root / "logs" / "jobs", []
    with processes.environment({"LOWRANK_DATABASE_URL": how.url}):
        for stage in stages:
            for _ in range(1 + section.resubmit):
                commands = _commands(store, plan, how, stage, workers, section)
                if not commands:
                    break
                name = f"{plan.study.name}-{stage.name}"
                jobs = slurm.submit(
                    commands, section, workers, folder, name, whole_nodes=stage.launches
                )
                slurm.wait(jobs, stage.name)
            left = stage.unfinished(store, plan)
            if left:
                failures.append(
                    f"{stage.name}: {left} units are not done after {1 + section.resubmit} rounds of jobs; see {folder}"
                )
    return failures


def _commands(
    store: Store, plan: Plan, how: Launch, stage: StudyStage, workers: int, section: Slurm
) -> list[list[str]]:
    """Return the commands of an array: launches of single runs, or workers that share the stage.

    There are no more workers than groups of work.
    """
    if stage.launches:
        return _runs(store, plan, how, stage, section)
    return [study_command(plan, how, [stage.name])] * min(workers, stage.unfinished(store, plan))


def _runs(
    store: Store, plan: Plan, how: Launch, stage: StudyStage, section: Slurm
) -> list[list[str]]:
    """Return a command for each unfinished run that no process holds.

    If all unfinished runs are held by other processes, wait until one of them is free.
    """
    claims, report = Claims(store, stage.name), waiting(stage.name)
    while True:
        todo = [item for item in stage.missing(store, plan) if not item.error]
        taken = claims.taken()
        free = [item for item in todo if item.group not in taken]
        report(0 if free else len(todo))
        if free or not todo:
            break
        time.sleep(POLL)
    overrides = [word for override in how.overrides for word in ("--set", override)]
    return [
        slurm.accelerate_launch(section, [*_arguments(plan, item.work.config), *overrides])
        for item in free
    ]


def _arguments(plan: Plan, config: RunConfig) -> list[str]:
    """Return the arguments of ``lowrank.train`` that name a run."""
    chosen = {
        "method": config.method,
        "scale": config.scale,
        "seed": str(config.seed),
        "variant": config.variant,
    }
    named = [word for name, value in chosen.items() for word in (f"--{name}", value)]
    return ["--config", str(Path(plan.file).absolute()), *named, "--resume", *logs.flags()]
