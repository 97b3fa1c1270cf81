"""The stages of a study: which items of each are missing, and doing them in order.

There is no queue: what is missing is the difference between what the file asks for and the rows
that exist. Stages run in the order train, measure, evaluate, predict, report; a failed unit does
not stop the others.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lowrank.store import Store, records
from lowrank.study.plan import Plan, register

if TYPE_CHECKING:
    from lowrank.work import Item

RECIPE = ("method", "variant", "scale", "seed")


@dataclass
class Outcome:
    """What a call of :func:`run_study` did.

    ``done`` counts units by stage; ``failures`` and ``notes`` are sentences; ``report`` is the
    page that was written, where one was.
    """

    done: dict[str, int] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    report: Path | None = None


@dataclass(frozen=True)
class StudyStage:
    """One stage of a study.

    ``run(store, plan, outcome, retry_failed)`` does what is missing and returns the number of units
    that it did. ``items(store, plan)`` lists the missing work of a stage that workers share by
    claiming it; a stage without ``items`` is done by one process. ``reopen(store, item)`` puts a
    failed item back into the work. ``launches`` marks a stage each of whose items needs a separate
    launch over whole machines.
    """

    name: str
    run: Callable[[Store, Plan, Outcome, bool], int]
    items: Callable[[Store, Plan], list[Item[Any]]] | None = None
    launches: bool = False
    reopen: Callable[[Store, Item[Any]], object] = lambda store, item: store.forget_unit(item.key)

    @property
    def shared(self) -> bool:
        """Whether workers share the stage."""
        return self.items is not None

    def missing(self, store: Store, plan: Plan) -> list[Item[Any]]:
        """Return the missing items of a shared stage; a stage that is not shared has none."""
        return self.items(store, plan) if self.items is not None else []

    def unfinished(self, store: Store, plan: Plan) -> int:
        """Return the number of groups of items (runs, checkpoints) with work that can be done."""
        found = self.missing(store, plan)
        return len({item.group for item in found if not (item.error or item.blocked)})

    def failed(self, store: Store, plan: Plan) -> list[str]:
        """Return a sentence for each failed item; a diverged run is a result, not a failure."""
        found = [item for item in self.missing(store, plan) if item.error and not item.blocked]
        return [f"{item.label}: {item.error}" for item in found if not _diverged(item)]


def run_study(
    store: Store, plan: Plan, only: str | Collection[str] | None = None, retry_failed: bool = False
) -> Outcome:
    """Do all missing work of a study in order, or only that of the stages ``only``.

    Any number of processes may call this at once: they share the work, and each goes on to the next
    stage when nothing is left of the one before. With ``retry_failed``, items that failed earlier
    are tried again.
    """
    chosen = (only,) if isinstance(only, str) else tuple(only or STAGES)
    register(store, plan)
    outcome = Outcome()
    for stage in STAGES.values():
        if stage.name in chosen:
            outcome.done[stage.name] = stage.run(store, plan, outcome, retry_failed)
    return outcome


def plan_rows(store: Store, plan: Plan) -> Iterator[dict[str, Any]]:
    """Yield the missing work as rows, one per unit; write nothing.

    Work on checkpoints that do not exist yet is not listed.
    """
    from lowrank.study.training import missing_training

    for missing in missing_training(store, plan):
        config = missing.config
        state = missing.status if missing.status == "cancelled" else missing.reason
        recipe = {name: getattr(config, name) for name in RECIPE}
        yield {"stage": "train", **recipe, "step": None, "work": "", "state": state}
    for name in ("measure", "evaluate"):
        for item in STAGES[name].missing(store, plan):
            row = item.work.row()
            recipe = {column: row[column] for column in RECIPE}
            work, state = _what(row), row["detail"]
            yield {"stage": name, **recipe, "step": row["step"], "work": work, "state": state}


def _what(row: dict[str, Any]) -> str:
    if row["stage"] == "evaluate":
        return f"{row['suite']}/{row['task']}"
    against = f" against {row['reference']}" if row["reference"] else ""
    return f"{row['lens']} ({row['protocol']}){against}"


def forget_failures(store: Store, plan: Plan, stages: Collection[str] = ()) -> None:
    """Put failed items back into the study's work: all of them, or those of ``stages``."""
    for stage in STAGES.values():
        if not stages or stage.name in stages:
            for item in stage.missing(store, plan):
                if item.error:
                    stage.reopen(store, item)


