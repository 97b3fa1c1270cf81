"""``lowrank doctor``: diagnose environment, store and files, and fix what can be fixed."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from lowrank.errors import LowrankError, StoreError, UsageError

from .options import database_option, database_url, json_option, standard_options
from .output import emit

if TYPE_CHECKING:
    from lowrank.doctor.finding import Finding

COLUMNS = ("level", "area", "finding", "advice", "mended_by")


@click.command()
@click.argument("file", required=False, type=click.Path(dir_okay=False, path_type=Path))
@click.option("--fix", is_flag=True, help="Fix what can be fixed, asking before each.")
@click.option("--yes", is_flag=True, help="With --fix: do not ask.")
@json_option
@database_option
@standard_options
def doctor(file: Path | None, fix: bool, yes: bool, as_json: bool) -> int:
    """Diagnose the environment, the store and the files of its studies; advise on each problem.

    With a study file, examine its store and apply its section 'keep' (which weights may be
    deleted). Exit status 1 if a problem remains.

    \b
    Examples:
      lowrank doctor studies/demo.yaml
      lowrank doctor studies/demo.yaml --fix
    """
    from lowrank.doctor import environment, examine
    from lowrank.store import Store
    from lowrank.study import Plan

    if yes and not fix:
        raise UsageError("--yes answers the questions of --fix; give both")
    found: list[Finding] = list(environment())
    plan = Plan.of(file) if file else None
    url = database_url(plan.database if plan else None)
    left = 0
    try:
        with Store.open(url, read_only=not fix) as store:
            try:
                found += examine(store, plan.study if plan else None, plan.root if plan else None)
            finally:
                emit([finding.row() for finding in found], as_json, COLUMNS)
            for finding in found:
                fixed = (
                    fix
                    and finding.fix is not None
                    and (yes or _agreed(finding))
                    and _fixed(finding)
                )
                left += finding.level == "problem" and not fixed
    except StoreError as error:
        click.echo(f"Error: {error}", err=True)
        return 1
    return 1 if left else 0


def _fixed(finding: Finding) -> bool:
    """Fix one finding and print what was done; return False if that failed."""
    try:
        click.echo(finding.fix() if finding.fix else "", err=True)
    except (LowrankError, OSError) as error:
        click.echo(f"failed: {finding.what}: {error}", err=True)
        return False
    return True


def _agreed(finding: Finding) -> bool:
    return click.confirm(f"{finding.what}: {finding.advice}?", err=True)
