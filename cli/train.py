"""``accelerate launch -m lowrank.train``: one run of a study file."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lowrank.errors import UsageError

from .options import database_option, database_url, log_to, standard_options
from .output import ended as say_ended

if TYPE_CHECKING:
    from lowrank.config import RunConfig
    from lowrank.study import Plan


@click.command(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.option(
    "--config",
    "file",
    required=True,
    type=click.Path(dir_okay=False, path_type=Path),
    help="Study file.",
)
@click.option("--method", required=True, help="Method, as in the study file.")
@click.option("--scale", required=True, help="Scale, as in the study file.")
@click.option("--seed", required=True, type=int, help="Seed, as in the study file.")
@click.option(
    "--variant", default="", help="Variant of the method, where the study file has variants."
)
@click.option("--resume", is_flag=True, help="Go on from the last resume point.")
@click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="KEY=VALUE",
    help="Override a key of the file, such as training.steps=100.",
)
@database_option
@standard_options
def train_command(file: Path, resume: bool, overrides: tuple[str, ...], **recipe: Any) -> None:
    """Train one run of a study file; the run's rows go to the study's database.

    \b
    Examples:
      accelerate launch -m lowrank.train --config studies/demo.yaml --method galore --scale nano --seed 0
      torchrun --nproc_per_node 2 -m lowrank.train --config studies/demo.yaml --method galore --scale nano --seed 0
    """
    from lowrank.store import Store
    from lowrank.study import MissingRun, Plan, register, train_run

    plan = Plan.of(file, overrides)
    chosen = _chosen_run(plan, recipe)
    url = database_url(plan.database)
    if int(os.environ.get("RANK", "0")) == 0:
        with Store.open(url, create=True) as store:
            register(store, plan)
    _wait_for_rows()
    with Store.open(url) as store:
        log_to(plan.root)
        _, runs = register(store, plan)
        config, run = next(pair for pair in runs if pair[0] is chosen)
        if run.status == "done":
            say_ended(f"{config.label}: done already")
            return
        folder = plan.root / "runs" / config.folder
        if not resume and (folder / "resume").exists():
            raise UsageError(
                f"{config.label} has been trained in part; give --resume to go on, or delete {folder} to start again"
            )
        ended = train_run(store, plan, MissingRun(config, run, run.status))
        say_ended(f"{config.label}: {ended.status}" + (f" ({ended.error})" if ended.error else ""))


def _chosen_run(plan: Plan, recipe: dict[str, Any]) -> RunConfig:
    """Return the run of a study with the method, scale, seed and variant of ``recipe``."""
    for run in plan.runs:
        if all(getattr(run, name) == value for name, value in recipe.items()):
            return run
    wanted = "method '{method}', scale '{scale}', seed {seed}, variant '{variant}'"
    known = ", ".join(run.label for run in plan.runs)
    raise UsageError(f"{plan.file} has no run of {wanted.format(**recipe)}; it has: {known}")


def _wait_for_rows() -> None:
    """Wait until the first process of the launch has stored the study's rows."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        import torch
        from accelerate import PartialState

        PartialState(cpu=not torch.cuda.is_available()).wait_for_everyone()


def main() -> None:
    """Run the command of ``python -m lowrank.train``."""
    from .main import guarded

    sys.exit(
        guarded(
            lambda: train_command.main(
                sys.argv[1:], prog_name="python -m lowrank.train", standalone_mode=False
            )
        )
    )
