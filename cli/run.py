"""``lowrank run``: single runs of a store."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from lowrank import logs
from lowrank.errors import UsageError
from lowrank.store import Store, records

from .options import database_option, json_option, open_store, standard_options, study_names
from .output import emit

COLUMNS = (
    "id",
    "study",
    "method",
    "variant",
    "scale",
    "seed",
    "status",
    "attempts",
    "checkpoints",
    "error",
)


@click.group()
@standard_options
def run() -> None:
    """Single training runs: list, show, cancel, retry."""


@run.command("list")
@click.option("--study", "study_name", help="Only the runs of this study.")
@click.option(
    "--status",
    type=click.Choice(["planned", "running", "done", "failed", "cancelled"]),
    help="Only runs in this state.",
)
@json_option
@database_option
@standard_options
def list_runs(study_name: str | None, status: str | None, as_json: bool) -> None:
    """Runs with their state, one a row.

    \b
    Example:
      lowrank run list --status failed --db sqlite:///outputs/demo/lowrank.db
    """
    with open_store(read_only=True) as store:
        studies = study_names(store, study_name)
        where: dict[str, Any] = {} if status is None else {"status": status}
        rows = [
            {
                "id": row.id,
                "study": studies[row.study_id],
                "method": row.method,
                "variant": row.variant,
                "scale": row.scale,
                "seed": row.seed,
                "status": row.status,
                "attempts": row.attempts,
                "checkpoints": store.count(records.Checkpoint, run_id=row.id),
                "error": row.error,
            }
            for row in store.find(records.Run, **where)
            if study_name in (None, studies[row.study_id])
        ]
    emit(rows, as_json, COLUMNS)


@run.command()
@click.argument("run_id", type=int)
@json_option
@database_option
@standard_options
def show(run_id: int, as_json: bool) -> None:
    """Everything that is stored of one run, the path of its study's log, and the traceback where it
    failed for a reason that nobody expected.

    \b
    Example:
      lowrank run show 3 --db sqlite:///outputs/demo/lowrank.db
    """
    with open_store(read_only=True) as store:
        found = asdict(_run(store, run_id))
        root = store.get(records.Study, found["study_id"]).root
    found["log"] = str(logs.path(Path(root))) if root else ""
    if as_json:
        emit([found], as_json)
        return
    trace = found.pop("traceback")
    emit([{"column": name, "value": value} for name, value in found.items()])
    if trace:
        click.echo(f"\n{trace.rstrip()}")


@run.command()
@click.argument("run_ids", type=int, nargs=-1, required=True)
@database_option
@standard_options
def cancel(run_ids: tuple[int, ...]) -> None:
    """Take runs out of their study's work; what they have done stays.

    \b
    Example:
      lowrank run cancel 3 4 --db sqlite:///outputs/demo/lowrank.db
    """
    _change(run_ids, {"planned", "running", "failed"}, "cancelled")


@run.command()
@click.argument("run_ids", type=int, nargs=-1, required=True)
@database_option
@standard_options
def retry(run_ids: tuple[int, ...]) -> None:
    """Put failed or cancelled runs back into their study's work; they go on from their last resume
    point.

    \b
    Example:
      lowrank run retry 3 --db sqlite:///outputs/demo/lowrank.db
    """
    _change(run_ids, {"failed", "cancelled"}, "planned")


def _change(run_ids: tuple[int, ...], allowed: set[str], status: str) -> None:
    """Set the status of all runs named, or of none."""
    with open_store() as store, store.transaction():
        for run_id in run_ids:
            found = _run(store, run_id)
            if found.status not in allowed:
                raise UsageError(
                    f"run {run_id} is {found.status}; only runs that are {' or '.join(sorted(allowed))} can become {status}"
                )
            store.update(
                records.Run, run_id, status=status, error="", traceback="", failed_step=None
            )


def _run(store: Store, run_id: int) -> records.Run:
    found = store.first(records.Run, id=run_id)
    if found is None:
        raise UsageError(f"the store has no run {run_id}; lowrank run list shows them")
    return found
