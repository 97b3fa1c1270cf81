"""``lowrank measure``: compute the metrics that are missing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .options import database_option, json_option, log_to, open_store, standard_options
from .output import emit, failed
from .selection import selection_options

if TYPE_CHECKING:
    from lowrank.work.selection import Selection

COLUMNS = (
    "lens",
    "protocol",
    "method",
    "variant",
    "scale",
    "seed",
    "step",
    "reference",
    "missing_values",
    "detail",
)


@click.command()
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
@selection_options
@click.option(
    "--lens", "lenses", multiple=True, metavar="NAME", help="Only this lens (see: lowrank metrics)."
)
@click.option(
    "--plan", "plan_only", is_flag=True, help="Show the missing work as rows and write nothing."
)
@click.option("--retry-failed", is_flag=True, help="Try again what failed before.")
@click.option(
    "--split",
    type=click.Choice(["auto", "checkpoints", "directions"]),
    default="auto",
    show_default=True,
    help="What the processes of one launch share; auto: directions where checkpoints are too few.",
)
@json_option
@database_option
@standard_options
def measure(
    file: Path,
    selection: Selection,
    lenses: tuple[str, ...],
    plan_only: bool,
    as_json: bool,
    **options: Any,
) -> int:
    """Compute and store the missing metrics of a study's checkpoints; stored ones are left alone.

    Several processes share the work under torchrun or accelerate launch: checkpoints, or the
    directions of each.

    \b
    Examples:
      lowrank measure studies/demo.yaml
      lowrank measure studies/demo.yaml --method cola --step 300 --lens landscape
      torchrun --standalone --nproc_per_node 2 -m lowrank.cli.main measure studies/demo.yaml
    """
    from lowrank.measure import measure as compute
    from lowrank.measure import plan, plan_rows
    from lowrank.study import Plan

    selection = replace(selection, lenses=lenses)
    study_plan = Plan.of(file)
    study, root = study_plan.study, study_plan.root
    with open_store(study_plan.database, read_only=plan_only) as store:
        selection.check(store, study.name)
        if plan_only:
            emit(plan_rows(plan(store, study, root, selection)), as_json, COLUMNS)
            return 0
        log_to(root)
        summary = compute(store, study, root, selection, **options)
    if summary.helper:
        return 0
    for sentence in (*summary.failed, *summary.blocked, *summary.left_alone):
        failed(sentence)
    emit([summary.row()], as_json)
    return 0 if summary.complete else 1
