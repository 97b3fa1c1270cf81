"""One table, three forms: HTML for the page, Markdown and CSV for elsewhere."""

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
}  # columns read to two digits
SETTINGS = {
    "base_learning_rate",
    "effective_learning_rate",
    "learning_rate",
}  # columns of what somebody wrote: no zeros behind


@dataclass(frozen=True, kw_only=True)
class Table:
    """Rows to show. ``frame`` holds plain values (full precision goes to CSV); ``digits`` are for
    reading.
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
        """Headings for people."""
        return list(self.headings) or [str(c).replace("_", " ") for c in self.frame.columns]

    def cells(self) -> list[list[str]]:
        """The values as text."""
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
        """Whether a column holds numbers and is set flush right."""
        return [
            all(is_number(v) or is_absent(v) for v in self.frame.iloc[:, i])
            for i in range(self.frame.shape[1])
        ]

    def csv(self) -> str:
        """Comma-separated values at full precision under the frame's own column names."""
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(self.frame.columns)
        writer.writerows(
            [plain(v) for v in row] for row in self.frame.itertuples(index=False, name=None)
        )
        return out.getvalue()

    def markdown(self) -> str:
        """A pipe table with the title above and the note below."""
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
    """One line of a pipe table."""
    kept = (
        [re.sub(r"([|\\])", r"\\\1", c).replace("\n", " ") for c in cells]
        if escape
        else list(cells)
    )
    return "| " + " | ".join(kept) + " |"


def is_number(value: Any) -> bool:
    """Whether ``value`` is set as a number."""
    return isinstance(value, Real) and not isinstance(value, bool)


def is_absent(value: Any) -> bool:
    """Whether ``value`` stands for nothing (None or pandas' missing value; a float
    nan is a value).
    """
    return value is None or value is pd.NA or value is pd.NaT


def text(value: Any, digits: int) -> str:
    """A cell for people."""
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
    """A CSV cell: absent is empty, numbers keep every digit."""
    if is_absent(value):
        return ""
    return repr(float(value)) if isinstance(value, float) else value
