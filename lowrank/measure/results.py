"""Storing the computed results of a unit: the rows that the store lacks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, replace
from typing import Any

from lowrank.errors import LowrankError
from lowrank.measure.plan import Task
from lowrank.metrics.base import Curve, Expected, Result, Spectrum, Value
from lowrank.store import Store, records


def save_results(store: Store, task: Task, results: list[Result], made_by: int | None) -> int:
    """Store the rows that ``task`` lacks, inside a transaction; return the number of new rows.

    Raises :class:`LowrankError` for a lens that computes other rows than it announces.
    """
    lens = task.variant.lens
    found, announced = Expected.of(results), lens.expected(task.unit, task.variant.settings)
    if found != announced:
        odd = min(map(str, [*(found - announced), *(announced - found)]))
        raise LowrankError(
            f"the lens '{lens.name()}' has a fault: it announces other rows than it computes ({odd})"
        )
    lacking = [result for result in results if Expected.of([result]) & task.missing]
    evaluation = _stored_set(store, task.evaluation.record) if task.evaluation else None
    protocol = store.add(
        replace(task.protocol, evaluation_set_id=evaluation.id if evaluation else None)
    )
    rows = rows_of(task, lacking, protocol.id or 0, made_by)
    known = stored_positions(store, task, protocol.id) if task.missing.spectra else frozenset()
    return store.add_all(row for row in rows if is_missing(row, task, known))


def is_missing(
    row: records.Record, task: Task, positions: frozenset[tuple[str, int, str, int]]
) -> bool:
    """Return whether a row of an incomplete result is itself missing.

    The other rows of a curve or spectrum may come from another machine, with other last digits, and
    are kept. ``positions`` are the stored (matrix, layer, module, position) of singular values.
    """
    match row:
        case records.CurvePoint():
            return (row.curve, row.direction_index, row.position) in task.missing.points
        case records.SingularValue():
            return (row.matrix, row.layer, row.module, row.position) not in positions
        case _:
            return True


def stored_positions(
    store: Store, task: Task, protocol_id: int | None
) -> frozenset[tuple[str, int, str, int]]:
    """Return (matrix, layer, module, position) of the unit's stored singular values."""
    point, reference = task.unit.checkpoint, task.unit.reference
    rows = store.iterate(
        records.SingularValue,
        checkpoint_id=point.checkpoint_id,
        protocol_id=protocol_id,
        reference_checkpoint_id=reference.checkpoint_id if reference else None,
    )
    return frozenset((row.matrix, row.layer, row.module, row.position) for row in rows)


def _stored_set(store: Store, record: records.EvaluationSet) -> records.EvaluationSet:
    """Return the stored row of an evaluation set, added if its content is not there yet.

    The same content may be stored under the name of another purpose.
    """
    return store.first(records.EvaluationSet, sha256=record.sha256) or store.add(record)


def rows_of(
    task: Task, results: Iterable[Result], protocol_id: int, made_by: int | None
) -> list[records.Record]:
    """Return the records of computed results, sorted by table."""
    reference = task.unit.reference.checkpoint_id if task.unit.reference else None
    common: dict[str, Any] = {
        "checkpoint_id": task.unit.checkpoint.checkpoint_id,
        "reference_checkpoint_id": reference,
        "protocol_id": protocol_id,
    }
    made: list[records.Record] = []
    for result in results:
        match result:
            case Value():
                made.append(records.MetricValue(**common, **asdict(result), provenance_id=made_by))
            case Curve():
                made += _points(result, common)
            case Spectrum():
                made += [
                    records.SingularValue(
                        **common,
                        matrix=result.matrix,
                        layer=result.layer,
                        module=result.module,
                        position=position,
                        value=value,
                    )
                    for position, value in enumerate(result.values)
                ]
    return sorted(made, key=lambda record: type(record).__name__)


def _points(curve: Curve, common: dict[str, Any]) -> Iterator[records.CurvePoint]:
    variances: Sequence[float | None] = curve.variances or [None] * len(curve.offsets)
    for position, (offset, mean, variance) in enumerate(
        zip(curve.offsets, curve.means, variances, strict=True)
    ):
        yield records.CurvePoint(
            **common,
            curve=curve.curve,
            direction_index=curve.direction_index,
            position=position,
            offset_value=offset,
            mean=mean,
            variance=variance,
            n=curve.n,
        )
