"""Write rows to stdout or a file: a table for people; CSV, JSON or Parquet for programs."""

from __future__ import annotations

import csv
import io
import json
import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from lowrank import logs
from lowrank.errors import LowrankError
from lowrank.files import atomic_file

Row = Mapping[str, Any]
log = logging.getLogger(__name__)


def emit(rows: Iterable[Row], as_json: bool = False, columns: Sequence[str] | None = None) -> None:
    """Print rows as an aligned table or as one JSON array.

    ``columns`` names the columns even if there are no rows.
    """
    rows = list(rows)
    click.echo(json_text(rows) if as_json else table_text(rows, columns))


def note(sentence: str) -> None:
    """Say on stderr what is worth knowing and is no failure (not under ``-q``), and in the log."""
    log.warning("%s", sentence)


def failed(sentence: str) -> None:
    """Say on stderr what has failed, and in the log."""
    log.error("%s", sentence)


def ended(sentence: str) -> None:
    """Say on stderr what a command has done (not under ``-q``), and in the log."""
    log.info("%s", sentence, extra=logs.SHOWN)
    if not logs.quiet():
        click.echo(sentence, err=True)


def json_text(rows: Sequence[Row]) -> str:
    """Return one JSON array with one object per line.

    A number that is not finite becomes null, with its kind in a key of its own.
    """
    lines = ",\n ".join(
        json.dumps(finite(row), ensure_ascii=False, allow_nan=False, default=str) for row in rows
    )
    return f"[{lines}]"


def finite(row: Row) -> dict[str, Any]:
    """Return a row in which every number can be written as JSON."""
    found: dict[str, Any] = {}
    for name, value in row.items():
        number = isinstance(value, float)
        found[name] = value if not number or math.isfinite(value) else None
        if number and not math.isfinite(value) and f"{name}_kind" not in row:
            found[f"{name}_kind"] = repr(float(value))
    return found


def table_text(rows: Sequence[Row], columns: Sequence[str] | None = None) -> str:
    """Return rows as aligned columns, with numbers to the right and floats to six digits."""
    names = list(columns or dict.fromkeys(name for row in rows for name in row))
    if not rows:
        return "(no rows)" if not names else "  ".join(names) + "\n(no rows)"
    cells = [[_cell(row.get(name)) for name in names] for row in rows]
    right = [all(isinstance(row.get(name), int | float | None) for row in rows) for name in names]
    widths = [max(len(name), *(len(line[i]) for line in cells)) for i, name in enumerate(names)]

    def line(parts: Sequence[str]) -> str:
        fields = zip(parts, widths, right, strict=True)
        return "  ".join(
            f"{part:>{width}}" if to_right else f"{part:<{width}}"
            for part, width, to_right in fields
        ).rstrip()

    return "\n".join([line(names), line(["-" * width for width in widths]), *map(line, cells)])


def csv_text(rows: Iterable[Sequence[Any]], columns: Sequence[str]) -> str:
    """Return CSV with a header; missing values are empty, floats are exact."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(rows)
    return out.getvalue()


def write_file(path: Path, content: bytes) -> None:
    """Write a file whole or not at all; raises LowrankError where the disk refuses."""
    try:
        with atomic_file(path) as file:
            file.write(content)
    except OSError as error:
        raise LowrankError(f"{path} cannot be written: {error.strerror or error}") from error


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.6g}"
    return str(value).replace("\n", " ")
