"""``accelerate launch -m lowrank.train``: one run of a study file."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import click

from lowrank.errors import UsageError

from .options import database_option, database_url, log_to, standard_options
from .output import ended as say_ended


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
def train_command(
    file: Path,
    method: str,
    scale: str,
    seed: int,
    variant: str,
    resume: bool,
    overrides: tuple[str, ...],
) -> None:
    """Train one run of a study file; the run's rows go to the study's database.

    \b
    Examples:
      accelerate launch -m lowrank.train --config studies/demo.yaml --method galore --scale nano --seed 0
      torchrun --nproc_per_node 2 -m lowrank.train --config studies/demo.yaml --method galore --scale nano --seed 0
    """
    from lowrank.store import Store
    from lowrank.study import MissingRun, Plan, register, train_run

    plan = Plan.of(file, overrides)
    chosen = [
        run
        for run in plan.runs
        if (run.method, run.scale, run.seed, run.variant) == (method, scale, seed, variant)
    ]
    if not chosen:
        have = ", ".join(run.label for run in plan.runs)
        raise UsageError(
            f"{file} has no run of method '{method}', scale '{scale}', seed {seed}, variant '{variant}'; it has: {have}"
        )
    url = database_url(plan.database)
    if int(os.environ.get("RANK", "0")) == 0:
        with Store.open(url, create=True) as store:
            register(store, plan)
    _wait_for_rows()
    with Store.open(url) as store:
        log_to(plan.root)
        _, runs = register(store, plan)
        config, run = next(pair for pair in runs if pair[0] is chosen[0])
        if run.status == "done":
            say_ended(f"{config.label}: done already")
            return
        folder = plan.root / "runs" / config.folder
        if not resume and (folder / "resume").exists():
            raise UsageError(
                f"{config.label} has been trained in part; give --resume to go on, or delete {folder} to start anew"
            )
        ended = train_run(store, plan, MissingRun(config, run, run.status))
        say_ended(f"{config.label}: {ended.status}" + (f" ({ended.error})" if ended.error else ""))


def _wait_for_rows() -> None:
    """All processes go on when the first one has made the study's rows."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        import torch
        from accelerate import PartialState

        PartialState(cpu=not torch.cuda.is_available()).wait_for_everyone()


def main() -> None:
    """Entry of ``python -m lowrank.train``."""
    from .main import guarded

    sys.exit(
        guarded(
            lambda: train_command.main(
                sys.argv[1:], prog_name="python -m lowrank.train", standalone_mode=False
            )
        )
    )
