"""``lowrank study``: run a study file, plan it, see how far it is."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import click

from lowrank.errors import UsageError
from lowrank.store import Store, records
from lowrank.study import STAGES, Outcome, Plan, plan_rows, run_study, status_rows

from .options import (
    database_option,
    database_url,
    json_option,
    log_to,
    open_store,
    standard_options,
)
from .output import emit, ended, failed, note

FILE = click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
SET = click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="KEY=VALUE",
    help="Override a key of the file, such as training.steps=100.",
)
ROW = ("stage", "method", "variant", "scale", "seed", "step", "work", "state")


@click.group()
@standard_options
def study() -> None:
    """A study file: methods x scales x seeds, what to measure, and a report."""


@study.command()
@FILE
@click.option(
    "--only",
    multiple=True,
    type=click.Choice(list(STAGES)),
    help="This stage instead of all; may be repeated.",
)
@click.option(
    "--launcher",
    type=click.Choice(["inline", "processes", "slurm"]),
    default="inline",
    help="In this process; in several on this machine; as jobs of a Slurm cluster (the study file's section 'slurm').",
)
@click.option(
    "--workers",
    type=click.IntRange(min=1),
    metavar="N",
    help="Processes (default: one for each GPU, else for each core), or jobs at once (default: 16).",
)
@click.option("--retry-failed", is_flag=True, help="Try again what failed before.")
@SET
@database_option
@standard_options
def run(
    file: Path,
    only: tuple[str, ...],
    launcher: str,
    workers: int | None,
    retry_failed: bool,
    overrides: tuple[str, ...],
) -> int:
    """Do all work of a study that is still missing, in order: train, measure, evaluate, predict,
    report.

    Call it again after a stop or a kill: it goes on where it was. A failed unit does not stop the
    others. Any number of calls, on any number of machines with one database, share the work.

    \b
    Examples:
      lowrank study run studies/demo.yaml
      lowrank study run studies/demo.yaml --launcher processes --workers 2
    """
    if launcher == "inline" and workers not in (None, 1):
        raise UsageError("--workers needs --launcher processes or slurm")
    plan = Plan.of(file, overrides)
    with open_store(plan.database, create=True) as store:
        log_to(plan.root)
        if launcher == "inline":
            return tell(plan, run_study(store, plan, only, retry_failed))
        from lowrank.study.launch import Launch, launch

        how = Launch(launcher, database_url(plan.database), workers, overrides)
        return tell(plan, launch(store, plan, how, only, retry_failed))


def tell(plan: Plan, outcome: Outcome) -> int:
    """What was done, on stderr; the exit status."""
    for sentence in outcome.notes:
        note(sentence)
    for sentence in outcome.failures:
        failed(sentence)
    done = ", ".join(f"{stage} {count}" for stage, count in outcome.done.items())
    ended(f"{plan.study.name}: {done} units done, {len(outcome.failures)} failed")
    if outcome.report is not None:
        click.echo(str(outcome.report))
    return 1 if outcome.failures else 0


@study.command("plan")
@FILE
@SET
@json_option
@database_option
@standard_options
def plan_command(file: Path, overrides: tuple[str, ...], as_json: bool) -> None:
    """The missing work as rows; nothing is written.

    \b
    Example:
      lowrank study plan studies/demo.yaml --json
    """
    plan = Plan.of(file, overrides)
    with existing_store(plan) as store:
        emit(plan_rows(store, plan), as_json, ROW)


@study.command()
@FILE
@SET
@json_option
@database_option
@standard_options
def status(file: Path, overrides: tuple[str, ...], as_json: bool) -> None:
    """Runs, checkpoints and stored values of a study.

    \b
    Example:
      lowrank study status studies/demo.yaml
    """
    plan = Plan.of(file, overrides)
    with existing_store(plan) as store:
        emit(status_rows(store, plan), as_json)


@study.command("list")
@json_option
@database_option
@standard_options
def list_command(as_json: bool) -> None:
    """The studies of a store.

    \b
    Example:
      lowrank study list --db sqlite:///outputs/demo/lowrank.db
    """
    with open_store(read_only=True) as store:
        rows = [
            {
                "name": row.name,
                "runs": store.count(records.Run, study_id=row.id),
                "done": store.count(records.Run, study_id=row.id, status="done"),
                "failed": store.count(records.Run, study_id=row.id, status="failed"),
                "config_hash": row.config_hash[:12],
                "root": row.root,
            }
            for row in store.find(records.Study)
        ]
    emit(rows, as_json, ("name", "runs", "done", "failed", "config_hash", "root"))


@contextmanager
def existing_store(plan: Plan) -> Iterator[Store]:
    """The study's store for reading; an empty one where the study has not begun, so that planning
    writes nothing.
    """
    url = database_url(plan.database)
    if url == plan.database and not (plan.root / "lowrank.db").exists():
        with (
            TemporaryDirectory() as folder,
            Store.open(f"sqlite:///{folder}/empty.db", create=True) as store,
        ):
            yield store
        return
    with Store.open(url, read_only=True) as store:
        yield store
