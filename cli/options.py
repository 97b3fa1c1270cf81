"""Options that several commands share, and the choice of the database."""

from __future__ import annotations

import logging
import os
import shlex
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

import lowrank
from lowrank import logs
from lowrank.errors import UsageError

if TYPE_CHECKING:
    from pathlib import Path

    from lowrank.store import Store

F = TypeVar("F", bound=Callable[..., Any])
VARIABLE = "LOWRANK_DATABASE_URL"
_CHOSEN = "lowrank.database"
_VERBOSITY = "lowrank.verbosity"
NO_BARS = {  # by which libraries are asked to show no progress bars
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TQDM_DISABLE": "1",
}
log = logging.getLogger(__name__)


def _remember(ctx: click.Context, _parameter: click.Parameter, value: str | None) -> None:
    if value is not None:
        ctx.meta[_CHOSEN] = value


def database_option(command: F) -> F:
    """Add ``--db URL`` to a command; :func:`database_url` and :func:`open_store` read it."""
    text = f"Database: sqlite:///FILE, a file, or postgresql://USER@HOST/NAME; else {VARIABLE}, else the study's own SQLite file."
    return click.option("--db", metavar="URL", expose_value=False, callback=_remember, help=text)(
        command
    )


def _verbosity(ctx: click.Context, parameter: click.Parameter, value: int) -> None:
    if not value:
        return
    given = ctx.meta.setdefault(_VERBOSITY, {"verbose": 0, "quiet": 0})
    given[parameter.name] += int(value)
    if given["verbose"] and given["quiet"]:
        raise click.UsageError("-v asks for more and -q for less; give one of them", ctx)
    if given["quiet"]:
        os.environ.update(NO_BARS)
    logs.configure(None, verbosity())


def standard_options(command: F) -> F:
    """``-v``, ``-q`` and ``-V``, on every group and every command."""
    more = click.option(
        "-v",
        "--verbose",
        count=True,
        expose_value=False,
        callback=_verbosity,
        help="Say what is being done; -vv: everything that is logged.",
    )
    less = click.option(
        "-q",
        "--quiet",
        is_flag=True,
        expose_value=False,
        callback=_verbosity,
        help="Errors and rows alone: no notes, no progress bars.",
    )
    version = click.version_option(lowrank.__version__, "-V", "--version", prog_name="lowrank")
    return version(more(less(command)))


def verbosity() -> int:
    """What ``-v`` and ``-q`` of the command that runs amount to, as :func:`logs.configure` takes
    it.
    """
    context = click.get_current_context(silent=True)
    given = context.meta.get(_VERBOSITY) if context else None
    return int(given["verbose"] or -given["quiet"]) if given else logs.NORMAL


def log_to(root: Path) -> None:
    """Log to the file in the study's folder ``root``, too, from here to the end of the command."""
    logs.configure(root, verbosity())
    context = click.get_current_context()
    words = context.obj if isinstance(context.obj, list) else sys.argv[1:]
    name, version = context.find_root().command_path, lowrank.__version__
    log.info("version %s: %s", version, shlex.join([name, *words]), extra=logs.SHOWN)


def json_option(command: F) -> F:
    """Add ``--json`` to a command, as the argument ``as_json`` of
    :func:`lowrank.cli.output.emit`.
    """
    text = "One array of objects; numbers that are not finite are null beside their kind."
    return click.option("--json", "as_json", is_flag=True, help=text)(command)


def database_url(default: str | None = None) -> str:
    """Return the database of the running command: ``--db``, else the environment, else ``default``.

    Raises :class:`UsageError` if none of them is given.
    """
    context = click.get_current_context(silent=True)
    chosen = context.meta.get(_CHOSEN) if context else None
    url = chosen or os.environ.get(VARIABLE) or default
    if not url:
        raise UsageError(
            f"which database? give --db URL, set {VARIABLE}, or name a study file where the command takes one"
        )
    return str(url)


def study_names(store: Store, wanted: str | None) -> dict[int | None, str]:
    """Return the names of a store's studies by id.

    Raises :class:`UsageError` if ``wanted`` is not among them.
    """
    from lowrank.store import records

    studies = {row.id: row.name for row in store.find(records.Study)}
    if wanted is not None and wanted not in studies.values():
        raise UsageError(
            f"the store has no study '{wanted}'; it has: {', '.join(sorted(studies.values())) or 'none'}"
        )
    return studies


def open_store(
    default: str | None = None, *, create: bool = False, read_only: bool = False
) -> Store:
    """Open the store of the running command, to be used in ``with``.

    ``default`` is the database as in :func:`database_url`.
    """
    from lowrank.store import Store

    return Store.open(database_url(default), create=create, read_only=read_only)
