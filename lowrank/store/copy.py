"""Copying and merging stores by natural keys, and comparing two stores.

Ids belong to one database: what a row refers to is found in the other store by its natural key.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any, Literal, TypeVar

from lowrank.errors import ConflictError, StoreError
from lowrank.progress import progress_bar
from lowrank.store.api import Store
from lowrank.store.records import Record
from lowrank.store.rows import RecordCodec, codec, record_types, same_value, shown

R = TypeVar("R", bound=Record)
Ids = dict[str, dict[int, int]]  # table -> id in the source -> id in the target
Keys = dict[str, dict[int, tuple[Any, ...]]]  # table -> id -> natural key
Preference = Literal["source", "target"] | None
BATCH = 2_000


def copy_store(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    *,
    prefer: Preference = None,
) -> list[dict[str, Any]]:
    """Copy every row of ``source`` into ``target``, which is created where it is empty; return one
    row of counts per table.

    The whole copy is one transaction of the target. Rows that the target has already must be the
    same, else ConflictError is raised. Fields that change with time (a study's file, a run's
    status) may differ only with ``prefer``, which names the side whose state is kept.
    """
    with Store.open(source, read_only=True) as here, Store.open(target, create=True) as there:
        if here.url_masked == there.url_masked:
            raise StoreError(f"source and target are both {here.url_masked}; name two databases")
        with here.snapshot(), there.transaction():
            types = record_types()
            total = sum(here.count(record_type) for record_type in types)
            ids: Ids = {}
            with progress_bar(total=total, unit="rows", desc="copy", disable=None) as bar:
                return [
                    _copy_table(here, there, record_type, ids, prefer, bar) for record_type in types
                ]


def _copy_table(
    here: Store, there: Store, record_type: type[R], ids: Ids, prefer: Preference, bar: Any
) -> dict[str, Any]:
    found = codec(record_type)
    rows = here.iterate(record_type, batch=BATCH)
    mapping = ids.setdefault(found.name, {})
    read = added = 0
    while batch := list(islice(rows, BATCH)):
        moved = [_moved(found, record, ids) for record in batch]
        new = there.add_all(moved)
        if found.is_parent or (record_type.mutable and new < len(batch)):
            for old, record, stored in zip(batch, moved, there.stored(moved), strict=True):
                mapping[old.id or 0] = stored.id or 0
                _reconcile(there, found, record, stored, prefer)
        read, added = read + len(batch), added + new
        bar.update(len(batch))
    return {"table": found.name, "rows": read, "added": added}


def _moved(found: RecordCodec[R], record: R, ids: Ids) -> R:
    """Return ``record`` with the ids that its references have in the target."""
    references = {
        field: ids[table].get(getattr(record, field)) for field, table in found.parents.items()
    }
    return replace(record, id=None, **references)


def _reconcile(
    there: Store, found: RecordCodec[R], record: R, stored: R, prefer: Preference
) -> None:
    """Make the fields that change with time those of the preferred side; raise ConflictError where
    they differ and none is preferred.
    """
    mutable = found.record_type.mutable
    differing = sorted(
        name for name in mutable if not same_value(getattr(record, name), getattr(stored, name))
    )
    if prefer == "source" and differing:
        there.update(
            found.record_type, stored.id or 0, **{name: getattr(record, name) for name in differing}
        )
    telling = [name for name in differing if name not in found.record_type.volatile]
    if prefer is None and telling:
        key = ", ".join(f"{name}={getattr(record, name)}" for name in found.record_type.key)
        source, target = (shown(getattr(side, telling[0])) for side in (record, stored))
        raise ConflictError(
            f"'{found.name}' of {key} has {telling[0]} = {source} in the source and {target} in the target; "
            "choose whose state to keep with: --prefer source or --prefer target"
        )


def differences(one: Store, other: Store, ignore_volatile: bool = True) -> list[str]:
    """Return the differences of two stores by natural keys and values, one sentence each; the list
    is empty where they are the same.

    ``ignore_volatile`` leaves out timing, memory and provenance.
    """
    found: list[str] = []
    with one.snapshot(), other.snapshot():
        keys: tuple[Keys, Keys] = ({}, {})
        for record_type in record_types():
            table = codec(record_type)
            theirs = dict(_contents(other, table, keys[1], ignore_volatile))
            if ignore_volatile and table.only_volatile:
                theirs = {}
            for key, values in _contents(one, table, keys[0], ignore_volatile):
                if ignore_volatile and table.only_volatile:
                    continue
                found.extend(_compare(table.name, key, values, theirs.pop(key, None)))
            found.extend(f"{table.name} {key}: only in the second store" for key in theirs)
    return found


def _contents(
    store: Store,
    table: RecordCodec[R],
    keys: Keys,
    ignore_volatile: bool,
) -> Iterator[tuple[tuple[Any, ...], dict[str, Any]]]:
    """Yield (natural key, values) of every row; references are given as natural keys."""
    own = keys.setdefault(table.name, {})
    skipped = {*table.record_type.key, *(table.record_type.volatile if ignore_volatile else ())}
    names = [field.name for field in table.fields if field.name not in skipped]
    for record in store.iterate(table.record_type):
        key = tuple(_resolved(table, record, name, keys) for name in table.record_type.key)
        if table.is_parent:
            own[record.id or 0] = key
        yield key, {name: _resolved(table, record, name, keys) for name in names}


def _resolved(table: RecordCodec[R], record: R, name: str, keys: Keys) -> Any:
    value = getattr(record, name)
    return (
        keys[table.parents[name]][value] if name in table.parents and value is not None else value
    )


def _compare(
    table: str, key: tuple[Any, ...], mine: dict[str, Any], theirs: dict[str, Any] | None
) -> Sequence[str]:
    if theirs is None:
        return [f"{table} {key}: only in the first store"]
    pairs = ((name, value, theirs[name]) for name, value in mine.items())
    return [
        f"{table} {key}: {name} is {shown(a)} and {shown(b)}"
        for name, a, b in pairs
        if not same_value(a, b)
    ]
