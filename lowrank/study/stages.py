"""The stages of a study, and doing what is missing of them in order.

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


@dataclass
class Outcome:
    """What a call of :func:`run_study` did: counts by stage, and the sentences of what failed."""

    done: dict[str, int] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    report: Path | None = None


@dataclass(frozen=True)
class StudyStage:
    """One stage of a study.

    ``run(store, plan, outcome, retry_failed)`` does what is missing of it and returns how many
    units it did. ``items(store, plan)`` gives the missing work of a stage that workers share by
    claiming it, ``reopen`` puts one that failed back into it; ``launches`` says that each item is a
    launch of its own over whole machines; a
    stage without items is done by one process.
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
        """Return the missing items of a shared stage; none of any other."""
        return self.items(store, plan) if self.items is not None else []

    def unfinished(self, store: Store, plan: Plan) -> int:
        """Return how many groups of items (runs, checkpoints) lack something that can be done."""
        found = self.missing(store, plan)
        return len({item.group for item in found if not (item.error or item.blocked)})

    def failed(self, store: Store, plan: Plan) -> list[str]:
        """Return a sentence for each failed item; a run that diverged is a result."""
        found = [item for item in self.missing(store, plan) if item.error and not item.blocked]
        return [f"{item.label}: {item.error}" for item in found if not _diverged(item)]


def run_study(
    store: Store, plan: Plan, only: str | Collection[str] | None = None, retry_failed: bool = False
) -> Outcome:
    """Do all missing work of a study in order, or that of the stages ``only``.

    Any number of processes may call this at once: they share the work, and each goes on to the next
    stage when nothing is left of the one before.
    """
    chosen = (only,) if isinstance(only, str) else tuple(only or STAGES)
    register(store, plan)
    outcome = Outcome()
    for stage in STAGES.values():
        if stage.name in chosen:
            outcome.done[stage.name] = stage.run(store, plan, outcome, retry_failed)
    return outcome


def plan_rows(store: Store, plan: Plan) -> Iterator[dict[str, Any]]:
    """Return the missing work as rows, one a unit; nothing is written.

    Checkpoints that do not exist yet are not units yet.
    """
    from lowrank.study.training import missing_training

    for missing in missing_training(store, plan):
        config = missing.config
        state = missing.status if missing.status == "cancelled" else missing.reason
        recipe = (config.method, config.variant, config.scale, config.seed)
        yield _row("train", *recipe, None, "", state)
    for name in ("measure", "evaluate"):
        for item in STAGES[name].missing(store, plan):
            row = item.work.row()
            recipe = (row["method"], row["variant"], row["scale"], row["seed"])
            yield _row(name, *recipe, row["step"], _what(row), row["detail"])


def _what(row: dict[str, Any]) -> str:
    if row["stage"] == "evaluate":
        return f"{row['suite']}/{row['task']}"
    against = f" against {row['reference']}" if row["reference"] else ""
    return f"{row['lens']} ({row['protocol']}){against}"


def _row(
    stage: str,
    method: str,
    variant: str,
    scale: str,
    seed: int,
    step: int | None,
    work: str,
    state: str,
) -> dict[str, Any]:
    return {
        "stage": stage,
        "method": method,
        "variant": variant,
        "scale": scale,
        "seed": seed,
        "step": step,
        "work": work,
        "state": state,
    }


def forget_failures(store: Store, plan: Plan, stages: Collection[str] = ()) -> None:
    """Put what failed back into the study's work, or into that of ``stages``."""
    for stage in STAGES.values():
        if not stages or stage.name in stages:
            for item in stage.missing(store, plan):
                if item.error:
                    stage.reopen(store, item)


def _diverged(item: Item[Any]) -> bool:
    run = getattr(item.work, "run", None)
    return isinstance(run, records.Run) and run.failed_step is not None


def _training_items(store: Store, plan: Plan) -> list[Item[Any]]:
    from lowrank.study.training import Training

    return list(Training(store, plan).items())


def _train(store: Store, plan: Plan, outcome: Outcome, retry_failed: bool) -> int:
    """Train what is not trained, one run after the other in this process."""
    from lowrank.study.training import Training, clear_resume_points
    from lowrank.work import Worker, do_missing

    stage = Training(store, plan)
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
    from lowrank.measure import Measuring

    return list(Measuring(store, plan.study, plan.root).items())


def _measure(store: Store, plan: Plan, outcome: Outcome, retry_failed: bool) -> int:
    from lowrank.measure import measure

    measured = measure(store, plan.study, plan.root, retry_failed=retry_failed)
    outcome.failures += measured.failed + measured.left_alone
    outcome.notes += measured.blocked + measured.notes
    return measured.units


def _evaluating_items(store: Store, plan: Plan) -> list[Item[Any]]:
    from lowrank.evaluate import Evaluating

    return list(Evaluating(store, plan.study, plan.root, None).items())


def _evaluate(store: Store, plan: Plan, outcome: Outcome, retry_failed: bool) -> int:
    from lowrank.evaluate import evaluate

    evaluated = evaluate(store, plan.study, plan.root, retry_failed=retry_failed)
    outcome.failures += evaluated.failed + evaluated.left_alone
    outcome.notes += evaluated.notes
    return evaluated.units


def _predict(store: Store, plan: Plan, outcome: Outcome, retry_failed: bool) -> int:
    """Fit the predictors; fits of rows that have not changed are not repeated.

    Too few rows for a fit is something to say, not a failure.
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
