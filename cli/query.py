"""``lowrank query``: named queries and read-only statements."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from lowrank.errors import UsageError

from . import output
from .options import database_option, json_option, open_store, standard_options

FORMATS = ("table", "csv", "json", "parquet")


@click.command()
@click.argument("name", required=False)
@click.option(
    "--param",
    "-p",
    "params",
    multiple=True,
    metavar="KEY=VALUE",
    help="A parameter of the query; repeatable.",
)
@click.option(
    "--sql",
    help="One SELECT statement instead of a named query; the database refuses one that writes.",
)
@click.option("--format", "form", type=click.Choice(FORMATS), default="table", show_default=True)
@click.option(
    "--output",
    "-o",
    "target",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write this file, completely or not at all.",
)
@json_option
@database_option
@standard_options
def query(
    name: str | None,
    params: tuple[str, ...],
    sql: str | None,
    form: str,
    target: Path | None,
    as_json: bool,
) -> None:
    """Query the store: by name, or with a SELECT. Without NAME: list the named queries with their
    parameters.

    \b
    Examples:
      lowrank query perplexity --param study=demo --format csv -o perplexity.csv
      lowrank query --sql "SELECT method, count(*) AS runs FROM run GROUP BY method"
    """
    form = "json" if as_json else form
    if form == "parquet" and target is None:
        raise UsageError("Parquet is not for a terminal; name a file with: -o FILE")
    if name is not None and sql is not None:
        raise UsageError("give the name of a query or --sql, not both")
    columns, rows = _listing() if name is None and sql is None else _ask(name, sql, _pairs(params))
    content = _content(columns, rows, form)
    if target is not None:
        output.write_file(target, content)
    else:
        click.echo(content, nl=False)


def _listing() -> tuple[list[str], list[tuple[Any, ...]]]:
    from lowrank.store import queries

    found = queries.listing()
    return list(found[0]), [tuple(row.values()) for row in found]


def _ask(
    name: str | None, sql: str | None, params: dict[str, str]
) -> tuple[list[str], list[tuple[Any, ...]]]:
    from lowrank.store import queries

    named = queries.get(name) if name is not None else None
    if named is not None:
        named.bind(params)  # report a wrong parameter before a database is opened
    with open_store(read_only=True) as store:
        return named.run(store, params) if named is not None else store.select(sql or "", params)


def _pairs(params: tuple[str, ...]) -> dict[str, str]:
    pairs: dict[str, str] = {}
    for text in params:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise UsageError(f"--param {text}: expected KEY=VALUE")
        if key in pairs:
            raise UsageError(f"--param {key} is given twice")
        pairs[key] = value
    return pairs


def _content(columns: list[str], rows: list[tuple[Any, ...]], form: str) -> bytes:
    if form == "parquet":
        from lowrank.store.view import frame

        content: bytes = frame(columns, rows).to_parquet(index=False)
        return content
    if form == "csv":
        return output.csv_text(rows, columns).encode()
    records = [dict(zip(columns, row, strict=True)) for row in rows]
    text = output.json_text(records) if form == "json" else output.table_text(records, columns)
    return f"{text}\n".encode()
