"""The missing downstream scores of a study as units of work; nothing is written and no checkpoint
is read.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from lowrank.config.resolve import resolve_runs
from lowrank.config.schema import Downstream, Study
from lowrank.errors import suggestion
from lowrank.evaluate import harness, suites
from lowrank.evaluate.embedded import Embedded, build
from lowrank.evaluate.suites import Suite, TaskInfo
from lowrank.hashing import content_hash
from lowrank.store import Store, records, results
from lowrank.work import failures
from lowrank.work.selection import ALL, Selection

LENS = "downstream"
KIND = "evaluate"
EMBEDDED = "embedded"  # the suite that lowrank makes itself
REVISION = 2  # raised when the same items and weights give other scores


@dataclass(frozen=True)
class Variant:
    """A suite under a protocol; ``embedded`` is its folder where its items are ours."""

    suite: Suite
    protocol: records.Protocol
    embedded: Embedded | None


@dataclass(frozen=True)
class Unit:
    """One task for one checkpoint whose rows are not all there. ``error`` is that of an earlier
    attempt.
    """

    run: records.Run
    checkpoint: records.Checkpoint
    variant: Variant
    task: str
    metrics: frozenset[str]  # scores that are missing
    item_metrics: frozenset[str]  # metrics whose items are missing
    unit_key: str
    error: str = ""

    @property
    def info(self) -> TaskInfo:
        """The task's entry in its suite."""
        return self.variant.suite.tasks[self.task]

    @property
    def label(self) -> str:
        """A readable name."""
        run = self.run
        arm = "-".join(
            part for part in (run.method, run.variant, run.scale, f"s{run.seed}") if part
        )
        return f"{self.variant.suite.name}/{self.task} of {arm} step {self.checkpoint.step}"

    def row(self) -> dict[str, Any]:
        """The unit for people."""
        run = self.run
        return {
            "stage": KIND,
            "suite": self.variant.suite.name,
            "task": self.task,
            "method": run.method,
            "variant": run.variant,
            "scale": run.scale,
            "seed": run.seed,
            "step": self.checkpoint.step,
            "detail": f"failed: {self.error}" if self.error else "missing",
        }


def plan(
    store: Store, study: Study, settings: Downstream | None = None, selection: Selection = ALL
) -> list[Unit]:
    """The units of ``study`` that lack rows, checkpoint by checkpoint.

    ``settings`` None: the study's ``downstream`` section; without one nothing is asked for.
    """
    settings = settings or study.downstream
    row = store.first(records.Study, name=study.name)
    if settings is None or row is None:
        return []
    runs = {
        run.id: run for run in store.find(records.Run, study_id=row.id) if run.status != "cancelled"
    }
    chosen = list(chosen_checkpoints(store, runs, settings, selection))
    if not chosen:
        return []
    failed = failures(store, KIND)
    units: list[Unit] = []
    for suite in map(suites.get, dict.fromkeys(settings.suites)):
        grouped: dict[float | None, list[records.Checkpoint]] = {}
        for saved in chosen:
            fraction = (
                held_out_fraction(runs[saved.run_id], study) if suite.name == EMBEDDED else None
            )
            grouped.setdefault(fraction, []).append(saved)
        for fraction, members in grouped.items():
            units += _missing(
                store,
                runs,
                members,
                resolve(store, settings, suite, fraction),
                settings,
                study.name,
                failed,
            )
    return sorted(units, key=lambda unit: (unit.run.scale, unit.run.id, unit.checkpoint.step))


def misspelt(settings: Downstream) -> list[str]:
    """A sentence for each task that is asked for and is in no suite."""
    chosen = [suites.get(name) for name in settings.suites]
    known = sorted({task for suite in chosen for task in suite.tasks})
    return [
        f"unknown downstream task '{task}'{suggestion(task, known)}; {', '.join(settings.suites)}: {', '.join(known)}"
        for task in suites.unknown_tasks(settings.tasks, chosen)
    ]


