"""``lowrank evaluate``: compute the downstream scores that are missing."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .options import database_option, json_option, log_to, open_store, standard_options
from .output import emit, failed

if TYPE_CHECKING:
    from lowrank.config.schema import Downstream
    from lowrank.study import Plan

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
    "--batch-size", type=click.IntRange(1), help="Rows a forward pass; recorded with the scores."
)
@click.option(
    "--data-dir",
    type=click.Path(file_okay=False),
    help="Folder with the data sets' files, fetched beforehand.",
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
    methods: tuple[str, ...],
    scales: tuple[str, ...],
    seeds: tuple[int, ...],
    steps: tuple[int, ...],
    runs: tuple[int, ...],
    checkpoints: tuple[int, ...],
    plan_only: bool,
    retry_failed: bool,
    overrides: tuple[str, ...],
    as_json: bool,
    **given: Any,
) -> int:
    """Compute and store the downstream scores of a study's checkpoints that are missing; what is
    there is left alone.

    Options that are not given come from the study's section `downstream`; without one the suite is
    embedded.

    \b
    Examples:
      lowrank evaluate studies/demo.yaml
      lowrank evaluate studies/demo.yaml --suite published --tasks piqa,blimp --data-dir data --final
    """
    from lowrank.evaluate import Selection, plan
    from lowrank.evaluate import evaluate as work
    from lowrank.study import Plan

    todo = Plan.of(file, overrides)
    settings = settings_of(todo, given)
    chosen = Selection(methods, scales, seeds, steps, runs, checkpoints)
    with open_store(todo.database, read_only=plan_only) as store:
        if plan_only:
            emit(
                (unit.row() for unit in plan(store, todo.study, settings, chosen)), as_json, COLUMNS
            )
            return 0
        log_to(todo.root)
        outcome = work(store, todo.study, todo.root, settings, chosen, retry_failed=retry_failed)
    for sentence in (*outcome.failed, *outcome.left_alone):
        failed(sentence)
    emit([outcome.row()], as_json)
    return 0 if outcome.complete else 1


def settings_of(todo: Plan, given: dict[str, Any]) -> Downstream:
    """The study's section with what the command line says."""
    from lowrank.config.loading import validate
    from lowrank.config.schema import Downstream

    body = (todo.study.downstream or Downstream()).model_dump()
    if given.pop("final"):
        body["every"] = None
    given["initial"] = given["initial"] or None  # the flag can only add
    if given["tasks"] is not None:
        given["tasks"] = [task.strip() for task in given["tasks"].split(",") if task.strip()]
    given["suites"] = given["suites"] or None
    body |= {name: value for name, value in given.items() if value is not None}
    return validate(Downstream, body, todo.file, "downstream")
