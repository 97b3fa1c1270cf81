"""Conversion between records and rows: tables, columns, and how a value is written, read and
compared.
"""

from __future__ import annotations

import dataclasses
import json
import math
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any, Generic, TypeVar, cast, get_type_hints

import sqlalchemy as sa

from lowrank.errors import StoreError
from lowrank.store import records, schema
from lowrank.store.records import Record

R = TypeVar("R", bound=Record)
REFERENCE = "reference_checkpoint_id"
NON_FINITE = {schema.NAN: math.nan, schema.INFINITE: math.inf, schema.NEGATIVE_INFINITE: -math.inf}


@cache
def record_types() -> list[type[Record]]:
    """Return all record types, each after those that it refers to."""
    by_table = {
        table_name(cls): cls
        for cls in vars(records).values()
        if isinstance(cls, type) and issubclass(cls, Record)
    }
    return [by_table[table.name] for table in schema.Base.metadata.sorted_tables]


def table_name(record_type: type[Record]) -> str:
    """Return the name of a record type's table: ``metric_value`` for ``MetricValue``."""
    return "".join(f"_{c.lower()}" if c.isupper() else c for c in record_type.__name__).lstrip("_")


def kind_of(value: float | None) -> str:
    """Return the kind of a value: finite, nan, inf, -inf or absent."""
    if value is None:
        return schema.ABSENT
    if math.isfinite(value):
        return schema.FINITE
    return (
        schema.NAN
        if math.isnan(value)
        else (schema.INFINITE if value > 0 else schema.NEGATIVE_INFINITE)
    )


def same_value(one: Any, other: Any) -> bool:
    """Return whether two values are equal, with nan equal to nan."""
    if isinstance(one, float) and isinstance(other, float):
        return one == other or (math.isnan(one) and math.isnan(other))
    return bool(one == other)


@dataclass(frozen=True)
class RecordField:
    """A field of a record: how it becomes a column value, and whether a column for its kind belongs
    to it.
    """

    name: str
    encode: Callable[[Any], Any]
    optional: bool
    has_kind: bool
    plain: type | None = None  # values of exactly this type are column values as they are


@dataclass(frozen=True)
class RecordCodec(Generic[R]):
    """The conversion between one record type and the rows of its table."""

    record_type: type[R]
    table: sa.Table
    fields: tuple[RecordField, ...]
    columns: tuple[sa.Column[Any], ...]  # id and fields, then kinds: what a record is read from
    conflict: tuple[sa.Column[Any], ...]  # columns of the unique key
    parents: Mapping[str, str]  # field that holds an id -> table that the id belongs to

    @property
    def name(self) -> str:
        """Name of the table."""
        return self.table.name

    def encode(self, record: R) -> dict[str, Any]:
        """Return the column values of ``record``, without id; raise a StoreError that names table
        and column for a value of a wrong type.
        """
        row: dict[str, Any] = {}
        values = vars(record)
        for field in self.fields:
            value = values[field.name]
            if type(value) is field.plain and not field.has_kind:
                row[field.name] = value
            else:
                self.encode_field(field, value, row)
        return row

    def encode_field(self, field: RecordField, value: Any, row: dict[str, Any]) -> None:
        """Put one field, and its kind where there is one, into ``row``."""
        if value is None:
            if not field.optional:
                raise StoreError(f"{self.name}.{field.name} must have a value")
        else:
            try:
                value = field.encode(value)
            except (TypeError, ValueError, OverflowError) as error:
                raise StoreError(
                    f"{self.name}.{field.name} cannot hold {shown(value)}: {error}"
                ) from error
        if field.has_kind:
            kind = row[field.name + schema.KIND_SUFFIX] = kind_of(value)
            value = value if kind == schema.FINITE else None
        elif isinstance(value, float) and not math.isfinite(value):
            raise StoreError(
                f"{self.name}.{field.name} is {value}, and this column holds finite numbers only"
            )
        row[field.name] = value

    def decode(self, row: sa.Row[Any]) -> R:
        """Return the record in a row of ``columns``."""
        values = dict(row._mapping)
        for field in self.fields:
            if field.has_kind:
                kind = values.pop(field.name + schema.KIND_SUFFIX)
                if kind in NON_FINITE:
                    values[field.name] = NON_FINITE[kind]
        for name in self._mappings:
            # Read-only connections to PostgreSQL return JSON as text, as SQLite does.
            if isinstance(values[name], str):
                values[name] = json.loads(values[name])
        return self.record_type(**values)

    def value(self, row: Mapping[str, Any], name: str) -> Any:
        """Return the value of a field in encoded columns, nan and infinities included."""
        kind = row.get(name + schema.KIND_SUFFIX)
        return NON_FINITE[kind] if kind in NON_FINITE else row[name]

    def key_of(self, row: Mapping[str, Any]) -> tuple[Any, ...]:
        """Return the natural key as the unique columns hold it."""
        return tuple(
            [
                row[name] if name != schema.REFERENCE_KEY else row[REFERENCE] or 0
                for name in self._key
            ]
        )

    @cached_property
    def _key(self) -> tuple[str, ...]:
        return tuple(column.name for column in self.conflict)

    @cached_property
    def fixed(self) -> list[str]:
        """Fields that must agree when a row is written twice."""
        free = self.record_type.volatile | self.record_type.mutable
        return [field.name for field in self.fields if field.name not in free]

    @cached_property
    def written(self) -> frozenset[str]:
        """Columns of an encoded row."""
        kinds = (field.name + schema.KIND_SUFFIX for field in self.fields if field.has_kind)
        return frozenset([*(field.name for field in self.fields), *kinds])

    @cached_property
    def _mappings(self) -> list[str]:
        """Fields that hold a JSON object."""
        return [
            field.name
            for field in self.fields
            if isinstance(self.table.c[field.name].type, sa.JSON)
        ]

    @cached_property
    def is_plain(self) -> bool:
        """Whether encoded values are what a driver takes as they are: no JSON among them."""
        return not any(isinstance(self.table.c[name].type, sa.JSON) for name in self.written)

    @cached_property
    def is_parent(self) -> bool:
        """Whether rows of other tables refer to this table."""
        return bool(_references(self.name))

    @cached_property
    def only_volatile(self) -> bool:
        """Whether nothing but volatile fields refers to this table, so that two computations may
        differ in it.
        """
        return self.is_parent and all(
            field in cls.volatile for cls, field in _references(self.name)
        )

    def field(self, name: str) -> RecordField:
        """Return the field called ``name``; raise StoreError if there is none."""
        for field in self.fields:
            if field.name == name:
                return field
        raise StoreError(f"the table '{self.name}' has no column '{name}'")


