"""The results that a store has, as plain tuples: the stages of a study compare them with what the
study asks for, and reports leave out superseded runs by them.

Only this package and ``sql/`` contain SQL statements. A protocol without an id is one that the
store does not have: nothing is stored under it.
"""

from __future__ import annotations

from typing import NamedTuple

from lowrank.store.api import Store

Pair = tuple[int, int | None]  # ids of a checkpoint and of its reference
Task = tuple[int, str]  # id of a checkpoint and name of a downstream task


class MetricKeys(NamedTuple):
    """Keys of the rows that a checkpoint has under a protocol.

    ``values`` are (metric, layer, module), ``points`` (curve, direction index, position) and
    ``spectra`` (matrix, layer, module, number of singular values).
    """

    values: frozenset[tuple[str, int, str]]
    points: frozenset[tuple[str, int, int]]
    spectra: frozenset[tuple[str, int, str, int]]


def study_metric_keys(
    store: Store, protocol_id: int | None, study_id: int | None
) -> dict[Pair, MetricKeys]:
    """Return the keys of all metric rows of a study's checkpoints under a protocol."""
    checkpoints = (
        "SELECT c.id FROM checkpoint c JOIN run r ON r.id = c.run_id WHERE r.study_id = :of"
    )
    return _metric_keys(store, protocol_id, f"checkpoint_id IN ({checkpoints})", study_id)


def checkpoint_metric_keys(
    store: Store, protocol_id: int | None, checkpoint_id: int
) -> dict[Pair, MetricKeys]:
    """Return the keys of all metric rows of one checkpoint under a protocol."""
    return _metric_keys(store, protocol_id, "checkpoint_id = :of", checkpoint_id)


def _metric_keys(
    store: Store, protocol_id: int | None, condition: str, of: int | None
) -> dict[Pair, MetricKeys]:
    """Return the keys of rows that meet ``condition`` on ``:of``."""
    if protocol_id is None:
        return {}
    where = f"WHERE protocol_id = :protocol AND {condition}"
    pair = "checkpoint_id, reference_checkpoint_id"
    statements = (
        f"SELECT {pair}, metric, layer, module FROM metric_value {where}",
        f"SELECT {pair}, curve, direction_index, position FROM curve_point {where}",
        # A spectrum that lacks one of its values has another length than the lens announces.
        f"SELECT {pair}, matrix, layer, module, COUNT(*) FROM singular_value {where} "
        f"GROUP BY {pair}, matrix, layer, module",
    )
    found: dict[Pair, tuple[set[tuple], ...]] = {}
    for kind, statement in enumerate(statements):
        _, rows = store.select(statement, {"protocol": protocol_id, "of": of})
        for checkpoint, reference, *key in rows:
            kinds = found.setdefault((checkpoint, reference), (set(), set(), set()))
            kinds[kind].add(tuple(key))
    return {pair_: MetricKeys(*map(frozenset, kinds)) for pair_, kinds in found.items()}


def score_sizes(store: Store, protocol_id: int | None) -> dict[Task, dict[str, int]]:
    """Return the number of items behind every downstream score under a protocol, by metric."""
    if protocol_id is None:
        return {}
    _, rows = store.select(
        "SELECT checkpoint_id, task, metric, n FROM downstream_score WHERE protocol_id = :protocol",
        {"protocol": protocol_id},
    )
    found: dict[Task, dict[str, int]] = {}
    for checkpoint, task, metric, n in rows:
        found.setdefault((checkpoint, task), {})[metric] = n
    return found


def item_counts(store: Store, protocol_id: int | None) -> dict[tuple[int, str, str], int]:
    """Return how many items are stored one by one, by (checkpoint, task, metric)."""
    if protocol_id is None:
        return {}
    key = "checkpoint_id, task, metric"
    _, rows = store.select(
        f"SELECT {key}, COUNT(*) FROM downstream_item WHERE protocol_id = :protocol GROUP BY {key}",
        {"protocol": protocol_id},
    )
    return {(checkpoint, task, metric): n for checkpoint, task, metric, n in rows}


def stored_items(
    store: Store, checkpoint_id: int | None, protocol_id: int | None, task: str
) -> set[tuple[str, str]]:
    """Return the (metric, item) pairs of a checkpoint's task that are stored one by one."""
    _, rows = store.select(
        "SELECT metric, item FROM downstream_item "
        "WHERE checkpoint_id = :checkpoint AND protocol_id = :protocol AND task = :task",
        {"checkpoint": checkpoint_id, "protocol": protocol_id, "task": task},
    )
    return {(metric, item) for metric, item in rows}


def current_runs(store: Store, study_id: int | None) -> set[int]:
    """Return the ids of a study's runs that no newer run of the same method, variant, scale and
    seed has superseded.
    """
    _, rows = store.select(
        "SELECT run_id FROM current_run_view WHERE study_id = :study_id", {"study_id": study_id}
    )
    return {int(run) for (run,) in rows}
