"""A study: the work that its file asks for, what of it is missing, and doing it in order.

There is no queue: the plan is the difference between what the file asks for and the rows that
exist. Stages run in the order train, measure, evaluate, predict, report; a failed unit does not
stop the others.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lowrank.config import RunConfig, Study, load_study, resolve_runs
from lowrank.config.resolve import content_hash
from lowrank.errors import BusyError, ClaimLostError, DiskError, LowrankError, StoreError
from lowrank.progress import waiting
from lowrank.store import Store, records
from lowrank.store.claims import Claim, Claims, share

if TYPE_CHECKING:
    from lowrank.train.session import Job


@dataclass(frozen=True)
class Plan:
    """A study file read, checked and resolved; nothing is done yet."""

    study: Study
    file: str
    root: Path
    runs: list[RunConfig]

    @classmethod
    def of(cls, file: str | Path, overrides: Sequence[str] = ()) -> Plan:
        """The plan of a study file with ``key=value`` overrides."""
        study = load_study(file, overrides)
        return cls(study, str(file), study_root(study), resolve_runs(study, str(file)))

    @property
    def database(self) -> str:
        """URL of the study's own SQLite file, the default store."""
        return f"sqlite:///{self.root / 'lowrank.db'}"


@dataclass
class Outcome:
    """What a call of :func:`run_study` did: counts by stage, and the sentences of what failed."""

    done: dict[str, int] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    report: Path | None = None


def study_root(study: Study) -> Path:
    """The study's folder: checkpoints, its default database and its report."""
    return Path(study.output or f"outputs/{study.name}")


def register(store: Store, plan: Plan) -> tuple[records.Study, list[tuple[RunConfig, records.Run]]]:
    """The study's row and a row for each of its runs, made where they are missing."""
    body = plan.study.model_dump(mode="json")
    root = str(plan.root.resolve())
    row = store.put(
        records.Study(name=plan.study.name, config=body, config_hash=content_hash(body), root=root)
    )
    known = {run.config_hash: run for run in store.find(records.Run, study_id=row.id)}
    runs = []
    for config in plan.runs:
        run = known.get(config.fingerprint()) or store.add(new_run(config, row))
        if run.config != config.model_dump(mode="json"):
            run = store.update(records.Run, run.id, config=config.model_dump(mode="json"))
        runs.append((config, run))
    return row, runs


def new_run(config: RunConfig, study: records.Study) -> records.Run:
    """The row of a run that nobody has started."""
    from lowrank.methods.base import create

    rate = config.training.learning_rate
    return records.Run(
        study_id=study.id or 0,
        config_hash=config.fingerprint(),
        method=config.method,
        variant=config.variant,
        scale=config.scale,
        seed=config.seed,
        data_seed=config.data_seed,
        init_seed=config.init_seed,
        rank=config.settings.get("rank"),
        config=config.model_dump(mode="json"),
        base_learning_rate=rate,
        effective_learning_rate=rate * create(config.method, config.settings).update_scale,
        total_steps=config.training.updates,
        precision=config.training.precision,
    )


def missing_training(store: Store, plan: Plan) -> list[tuple[RunConfig, records.Run | None, str]]:
    """Runs that are not finished, each with its row, if any, and the reason."""
    row = store.first(records.Study, name=plan.study.name)
    known = (
        {run.config_hash: run for run in store.find(records.Run, study_id=row.id)} if row else {}
    )
    kept: dict[int, set[int]] = {}
    for saved in (
        store.find(records.Checkpoint, run_id=[run.id for run in known.values()]) if known else ()
    ):
        kept.setdefault(saved.run_id, set()).add(saved.step)
    missing: list[tuple[RunConfig, records.Run | None, str]] = []
    for config in plan.runs:
        run = known.get(config.fingerprint())
        if run is None:
            missing.append((config, None, "not started"))
            continue
        lacking = set(config.training.checkpoint_steps()) - kept.get(run.id or 0, set())
        if run.status == "failed":
            missing.append((config, run, f"failed: {run.error}"))
        elif run.status != "done":
            missing.append((config, run, "not started" if run.status == "planned" else run.status))
        elif lacking:
            missing.append(
                (config, run, f"checkpoints missing: {', '.join(map(str, sorted(lacking)))}")
            )
    return missing


