"""``lowrank report``: write the report of a study."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import click

from .options import database_option, database_url, log_to, open_store, standard_options

FILE = click.argument("file", type=click.Path(dir_okay=False, path_type=Path))


@click.command()
@FILE
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder of the report; else the study's own, report/ in its output folder.",
)
@click.option(
    "--against",
    metavar="OTHER",
    help="Compare with another study: its file, or its name in the same store.",
)
@database_option
@standard_options
def report(file: Path, out: Path | None, against: str | None) -> None:
    """Write the report of a study: index.html, with every table and figure as a file.

    \b
    Examples:
      lowrank report studies/demo.yaml
      lowrank report studies/tuned.yaml --against studies/demo.yaml --out outputs/comparison
    """
    from lowrank.config import load_study
    from lowrank.report import write
    from lowrank.store import Store
    from lowrank.study import study_root

    study = load_study(file)
    root = study_root(study)
    with ExitStack() as stack:
        store = stack.enter_context(open_store(f"sqlite:///{root / 'lowrank.db'}", read_only=True))
        log_to(root)
        other = None
        if against is not None and Path(against).suffix in (".yaml", ".yml"):
            theirs = load_study(Path(against))
            url = database_url(f"sqlite:///{study_root(theirs) / 'lowrank.db'}")
            other = (stack.enter_context(Store.open(url, read_only=True)), theirs.name)
        elif against is not None:
            other = (store, against)
        click.echo(str(write(store, study.name, out or root / "report", against=other)))