def resolve(store: Store, settings: Downstream, suite: Suite, fraction: float | None) -> Variant:
    """A suite (over what ``fraction`` of the embedded corpus holds out) and its protocol, as stored
    or as it would be.
    """
    embedded = build(fraction) if suite.name == EMBEDDED else None
    parameters = {
        "harness": harness.version(),
        "num_fewshot": 0,
        "batch_size": settings.batch_size,
        "limit": settings.limit,
        "bootstrap_iters": settings.bootstrap,
        "prefix": "eos",
        "items_sha256": embedded.sha256 if embedded else "",
        "primary": {name: info.primary for name, info in suite.tasks.items()},
    }
    wanted = records.Protocol(
        name=suite.name,
        lens=LENS,
        metric_revision=REVISION,
        precision="float32",
        parameters=parameters,
    )
    known = store.find(records.Protocol, lens=LENS, name=suite.name)
    same = (
        protocol for protocol in known if replace(protocol, id=None, parameters_hash="") == wanted
    )
    return Variant(suite, next(same, wanted), embedded)


def held_out_fraction(run: records.Run, study: Study) -> float | None:
    """What a run held out of the embedded corpus; None where it was trained on other text."""
    data = run.config.get("data") or resolve_runs(study)[0].data.model_dump()
    return float(data["validation_fraction"]) if data["source"] == "embedded" else None


def chosen_checkpoints(
    store: Store,
    runs: dict[int | None, records.Run],
    settings: Downstream,
    selection: Selection,
) -> Iterator[records.Checkpoint]:
    """Checkpoints that are selected and whose loss is finite; explicit steps or checkpoints win
    over ``every``.
    """
    by_run: dict[int, list[records.Checkpoint]] = {}
    for saved in store.find(records.Checkpoint, run_id=list(runs)) if runs else ():
        by_run.setdefault(saved.run_id, []).append(saved)
    explicit = bool(selection.steps or selection.checkpoints)
    for run_id, members in by_run.items():
        ordered = sorted(members, key=lambda saved: saved.step)
        trained = [saved for saved in ordered if saved.kind != "initial"]
        kept = trained[::-1][:: settings.every or len(trained) or 1]
        if settings.initial:
            kept += [saved for saved in ordered if saved.kind == "initial"]
        for saved in ordered if explicit else reversed(kept):
            run, loss = runs[run_id], saved.validation_loss
            taken = selection.takes(run.method, run.scale, run.seed, saved.step, run.id, saved.id)
            if taken and (loss is None or math.isfinite(loss)):
                yield saved


def _missing(
    store: Store,
    runs: dict[int | None, records.Run],
    chosen: Iterable[records.Checkpoint],
    variant: Variant,
    settings: Downstream,
    study: str,
    failed: dict[str, str],
) -> Iterator[Unit]:
    """Units of one suite that lack rows."""
    scores = results.score_sizes(store, variant.protocol.id)
    items = results.item_counts(store, variant.protocol.id)
    keep = settings.items or variant.suite.items
    for saved in chosen:
        run = runs[saved.run_id]
        for task, info in variant.suite.tasks.items():
            if settings.tasks and task not in settings.tasks:
                continue
            there = scores.get((saved.id or 0, task), {})
            lacking = frozenset(info.all_metrics) - there.keys()
            by_item: frozenset[str] = frozenset()
            if keep == "all" or (keep == "final" and saved.kind in ("final", "imported")):
                by_item = frozenset(
                    m
                    for m in info.all_metrics
                    if m in lacking or items.get((saved.id or 0, task, m), 0) < there[m]
                )
            if lacking or by_item:
                key = _unit_key(study, run, saved, variant, task, settings)
                yield Unit(run, saved, variant, task, lacking, by_item, key, failed.get(key, ""))


def still_missing(store: Store, unit: Unit) -> bool:
    """Whether nobody has stored the unit's scores since it was planned; its items come in the same
    transaction.
    """
    protocol = unit.variant.protocol
    if not unit.metrics:
        return True
    if protocol.id is None:
        found = store.find(records.Protocol, lens=LENS, name=protocol.name)
        protocol = next(
            (p for p in found if replace(p, id=None, parameters_hash="") == protocol), protocol
        )
    if protocol.id is None:
        return True
    rows = store.find(
        records.DownstreamScore,
        checkpoint_id=unit.checkpoint.id,
        protocol_id=protocol.id,
        task=unit.task,
    )
    return not unit.metrics <= {row.metric for row in rows}


def _unit_key(
    study: str,
    run: records.Run,
    saved: records.Checkpoint,
    variant: Variant,
    task: str,
    settings: Downstream,
) -> str:
    """A key that means the same in every copy of the store; another place of the data is another
    attempt.
    """
    protocol = variant.protocol
    made = [protocol.name, protocol.metric_revision, protocol.parameters]
    body = [study, run.config_hash, saved.step, *made, task, settings.data_dir]
    return f"{KIND}/{content_hash(body)}"