def _diverged(item: Item[Any]) -> bool:
    from lowrank.study.training import MissingRun

    work = item.work
    return (
        isinstance(work, MissingRun) and work.run is not None and work.run.failed_step is not None
    )


def _training_items(store: Store, plan: Plan) -> list[Item[Any]]:
    from lowrank.study.training import TrainStage

    return list(TrainStage(store, plan).items())


def _train(store: Store, plan: Plan, outcome: Outcome, retry_failed: bool) -> int:
    """Train the unfinished runs, one after the other in this process."""
    from lowrank.study.training import TrainStage, clear_resume_points
    from lowrank.work import Worker, do_missing

    stage = TrainStage(store, plan)
    worker = Worker(store, stage, retry_failed=retry_failed)
    done = do_missing(stage, worker)
    clear_resume_points(store, plan, plan.runs)
    outcome.failures += done.failed
    outcome.notes += done.notes
    for item in worker.left_alone:
        left = outcome.notes if _diverged(item) else outcome.failures
        left.append(
            f"{item.label} failed earlier and was left alone: {item.error} (--retry-failed tries it again)"
        )
    return done.units


def _measuring_items(store: Store, plan: Plan) -> list[Item[Any]]:
    from lowrank.measure import MeasureStage

    return list(MeasureStage(store, plan.study, plan.root).items())


def _measure(store: Store, plan: Plan, outcome: Outcome, retry_failed: bool) -> int:
    from lowrank.measure import measure

    measured = measure(store, plan.study, plan.root, retry_failed=retry_failed)
    outcome.failures += measured.failed + measured.left_alone
    outcome.notes += measured.blocked + measured.notes
    return measured.units


def _evaluating_items(store: Store, plan: Plan) -> list[Item[Any]]:
    from lowrank.evaluate import EvaluateStage

    return list(EvaluateStage(store, plan.study, plan.root, None).items())


def _evaluate(store: Store, plan: Plan, outcome: Outcome, retry_failed: bool) -> int:
    from lowrank.evaluate import evaluate

    evaluated = evaluate(store, plan.study, plan.root, retry_failed=retry_failed)
    outcome.failures += evaluated.failed + evaluated.left_alone
    outcome.notes += evaluated.notes
    return evaluated.units


def _predict(store: Store, plan: Plan, outcome: Outcome, retry_failed: bool) -> int:
    """Fit the predictors, except those whose rows have not changed since the last fit.

    Too few rows for a fit is worth a note; it is not a failure.
    """
    from lowrank.predict import PredictError, predict

    try:
        summary = predict(store, plan.study.name)
    except PredictError as error:
        outcome.notes.append(f"predict: {error}")
        return 0
    outcome.notes += [f"predict: {note}" for note in summary.notes]
    return summary.added


def _report(store: Store, plan: Plan, outcome: Outcome, retry_failed: bool) -> int:
    from lowrank import report

    outcome.report = report.write(store, plan.study.name, plan.root / "report")
    return 1


def _plan_again(store: Store, item: Item[Any]) -> None:
    store.update(records.Run, item.work.run.id, status="planned")


STAGES: dict[str, StudyStage] = {
    stage.name: stage
    for stage in (
        StudyStage("train", _train, _training_items, launches=True, reopen=_plan_again),
        StudyStage("measure", _measure, _measuring_items),
        StudyStage("evaluate", _evaluate, _evaluating_items),
        StudyStage("predict", _predict),
        StudyStage("report", _report),
    )
}