def codec(record_type: type[R]) -> RecordCodec[R]:
    """Return the codec of a record type."""
    return cast(RecordCodec[R], _codec(cast(Any, record_type)))


@cache
def _codec(record_type: type[Record]) -> RecordCodec[Any]:
    table = schema.Base.metadata.tables[table_name(record_type)]
    hints = get_type_hints(record_type)
    names = [f.name for f in dataclasses.fields(record_type) if f.name != "id"]
    fields = tuple(_field(table, name, hints[name]) for name in names)
    kinds = [f.name + schema.KIND_SUFFIX for f in fields if f.has_kind]
    unique = next(c for c in table.constraints if isinstance(c, sa.UniqueConstraint))
    parents = {
        c.name: next(iter(c.foreign_keys)).column.table.name
        for c in table.columns
        if c.foreign_keys
    }
    columns = tuple(table.c[name] for name in ["id", *names, *kinds])
    return RecordCodec(record_type, table, fields, columns, tuple(unique.columns), parents)


def _references(table: str) -> list[tuple[type[Record], str]]:
    """Return (record type, field) of everything that refers to ``table``."""
    return [
        (cls, field)
        for cls in record_types()
        for field, parent in codec(cls).parents.items()
        if parent == table
    ]


def _field(table: sa.Table, name: str, hint: Any) -> RecordField:
    column = table.c[name]
    has_kind = name + schema.KIND_SUFFIX in table.c
    plain = int if isinstance(column.type, sa.Integer) else None
    return RecordField(
        name, _encoder(column.type), type(None) in getattr(hint, "__args__", ()), has_kind, plain
    )


def _encoder(kind: sa.types.TypeEngine[Any]) -> Callable[[Any], Any]:
    if isinstance(kind, sa.JSON):
        return _json
    if isinstance(kind, sa.Boolean):
        return _boolean
    if isinstance(kind, sa.Integer):
        return operator.index
    return _float if isinstance(kind, sa.Double) else _text


def _json(value: Any) -> Any:
    """Return ``value`` as it will be read from JSON: tuples become lists, keys strings; nan is
    refused.
    """
    return json.loads(json.dumps(value, allow_nan=False, sort_keys=True))


def _boolean(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    raise TypeError("expected true or false")


def _float(value: Any) -> float:
    if isinstance(value, str):
        raise TypeError("expected a number")
    return float(value) + 0.0  # SQLite has no -0.0


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError("expected text")
    if "\0" in value:
        raise ValueError("a text of PostgreSQL holds no NUL character")
    return str(value)


def shown(value: Any) -> str:
    """Return ``value`` as text for a message, at most 80 characters."""
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "…"


Codec = RecordCodec  # the old name, which outsiders may import
