"""``lowrank measure``: compute the metrics that are missing."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from .options import database_option, json_option, log_to, open_store, standard_options
from .output import emit, failed

if TYPE_CHECKING:
    from lowrank.measure import Split

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
@click.option(
    "--method",
    "methods",
    multiple=True,
    metavar="NAME",
    help="Only this method; may be repeated, like all below.",
)
@click.option(
    "--scale", "scales", multiple=True, metavar="NAME", help="Only checkpoints of this scale."
)
@click.option("--seed", "seeds", multiple=True, type=int, help="Only checkpoints of this seed.")
@click.option("--step", "steps", multiple=True, type=int, help="Only checkpoints at this step.")
@click.option(
    "--run", "runs", multiple=True, type=int, metavar="ID", help="Only checkpoints of this run."
)
@click.option(
    "--checkpoint",
    "checkpoints",
    multiple=True,
    type=int,
    metavar="ID",
    help="Only this checkpoint.",
)
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
    methods: tuple[str, ...],
    scales: tuple[str, ...],
    seeds: tuple[int, ...],
    steps: tuple[int, ...],
    runs: tuple[int, ...],
    checkpoints: tuple[int, ...],
    lenses: tuple[str, ...],
    plan_only: bool,
    retry_failed: bool,
    split: Split,
    as_json: bool,
) -> int:
    """Compute and store the metrics of a study's checkpoints that are missing; what is there is
    left alone.

    Several processes share the work under torchrun or accelerate launch: checkpoints, or the
    directions of each.

    \b
    Examples:
      lowrank measure studies/demo.yaml
      lowrank measure studies/demo.yaml --method cola --step 300 --lens landscape
      torchrun --standalone --nproc_per_node 2 -m lowrank.cli.main measure studies/demo.yaml
    """
    from lowrank.measure import Selection, plan, plan_rows
    from lowrank.measure import measure as work
    from lowrank.study import Plan

    chosen = Selection(methods, scales, seeds, steps, runs, checkpoints, lenses)
    todo = Plan.of(file)
    with open_store(todo.database, read_only=plan_only) as store:
        chosen.check(store, todo.study.name)
        if plan_only:
            emit(plan_rows(plan(store, todo.study, todo.root, chosen)), as_json, COLUMNS)
            return 0
        log_to(todo.root)
        outcome = work(store, todo.study, todo.root, chosen, retry_failed=retry_failed, split=split)
    if outcome.helper:
        return 0
    for sentence in (*outcome.failed, *outcome.blocked, *outcome.left_alone):
        failed(sentence)
    emit([outcome.row()], as_json)
    return 0 if outcome.complete else 1
