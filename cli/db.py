"""``lowrank db``: manage the schema of a database, show its contents, and copy it."""

from __future__ import annotations

import sys
from typing import Literal

import click

from lowrank.errors import UsageError

from .options import database_option, database_url, json_option, standard_options
from .output import emit


@click.group()
@database_option
@standard_options
def db() -> None:
    """Upgrade, check or copy the database."""


@db.command()
@database_option
@standard_options
@json_option
def upgrade(as_json: bool) -> None:
    """Create or upgrade the tables, and load the published values; safe to repeat."""
    from lowrank.store import migrate
    from lowrank.store.engine import mask

    url = migrate.prepare(database_url())
    before, after = migrate.upgrade(url)
    emit([{"database": mask(url), "schema_before": before, "schema": after}], as_json)


@db.command()
@click.argument("revision", default="base")
@click.option("--yes", is_flag=True, help="Do not ask, even where rows are lost.")
@database_option
@standard_options
@json_option
def downgrade(revision: str, yes: bool, as_json: bool) -> None:
    """Downgrade the schema to REVISION; 'base', the default, removes every table of lowrank."""
    from lowrank.store import migrate
    from lowrank.store.engine import mask, parse_url

    url = parse_url(database_url())
    lost = (
        0
        if yes
        else sum(
            count
            for table, count in migrate.inspect(url).tables.items()
            if table != "published_value"
        )
    )
    if lost and not sys.stdin.isatty():
        raise UsageError(
            f"the database {mask(url)} holds {lost} rows that may be lost; if you mean it, add --yes"
        )
    if lost:
        click.confirm(
            f"{mask(url)} holds {lost} rows that may be lost. Go on?", abort=True, err=True
        )
    before, after = migrate.downgrade(url, revision)
    emit([{"database": mask(url), "schema_before": before, "schema": after}], as_json)


@db.command()
@database_option
@standard_options
@json_option
def check(as_json: bool) -> None:
    """Fail unless the database has the newest schema and the models agree with it."""
    from lowrank.store import migrate
    from lowrank.store.engine import mask, parse_url

    url = parse_url(database_url())
    migrate.check(url)
    emit([{"database": mask(url), "schema": migrate.head(), "status": "ok"}], as_json)


@db.command()
@database_option
@standard_options
@json_option
def info(as_json: bool) -> None:
    """Show schema, size and number of rows of each table."""
    from lowrank.store import migrate
    from lowrank.store.engine import mask, parse_url

    url = parse_url(database_url())
    found = migrate.inspect(url)
    facts = {
        "database": mask(url),
        "server": found.server,
        "schema": found.current,
        "newest_schema": migrate.head(),
    }
    counts = {f"rows of {table}": count for table, count in found.tables.items()}
    emit(
        [
            {"item": item, "value": value}
            for item, value in {**facts, "bytes": found.bytes, **counts}.items()
        ],
        as_json,
    )


@db.command()
@click.argument("source")
@click.argument("target")
@click.option(
    "--prefer",
    type=click.Choice(["source", "target"]),
    help="Whose state to keep where it differs: a study's file, a run's status. Without it, such a difference is an error.",
)
@json_option
@standard_options
def copy(
    source: str, target: str, prefer: Literal["source", "target"] | None, as_json: bool
) -> None:
    """Copy or merge the store SOURCE into TARGET (URLs or SQLite files), without loss.

    Rows are matched by natural keys. Rows that TARGET already has must be equal; a different value
    ends the command, and TARGET stays unchanged.

    \b
    Example:
      lowrank db copy outputs/demo/lowrank.db postgresql://me@server/lowrank
    """
    from lowrank.store.copy import copy_store

    emit(copy_store(source, target, prefer=prefer), as_json)
