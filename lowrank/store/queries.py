"""The named queries: files of SQL whose header declares a description and typed parameters.

A file ``sql/NAME.sql`` begins with comment lines::

    -- description: One sentence.
    -- param: study text default ''
    -- param: metric text

Types are text, integer and real; a parameter without a default must be given. In the statement a
parameter is written ``:study``. The same text runs on SQLite and PostgreSQL. A line ``-- pivot:``
makes another named query a wide table of this one: :mod:`lowrank.store.pivot`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cache, partial
from importlib.resources import files
from itertools import takewhile
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any

from lowrank.errors import StoreError, UnknownNameError, UsageError, suggestion
from lowrank.store.pivot import Pivot, Statement

if TYPE_CHECKING:
    from lowrank.store.api import Store

TYPES: dict[str, type] = {"text": str, "integer": int, "real": float}
ACCEPTED: dict[str, tuple[type, ...]] = {
    "text": (str,),
    "integer": (str, Integral),
    "real": (str, Real),
}
PARAMETER = re.compile(
    r"(?P<name>[a-z]\w*) (?P<type>\w+)(?: default (?P<default>'[^']*'|null|[-+.\w]+))?"
)
HEADER = re.compile(r"-- (?P<key>description|param|pivot): (?P<value>.+)")


@dataclass(frozen=True)
class Parameter:
    """A parameter of a query; ``default`` applies where it is not ``required``."""

    name: str
    type: str
    required: bool
    default: Any = None

    def __str__(self) -> str:
        return f"{self.name} ({self.type}{', required' if self.required else ''})"

    def convert(self, value: Any) -> Any:
        """Return ``value``, a text from the command line or a number, as this parameter's type;
        raise UsageError for another type.
        """
        if value is None and not self.required and self.default is None:
            return None
        target, accepted = TYPES[self.type], ACCEPTED[self.type]
        if isinstance(value, accepted) and not isinstance(value, bool):
            with suppress(ValueError):
                return target(value)
        raise UsageError(f"the parameter '{self.name}' is {_article(self.type)}, not {value!r}")


@dataclass(frozen=True)
class Query:
    """A named query."""

    name: str
    description: str
    parameters: tuple[Parameter, ...]
    sql: str
    pivots: tuple[Pivot, ...] = ()

    def bind(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Return a value for every parameter; raise a UsageError that names an unknown, missing or
        ill-typed one.
        """
        known = {parameter.name: parameter for parameter in self.parameters}
        for name in given:
            if name not in known:
                has = f"it has: {', '.join(map(str, self.parameters))}" if known else "it has none"
                raise UsageError(
                    f"the query '{self.name}' has no parameter '{name}'{suggestion(name, known)}; {has}"
                )
        for name, parameter in known.items():
            if parameter.required and name not in given:
                raise UsageError(
                    f"the query '{self.name}' needs the parameter '{name}'; give it with: --param {name}=VALUE"
                )
        return {
            name: parameter.convert(given[name]) if name in given else parameter.default
            for name, parameter in known.items()
        }

    def run(
        self, store: Store, params: Mapping[str, Any]
    ) -> tuple[list[str], list[tuple[Any, ...]]]:
        """Return column names and rows of the query in ``store``."""
        bound = self.bind(params)
        if not self.pivots:
            return store.select(self.sql, bound, self.types)
        wide = Statement(self.sql)
        for pivot in self.pivots:
            long = get(pivot.query)
            given = {parameter.name: bound[parameter.name] for parameter in long.parameters}
            wide.add(pivot, long.sql, partial(_texts, store, given, long.types))
        columns, rows = store.select(wide.text, {**bound, **wide.parameters}, self.types)
        return wide.names(self.name, columns), rows

    @property
    def types(self) -> dict[str, type]:
        """Python types of the parameters."""
        return {parameter.name: TYPES[parameter.type] for parameter in self.parameters}


def names() -> list[str]:
    """Return the names of all queries, sorted."""
    return sorted(
        entry.name.removesuffix(".sql")
        for entry in files("lowrank.sql").iterdir()
        if entry.name.endswith(".sql")
    )


@cache
def get(name: str) -> Query:
    """Return the query called ``name``; raise an UnknownNameError that suggests the nearest known
    name.
    """
    if name not in names():
        raise UnknownNameError("query", name, names())
    return parse(name, files("lowrank.sql").joinpath(f"{name}.sql").read_text(encoding="utf-8"))


def listing() -> list[dict[str, str]]:
    """Return one row per query: name, description, parameters."""
    found = map(get, names())
    return [
        {
            "query": q.name,
            "description": q.description,
            "parameters": ", ".join(map(str, q.parameters)),
        }
        for q in found
    ]


def parse(name: str, text: str) -> Query:
    """Return the query that the text of its file defines; raise StoreError for a malformed
    header.
    """
    lines = text.splitlines()
    header = list(takewhile(lambda line: line.startswith("--"), lines))
    found = [HEADER.fullmatch(line) for line in header]
    declared: dict[str, list[str]] = {"description": [], "param": [], "pivot": []}
    for match in found:
        if match:
            declared[match["key"]].append(match["value"])
    if len(declared["description"]) != 1 or None in found:
        raise StoreError(
            f"sql/{name}.sql: the header must be one '-- description: …' line, and '-- param: …' and "
            "'-- pivot: …' lines"
        )
    parameters = tuple(_parameter(name, text) for text in declared["param"])
    pivots = tuple(Pivot.parse(name, text) for text in declared["pivot"])
    sql = "\n".join(lines[len(header) :]).strip()
    _require_used(name, "\n".join([sql, *(get(pivot.query).sql for pivot in pivots)]), parameters)
    return Query(name, declared["description"][0], parameters, sql, pivots)


def _parameter(query: str, text: str) -> Parameter:
    match = PARAMETER.fullmatch(text)
    if match is None or match["type"] not in TYPES:
        raise StoreError(
            f"sql/{query}.sql: the parameter '{text}' is malformed; write it as: name text|integer|real [default VALUE]"
        )
    literal = match["default"]
    plain = Parameter(match["name"], match["type"], required=literal is None)
    if literal in (None, "null"):
        return plain
    return Parameter(
        plain.name, plain.type, required=False, default=plain.convert(literal.strip("'"))
    )


def _texts(
    store: Store, params: Mapping[str, Any], types: Mapping[str, type], sql: str
) -> list[str]:
    """Return the texts in the only column of a statement's answer."""
    return [str(text) for (text,) in store.select(sql, params, types)[1]]


def _require_used(query: str, sql: str, declared: Iterable[Parameter]) -> None:
    used = set(re.findall(r"(?<![:\w]):([a-z]\w*)", sql))
    odd = used.symmetric_difference(parameter.name for parameter in declared)
    if odd:
        raise StoreError(
            f"sql/{query}.sql: the parameter '{min(odd)}' is declared or used, not both"
        )


def _article(kind: str) -> str:
    return {"text": "a text", "integer": "an integer", "real": "a number"}[kind]
