"""``lowrank evaluate``: compute the downstream scores that are missing."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .options import database_option, json_option, log_to, open_store, standard_options
from .output import emit, failed
from .selection import selection_options

if TYPE_CHECKING:
    from lowrank.config.schema import Downstream
    from lowrank.study import Plan
    from lowrank.work.selection import Selection

COLUMNS = ("suite", "task", "method", "variant", "scale", "seed", "step", "detail")


@click.command()
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
@click.option(
    "--suite",
    "suites",
    multiple=True,
    metavar="NAME",
    help="embedded or published; may be repeated.",
)
@click.option("--tasks", metavar="A,B,…", help="Only these tasks of the suites.")
@click.option(
    "--limit",
    type=click.IntRange(1),
    help="Only the leading items of each task; recorded with the scores.",
)
@click.option(
    "--batch-size", type=click.IntRange(1), help="Rows per forward pass; recorded with the scores."
)
@click.option(
    "--data-dir",
    type=click.Path(file_okay=False),
    help="Folder with the data sets' files, downloaded beforehand.",
)
@click.option(
    "--every",
    type=click.IntRange(1),
    help="Every n-th checkpoint of a run, counted back from its last.",
)
@click.option("--final", "final", is_flag=True, help="Only the last checkpoint of each run.")
@click.option("--initial", is_flag=True, help="The weights of step 0, too.")
@click.option(
    "--items",
    type=click.Choice(["all", "final", "none"]),
    help="Checkpoints whose single items are stored.",
)
@selection_options
@click.option(
    "--plan", "plan_only", is_flag=True, help="Show the missing work as rows and write nothing."
)
@click.option("--retry-failed", is_flag=True, help="Try again what failed before.")
@click.option(
    "--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override a key of the file."
)
@json_option
@database_option
@standard_options
def evaluate(
    file: Path,
    selection: Selection,
    overrides: tuple[str, ...],
    plan_only: bool,
    retry_failed: bool,
    as_json: bool,
    **given: Any,
) -> int:
    """Compute and store the missing downstream scores of a study's checkpoints; stored ones are left
    alone.

    Defaults of the options come from the study's section `downstream`; without one the suite is
    embedded.

    \b
    Examples:
      lowrank evaluate studies/demo.yaml
      lowrank evaluate studies/demo.yaml --suite published --tasks piqa,blimp --data-dir data --final
    """
    from lowrank.evaluate import evaluate as compute
    from lowrank.evaluate import plan
    from lowrank.study import Plan

    study_plan = Plan.of(file, overrides)
    study, root = study_plan.study, study_plan.root
    settings = settings_of(study_plan, given)
    with open_store(study_plan.database, read_only=plan_only) as store:
        if plan_only:
            missing = plan(store, study, settings, selection)
            emit((work.row() for work in missing), as_json, COLUMNS)
            return 0
        log_to(root)
        summary = compute(store, study, root, settings, selection, retry_failed=retry_failed)
    for sentence in (*summary.failed, *summary.left_alone):
        failed(sentence)
    emit([summary.row()], as_json)
    return 0 if summary.complete else 1


def settings_of(plan: Plan, given: dict[str, Any]) -> Downstream:
    """Return the study's section `downstream`, overridden by the options that were given."""
    from lowrank.config.loading import validate
    from lowrank.config.schema import Downstream

    body = (plan.study.downstream or Downstream()).model_dump()
    if given.pop("final"):
        body["every"] = None
    given["initial"] = given["initial"] or None  # the flag can only add
    if given["tasks"] is not None:
        given["tasks"] = [task.strip() for task in given["tasks"].split(",") if task.strip()]
    given["suites"] = given["suites"] or None
    body |= {name: value for name, value in given.items() if value is not None}
    return validate(Downstream, body, plan.file, "downstream")
