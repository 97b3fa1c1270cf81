"""One table in three forms: HTML for the page, Markdown and CSV for files."""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any

import pandas as pd

from lowrank.report.plot.axes import number, trim

UNCERTAINTIES = {
    "standard_deviation",
    "standard_error",
    "items_error",
    "seeds_error",
}  # columns shown with two digits
SETTINGS = {
    "base_learning_rate",
    "effective_learning_rate",
    "learning_rate",
}  # columns of values that a user wrote: no trailing zeros


@dataclass(frozen=True, kw_only=True)
class Table:
    """Rows to show.

    ``frame`` holds plain values, which go to CSV in full precision; ``digits`` significant digits
    are shown to people.
    """

    name: str
    title: str
    frame: pd.DataFrame
    headings: Sequence[str] = ()
    digits: int = 4
    query: str = ""
    note: str = ""
    method_column: str = ""  # column whose cells get the method's mark

    @property
    def columns(self) -> list[str]:
        """Column headings for people."""
        return list(self.headings) or [str(c).replace("_", " ") for c in self.frame.columns]

    def cells(self) -> list[list[str]]:
        """Return the values as text."""
        rows = self.frame.itertuples(index=False, name=None)
        return [
            [
                self._cell(column, value)
                for column, value in zip(self.frame.columns, row, strict=True)
            ]
            for row in rows
        ]

    def _cell(self, column: str, value: Any) -> str:
        shown = text(value, 2 if column in UNCERTAINTIES else self.digits)
        return trim(shown) if column in SETTINGS and "×" not in shown else shown

    def numeric(self) -> list[bool]:
        """Return for each column whether it holds numbers and is aligned right."""
        return [
            all(is_number(v) or is_absent(v) for v in self.frame.iloc[:, i])
            for i in range(self.frame.shape[1])
        ]

    def csv(self) -> str:
        """Return comma-separated values in full precision, under the column names of the frame."""
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(self.frame.columns)
        writer.writerows(
            [plain(v) for v in row] for row in self.frame.itertuples(index=False, name=None)
        )
        return out.getvalue()

    def markdown(self) -> str:
        """Return a pipe table with the title above and the note below."""
        rule = ["---:" if flag else "---" for flag in self.numeric()]
        lines = [
            f"# {self.title}",
            "",
            row_text(self.columns),
            row_text(rule, escape=False),
            *(row_text(r) for r in self.cells()),
        ]
        if self.note:
            lines += ["", self.note]
        if self.query:
            lines += ["", f"Query: `{self.query}`"]
        return "\n".join(lines) + "\n"


def row_text(cells: Sequence[str], *, escape: bool = True) -> str:
    """Return one line of a pipe table."""
    kept = (
        [re.sub(r"([|\\])", r"\\\1", c).replace("\n", " ") for c in cells]
        if escape
        else list(cells)
    )
    return "| " + " | ".join(kept) + " |"


def is_number(value: Any) -> bool:
    """Return whether ``value`` is formatted as a number."""
    return isinstance(value, Real) and not isinstance(value, bool)


def is_absent(value: Any) -> bool:
    """Return whether ``value`` is missing: None or pandas' missing value.

    A float nan is a value.
    """
    return value is None or value is pd.NA or value is pd.NaT


def text(value: Any, digits: int) -> str:
    """Return a cell as text for people."""
    if is_absent(value):
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if is_number(value):
        whole = float(value)
        if math.isfinite(whole) and whole == int(whole) and not isinstance(value, float):
            return (
                f"{int(value):,}".replace(",", "\u2009")
                if abs(whole) >= 10_000
                else str(int(value))
            )
        return number(whole, digits)
    return str(value)


def plain(value: Any) -> Any:
    """Return a CSV cell: empty for a missing value, all digits for a number."""
    if is_absent(value):
        return ""
    return repr(float(value)) if isinstance(value, float) else value
