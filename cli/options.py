"""Options that several commands share, and the choice of the database."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

from lowrank.errors import UsageError

if TYPE_CHECKING:
    from lowrank.store import Store

F = TypeVar("F", bound=Callable[..., Any])
VARIABLE = "LOWRANK_DATABASE_URL"
_CHOSEN = "lowrank.database"


def _remember(ctx: click.Context, _parameter: click.Parameter, value: str | None) -> None:
    if value is not None:
        ctx.meta[_CHOSEN] = value


def database_option(command: F) -> F:
    """Add ``--db URL`` to a command; :func:`database_url` and :func:`open_store` read it."""
    text = f"Database: sqlite:///FILE, a file, or postgresql://USER@HOST/NAME; else {VARIABLE}, else the study's own SQLite file."
    return click.option("--db", metavar="URL", expose_value=False, callback=_remember, help=text)(
        command
    )


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
