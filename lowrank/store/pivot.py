"""Wide tables from long ones: a named query may use another one as a table with one column per
name.

The header of the query declares it::

    -- pivot: QUERY by KEY: NAME -> VALUE[, columns MODULE:FUNCTION[ and found]]

In the statement, QUERY is then a table with one row per value of the column KEY. ``QUERY.*`` stands
for one column per name in the column NAME: the mean of VALUE, NULL where there is none;
``QUERY.mean`` and ``QUERY.n`` are the mean and the number of all its values. The function returns
{name: column} of the columns that are always present, in their order; names found in the rows
follow where the header ends with ``and found``, or has no function.

QUERY may begin with tables of its own (WITH), whose names no other table of the statement has,
before a SELECT at the beginning of a line. Its last ORDER BY counts only where it is asked by
itself, and so does a line that ends with the comment ``-- by itself``: a condition that the wide
statement has anyway, and that would keep a database from reading the rows in the order of KEY.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from lowrank.errors import StoreError

FORM = "QUERY by KEY: NAME -> VALUE[, columns MODULE:FUNCTION[ and found]]"
WRITTEN = re.compile(
    r"(?P<query>[a-z]\w*) by (?P<key>[a-z]\w*): (?P<name>[a-z]\w*) -> (?P<value>[a-z]\w*)"
    r"(?:, columns (?P<declared>[a-z][\w.]*:[a-z]\w*)(?P<found> and found)?)?"
)
LAST_ORDER = re.compile(r"\nORDER BY [^()]*\Z")
BY_ITSELF = re.compile(r"\n.*-- by itself$", re.MULTILINE)
FEW = 16  # up to this many names are looked up in an index; for more, all long rows are read

Ask = Callable[[str], list[str]]
"""Returns the texts of a statement with one column."""


@dataclass(frozen=True)
class Pivot:
    """A pivot line of a header: ``query`` has one row per ``key``, and ``value`` under each
    ``name``.
    """

    query: str
    key: str
    name: str
    value: str
    declared: str = ""
    found: bool = True

    @classmethod
    def parse(cls, owner: str, text: str) -> Pivot:
        """Parse a pivot line of the query ``owner``; raise a StoreError that shows the expected
        form.
        """
        match = WRITTEN.fullmatch(text)
        if match is None:
            raise StoreError(
                f"sql/{owner}.sql: the pivot '{text}' is malformed; write it as: {FORM}"
            )
        declared = match["declared"] or ""
        found = not declared or match["found"] is not None
        return cls(match["query"], match["key"], match["name"], match["value"], declared, found)

    def columns(self, long: str, ask: Ask) -> dict[str, str]:
        """Return {name: column}: the declared columns, then those that ``ask`` finds in the rows of
        ``long``, sorted.
        """
        columns: dict[str, str] = {}
        if self.declared:
            module, _, function = self.declared.partition(":")
            columns |= getattr(importlib.import_module(module), function)()
        if self.found:
            names = ask(f"SELECT DISTINCT {self.name} FROM ({long}\n) AS long")
            columns |= {name: name for name in sorted(names) if name not in columns}
        return columns

    def uses(self, sql: str, what: str) -> bool:
        """Return whether ``sql`` names ``what`` of the pivot: a column, or ``*``."""
        end = "" if what == "*" else r"\b"
        return re.search(rf"\b{self.query}\.{re.escape(what)}{end}", sql) is not None


@dataclass
class Statement:
    """A statement under construction: its text, the names bound as parameters, and the names of its
    columns.
    """

    sql: str
    tables: list[str] = field(default_factory=list)
    parameters: dict[str, str] = field(default_factory=dict)
    called: dict[str, str] = field(default_factory=dict)
    pivots: int = 0

    def add(self, pivot: Pivot, long: str, ask: Ask) -> None:
        """Add the table of ``pivot``, made from the statement ``long``."""
        long = LAST_ORDER.sub("", long)
        own, rows = _parts(BY_ITSELF.sub("", long))
        parts, where = [pivot.key], ""
        if pivot.uses(self.sql, "*"):
            columns = pivot.columns(long, ask)
            marks = {f"pivot_{self.pivots}_{i}": name for i, name in enumerate(columns)}
            self.parameters |= marks
            self.called |= dict(zip(marks, columns.values(), strict=True))
            mean = f"avg({pivot.value}) FILTER (WHERE {pivot.name} = :{{0}}) AS {{0}}"
            parts += [mean.format(mark) for mark in marks]
            self.sql = _listed(self.sql, pivot.query, marks)
            if not pivot.found and 0 < len(marks) <= FEW:
                where = f" WHERE {pivot.name} IN ({', '.join(f':{mark}' for mark in marks)})"
        for column, function in (("mean", "avg"), ("n", "count")):
            if pivot.uses(self.sql, column):
                parts.append(f"{function}({pivot.value}) AS {column}")
                where = ""  # these are over all names
        table = f"SELECT {', '.join(parts)} FROM ({rows}\n) AS long{where} GROUP BY {pivot.key}"
        self.tables += [*own, f"{pivot.query} AS ({table})"]
        self.pivots += 1

    @property
    def text(self) -> str:
        """The complete statement."""
        own, rest = _parts(self.sql)
        return f"WITH {', '.join([*self.tables, *own])}\n{rest}"

    def names(self, owner: str, columns: Iterable[str]) -> list[str]:
        """Return the column names of the answer; raise StoreError where two are the same."""
        named = [self.called.get(column, column) for column in columns]
        twice = {name for name in named if named.count(name) > 1}
        if twice:
            raise StoreError(
                f"the query '{owner}' has two columns '{min(twice)}'; rename the metric or task"
            )
        return named


def _parts(sql: str) -> tuple[list[str], str]:
    """Return the tables of a statement's WITH as one text, if it has any, and its SELECT.

    A database looks into a subquery only without a WITH.
    """
    if not sql.startswith("WITH "):
        return [], sql
    tables, _, rest = sql.partition("\nSELECT")
    return [tables.removeprefix("WITH ")], f"SELECT{rest}"


def _listed(sql: str, table: str, marks: Mapping[str, Any]) -> str:
    """Replace ``table.*`` with the columns of a pivot, or remove it where there are none."""
    if marks:
        return re.sub(rf"\b{table}\.\*", ", ".join(f"{table}.{mark}" for mark in marks), sql)
    return re.sub(rf"\b{table}\.\*\s*,\s*|,\s*{table}\.\*", "", sql)