def plan_rows(store: Store, plan: Plan) -> Iterator[dict[str, Any]]:
    """The missing work, one row a unit; nothing is written. Checkpoints that do not exist yet are
    not units yet.
    """
    from lowrank.evaluate import plan as evaluate_plan
    from lowrank.measure import plan as measure_plan

    for config, run, reason in missing_training(store, plan):
        yield _row(
            "train",
            config.method,
            config.variant,
            config.scale,
            config.seed,
            None,
            "",
            "cancelled" if run and run.status == "cancelled" else reason,
        )
    for task in measure_plan(store, plan.study, plan.root):
        row = task.row()
        what = f"{row['lens']} ({row['protocol']})" + (
            f" against {row['reference']}" if row["reference"] else ""
        )
        yield _row(
            "measure",
            row["method"],
            row["variant"],
            row["scale"],
            row["seed"],
            row["step"],
            what,
            row["detail"],
        )
    for unit in evaluate_plan(store, plan.study):
        row = unit.row()
        what = f"{row['suite']}/{row['task']}"
        yield _row(
            "evaluate",
            row["method"],
            row["variant"],
            row["scale"],
            row["seed"],
            row["step"],
            what,
            row["detail"],
        )


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


def status_rows(store: Store, plan: Plan) -> Iterator[dict[str, Any]]:
    """One row a run: its state, how far it is, and how many rows each kind of result has."""
    row = store.first(records.Study, name=plan.study.name)
    known = (
        {run.config_hash: run for run in store.find(records.Run, study_id=row.id)} if row else {}
    )
    for config in plan.runs:
        run = known.get(config.fingerprint())
        saved = store.find(records.Checkpoint, run_id=run.id) if run else []
        last = saved[-1] if saved else None
        ids = [c.id for c in saved]
        yield {
            "method": config.method,
            "variant": config.variant,
            "scale": config.scale,
            "seed": config.seed,
            "status": run.status if run else "planned",
            "step": max((c.step for c in saved), default=0),
            "of": config.training.updates,
            "checkpoints": f"{len(saved)}/{len(config.training.checkpoint_steps())}",
            "validation_loss": last.validation_loss if last else None,
            "metric_values": store.count(records.MetricValue, checkpoint_id=ids) if ids else 0,
            "downstream_scores": store.count(records.DownstreamScore, checkpoint_id=ids)
            if ids
            else 0,
            "error": run.error if run else "",
        }


def run_study(
    store: Store, plan: Plan, only: str | Collection[str] | None = None, retry_failed: bool = False
) -> Outcome:
    """Do all missing work of a study in order, or that of the stages ``only``; see
    :class:`Outcome`.

    Any number of processes may call this at once: they share the work, and each goes on to the next
    stage when nothing is left of the one before.
    """
    chosen = (only,) if isinstance(only, str) else tuple(only or STAGES)
    register(store, plan)
    outcome = Outcome()
    for stage, work in STAGES.items():
        if stage in chosen:
            outcome.done[stage] = work(store, plan, outcome, retry_failed)
    return outcome


def forget_failures(
    store: Store, plan: Plan, stages: Collection[str] = ("train", "measure", "evaluate")
) -> None:
    """Put what failed back into the study's work."""
    if "train" in stages:
        for _, run, _ in missing_training(store, plan):
            if run is not None and run.status == "failed":
                store.update(records.Run, run.id, status="planned")
    if "measure" in stages:
        from lowrank.measure import plan as measure_plan

        for task in measure_plan(store, plan.study, plan.root):
            if task.error:
                store.forget_unit(task.unit_key)
    if "evaluate" in stages:
        from lowrank.evaluate.plan import plan as evaluate_plan

        for unit in evaluate_plan(store, plan.study):
            if unit.error:
                store.forget_unit(unit.unit_key)


