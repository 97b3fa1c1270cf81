"""``lowrank predict``: fit and cross-validate predictors of downstream performance."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from .options import database_option, json_option, log_to, open_store, standard_options
from .output import emit, ended, note

FILE = click.argument("file", type=click.Path(dir_okay=False, path_type=Path))


@click.command()
@FILE
@click.option(
    "--features",
    multiple=True,
    metavar="SET",
    help="loss_only, geometry_only, loss_plus_geometry, or names joined by commas; repeatable.",
)
@click.option(
    "--scheme",
    "schemes",
    multiple=True,
    metavar="NAME",
    help="loso, lomo, loro or loseo (leave one size, method, run or seed out); repeatable.",
)
@click.option(
    "--model", "models", multiple=True, metavar="NAME", help="linear or ridge; repeatable."
)
@click.option(
    "--selection",
    "selections",
    multiple=True,
    metavar="NAME",
    help="fixed, all_rows (as published) or nested; repeatable.",
)
@click.option("--protocol", help="Name of the metrics' protocol; else the study's preset.")
@click.option(
    "--every",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Keep every N-th checkpoint of a run, counted back from its last.",
)
@click.option(
    "--permutations",
    type=click.IntRange(min=0),
    default=199,
    show_default=True,
    help="Permutations in the test of what geometry adds to the loss.",
)
@json_option
@database_option
@standard_options
def predict(
    file: Path,
    features: tuple[str, ...],
    schemes: tuple[str, ...],
    models: tuple[str, ...],
    selections: tuple[str, ...],
    protocol: str | None,
    every: int,
    permutations: int,
    as_json: bool,
) -> None:
    """Predict the mean downstream score of each checkpoint from its loss and geometry, out of fold.

    Fits and predictions are stored; a fit whose rows have not changed is not repeated.

    \b
    Examples:
      lowrank predict studies/demo.yaml
      lowrank predict studies/demo.yaml --features log_perplexity,ccbh --scheme lomo --json
    """
    from lowrank.config import load_study
    from lowrank.predict import FIGURES
    from lowrank.predict import predict as run
    from lowrank.study import study_root

    study = load_study(file)
    root = study_root(study)
    given: dict[str, Any] = {
        "feature_sets": features,
        "schemes": schemes,
        "models": models,
        "selections": selections,
    }
    chosen = {name: values for name, values in given.items() if values}
    with open_store(f"sqlite:///{root / 'lowrank.db'}") as store:
        log_to(root)
        summary = run(
            store, study.name, protocol=protocol, every=every, permutations=permutations, **chosen
        )
    for sentence in summary.notes:
        note(sentence)
    emit(
        [{name: getattr(fit, name) for name in FIGURES} for fit in summary.fits],
        as_json,
        tuple(FIGURES),
    )
    known = len(summary.fits) - summary.added
    ended(f"{study.name}: {summary.added} fits added, {known} known")
