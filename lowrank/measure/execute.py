"""Doing the missing work: one transaction a unit, a failed unit does not stop the others, nothing
is measured twice.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from lowrank.errors import ClaimLostError, ConflictError, LowrankError, StoreError
from lowrank.measure.bench import Workbench
from lowrank.measure.plan import Task
from lowrank.metrics.base import Curve, Expected, Result, Spectrum, Value
from lowrank.store import Store, records
from lowrank.store.claims import Claim


@dataclass
class Outcome:
    """What a call of :func:`measure` did: units and rows stored, sentences of what failed, was
    blocked or left alone.
    """

    units: int = 0
    rows: int = 0
    failed: list[str] = field(default_factory=list)
    blocked: list[str] = field(default_factory=list)
    left_alone: list[str] = field(default_factory=list)
    loads: int = 0
    helper: bool = False  # this process computed with another one, which stored and tells

    def row(self) -> dict[str, Any]:
        """The counts for people."""
        counts = {
            "failed": len(self.failed),
            "blocked": len(self.blocked),
            "left_alone": len(self.left_alone),
        }
        return {"units": self.units, "rows": self.rows, **counts, "checkpoints_loaded": self.loads}

    @property
    def complete(self) -> bool:
        """Whether nothing that was asked for is missing."""
        return not (self.failed or self.blocked or self.left_alone)


def share_of(task: Task, world: int) -> int:
    """The process that takes a task: all work of a run's checkpoint goes to one, whatever the
    others have done.
    """
    return (task.unit.checkpoint.run_id * 1_000_003 + task.unit.checkpoint.step) % world


def compute(task: Task, bench: Workbench) -> list[Result]:
    """The results of a unit, computed together by all processes of the bench's team."""
    return bench.team.together(
        lambda: list(task.variant.lens.compute(task.unit, bench, task.variant.settings))
    )


def attempt(
    store: Store, bench: Workbench, task: Task, made_by: int | None, outcome: Outcome, claim: Claim
) -> None:
    """Compute and store one unit; a failure is a row of its own."""
    try:
        results = compute(task, bench)
        outcome.rows += store_results(store, task, results, made_by, claim)
        outcome.units += 1
    except ClaimLostError:
        raise
    except StoreError as error:
        if not isinstance(error, ConflictError):
            raise
        _fail(store, task, str(error), outcome)
    except LowrankError as error:
        _fail(store, task, str(error), outcome)
    except Exception as error:
        _fail(store, task, f"{type(error).__name__}: {error}", outcome)


def _fail(store: Store, task: Task, error: str, outcome: Outcome) -> None:
    error = error.removeprefix(f"{task.unit.label}: ")
    outcome.failed.append(f"{task.label}: {error}")
    known = store.first(records.WorkUnit, unit_key=task.unit_key)
    attempts = (known.attempts if known else 0) + 1
    store.put(
        records.WorkUnit(
            unit_key=task.unit_key,
            kind="measure",
            status="failed",
            attempts=attempts,
            error=error,
            study_id=task.study_id,
        )
    )


def store_results(
    store: Store, task: Task, results: list[Result], made_by: int | None, claim: Claim | None = None
) -> int:
    """Store the rows that the task lacks in one transaction, in which the claim is confirmed; the
    number of new rows.
    """
    found, announced = (
        Expected.of(results),
        task.variant.lens.expected(task.unit, task.variant.settings),
    )
    if found != announced:
        odd = min(map(str, [*(found - announced), *(announced - found)]))
        raise LowrankError(
            f"the lens '{task.variant.lens.name()}' has a fault: it announces other rows than it computes ({odd})"
        )
    lacking = [result for result in results if Expected.of([result]) & task.missing]
    with store.transaction():
        if claim is not None:
            claim.confirm()
        evaluation = _stored_set(store, task.evaluation.record) if task.evaluation else None
        protocol = store.add(
            replace(task.protocol, evaluation_set_id=evaluation.id if evaluation else None)
        )
        if task.error:
            store.forget_unit(task.unit_key)
        rows = rows_of(task, lacking, protocol.id or 0, made_by)
        known = stored_positions(store, task, protocol.id) if task.missing.spectra else frozenset()
        return store.add_all(row for row in rows if is_missing(row, task, known))


def is_missing(
    row: records.Record, task: Task, positions: frozenset[tuple[str, int, str, int]]
) -> bool:
    """Whether a row of a result that is not there as a whole is itself not there: the rest of a
    curve or spectrum may have been computed on another machine, to other last digits.
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
    """(matrix, layer, module, position) of the unit's singular values that are stored."""
    point, reference = task.unit.checkpoint, task.unit.reference
    rows = store.iterate(
        records.SingularValue,
        checkpoint_id=point.checkpoint_id,
        protocol_id=protocol_id,
        reference_checkpoint_id=reference.checkpoint_id if reference else None,
    )
    return frozenset((row.matrix, row.layer, row.module, row.position) for row in rows)


def _stored_set(store: Store, record: records.EvaluationSet) -> records.EvaluationSet:
    """The row of an evaluation set; the same content may be there already under the name of another
    purpose.
    """
    return store.first(records.EvaluationSet, sha256=record.sha256) or store.add(record)


def rows_of(
    task: Task, results: Iterable[Result], protocol_id: int, made_by: int | None
) -> list[records.Record]:
    """The records of computed results, table by table."""
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