def _train(store: Store, plan: Plan, outcome: Outcome, retry_failed: bool) -> int:
    """Train what is not trained, one run after the other in this process, beside any other process
    that does the same.
    """
    if retry_failed:
        forget_failures(store, plan, ("train",))
    study = store.first(records.Study, name=plan.study.name)
    claims = Claims(store, "train", study_id=study.id if study else None)
    here: set[int | None] = set()
    failed_before = len(outcome.failures)

    def missing() -> list[tuple[RunConfig, records.Run]]:
        found = (
            (config, run) for config, run, _ in missing_training(store, plan) if run is not None
        )
        return [(config, run) for config, run in found if run.status not in ("cancelled", "failed")]

    def work(unit: tuple[RunConfig, records.Run], claim: Claim) -> bool:
        from lowrank.train.session import Job

        config, run = unit
        if run.id not in {other.id for _, other in missing()}:
            return False
        here.add(run.id)
        return _train_one(
            Job(config, run, plan.root, store, claim=claim), outcome
        )  # False where it was taken away

    done = share(
        claims, missing, lambda unit: train_key(plan, unit[0]), work, waiting=waiting("train")
    )
    done -= len(outcome.failures) - failed_before
    _clear_resume_points(store, plan)
    for config, run, _ in missing_training(store, plan):
        if run is not None and run.status == "failed" and run.id not in here:
            note = outcome.notes if run.failed_step is not None else outcome.failures
            note.append(
                f"{config.label} failed earlier and was left alone: {run.error} (--retry-failed tries it again)"
            )
    return done


def _clear_resume_points(store: Store, plan: Plan) -> None:
    """Remove those of finished runs, which a process leaves that is killed right after the end."""
    kept = [
        config for config in plan.runs if (plan.root / "runs" / config.folder / "resume").is_dir()
    ]
    missing = (
        {config.fingerprint() for config, _, _ in missing_training(store, plan)} if kept else set()
    )
    for config in kept:
        if config.fingerprint() not in missing:
            shutil.rmtree(plan.root / "runs" / config.folder / "resume", ignore_errors=True)


def train_key(plan: Plan, config: RunConfig) -> str:
    """The key under which a process claims a run that it trains."""
    return f"train/{plan.study.name}/{config.fingerprint()}"


def _train_one(job: Job, outcome: Outcome) -> bool:
    from lowrank.train.job import train

    try:
        ended = train(job)
    except BusyError as error:  # its claim has lapsed: it sleeps, or has lost the database
        if job.claim is not None:
            job.claim.give_up()
        _note(outcome, str(error))
        return False
    except ClaimLostError as error:
        _note(outcome, f"{job.config.label}: {error}")
        return False
    except (StoreError, DiskError):
        raise  # without its store or its folder a study cannot go on
    except LowrankError as error:
        outcome.failures.append(f"{job.config.label}: {error}")
        return True
    if ended.status == "failed":
        outcome.notes.append(f"{job.config.label} diverged: {ended.error}")
    return True


def _note(outcome: Outcome, sentence: str) -> None:
    """Put a sentence among the notes, once."""
    if sentence not in outcome.notes:
        outcome.notes.append(sentence)


def _measure(store: Store, plan: Plan, outcome: Outcome, retry_failed: bool) -> int:
    from lowrank.measure import measure

    measured = measure(store, plan.study, plan.root, retry_failed=retry_failed)
    outcome.failures += measured.failed + measured.left_alone
    outcome.notes += measured.blocked
    return measured.units


def _evaluate(store: Store, plan: Plan, outcome: Outcome, retry_failed: bool) -> int:
    from lowrank.evaluate import evaluate

    evaluated = evaluate(store, plan.study, plan.root, retry_failed=retry_failed)
    outcome.failures += evaluated.failed + evaluated.left_alone
    return evaluated.units


def _predict(store: Store, plan: Plan, outcome: Outcome, retry_failed: bool) -> int:
    """Fits of rows that have not changed are not repeated; too few rows for a fit is something to
    say, not a failure.
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


STAGES: dict[str, Callable[[Store, Plan, Outcome, bool], int]] = {
    "train": _train,
    "measure": _measure,
    "evaluate": _evaluate,
    "predict": _predict,
    "report": _report,
}
SHARED = ("train", "measure", "evaluate")  # stages that workers share by claiming units
