"""Planning the missing downstream scores of a study, without writing or reading checkpoints."""

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
EMBEDDED = "embedded"  # the suite that this package generates
REVISION = 2  # rises when the same items and weights give other scores


@dataclass(frozen=True)
class SuiteVariant:
    """A suite under a protocol; ``embedded`` is its folder if this package generates it."""

    suite: Suite
    protocol: records.Protocol
    embedded: Embedded | None


@dataclass(frozen=True)
class MissingScores:
    """One task on one checkpoint that lacks scores.

    ``unit_key`` names the work in every copy of the store, ``error`` is that of an earlier attempt.
    """

    run: records.Run
    checkpoint: records.Checkpoint
    variant: SuiteVariant
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
        """Return the missing work as a row for people."""
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
) -> list[MissingScores]:
    """Return the missing scores of ``study``, checkpoint by checkpoint.

    ``settings`` None takes the study's ``downstream`` section; without one nothing is missing.
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
    planner = _ScorePlanner(store, study.name, settings, runs, failures(store, KIND))
    missing: list[MissingScores] = []
    for suite in map(suites.get, dict.fromkeys(settings.suites)):
        grouped: dict[float | None, list[records.Checkpoint]] = {}
        for saved in chosen:
            fraction = (
                held_out_fraction(runs[saved.run_id], study) if suite.name == EMBEDDED else None
            )
            grouped.setdefault(fraction, []).append(saved)
        for fraction, members in grouped.items():
            missing += planner.missing(resolve(store, settings, suite, fraction), members)
    return sorted(missing, key=lambda work: (work.run.scale, work.run.id, work.checkpoint.step))


def unknown_task_sentences(settings: Downstream) -> list[str]:
    """Return a sentence for each task that the settings name and no suite has."""
    chosen = [suites.get(name) for name in settings.suites]
    known = sorted({task for suite in chosen for task in suite.tasks})
    return [
        f"unknown downstream task '{task}'{suggestion(task, known)}; {', '.join(settings.suites)}: {', '.join(known)}"
        for task in suites.unknown_tasks(settings.tasks, chosen)
    ]


def resolve(
    store: Store, settings: Downstream, suite: Suite, fraction: float | None
) -> SuiteVariant:
    """Return a suite with its protocol, which has an id if it is stored.

    ``fraction`` is the held-out part of the embedded corpus, which its items come from.
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
    return SuiteVariant(suite, next(same, wanted), embedded)


def held_out_fraction(run: records.Run, study: Study) -> float | None:
    """Return the part of the embedded corpus that a run held out; None if trained on other text."""
    data = run.config.get("data") or resolve_runs(study)[0].data.model_dump()
    return float(data["validation_fraction"]) if data["source"] == "embedded" else None


def chosen_checkpoints(
    store: Store,
    runs: dict[int | None, records.Run],
    settings: Downstream,
    selection: Selection,
) -> Iterator[records.Checkpoint]:
    """Yield the selected checkpoints whose loss is finite.

    A selection of steps or checkpoints overrides the setting ``every``.
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


@dataclass(frozen=True)
class _ScorePlanner:
    """Compares the tasks that the settings of a study ask for with the rows of a store.

    ``runs`` are those of the study by id, ``failed`` the errors of earlier attempts by unit key.
    """

    store: Store
    study: str
    settings: Downstream
    runs: dict[int | None, records.Run]
    failed: dict[str, str]

    def missing(
        self, variant: SuiteVariant, chosen: Iterable[records.Checkpoint]
    ) -> Iterator[MissingScores]:
        """Yield the tasks of one suite on the chosen checkpoints that lack scores or items."""
        scores = results.score_sizes(self.store, variant.protocol.id)
        items = results.item_counts(self.store, variant.protocol.id)
        wanted, keep = self.settings.tasks, self.settings.items or variant.suite.items
        for saved in chosen:
            by_item = keep == "all" or (keep == "final" and saved.kind in ("final", "imported"))
            for task, info in variant.suite.tasks.items():
                if wanted and task not in wanted:
                    continue
                there = scores.get((saved.id or 0, task), {})
                lacking = frozenset(info.all_metrics) - there.keys()
                lacking_items = frozenset(
                    metric
                    for metric in info.all_metrics
                    if by_item
                    and (
                        metric in lacking
                        or items.get((saved.id or 0, task, metric), 0) < there[metric]
                    )
                )
                if lacking or lacking_items:
                    yield self._work(variant, saved, task, lacking, lacking_items)

    def _work(
        self,
        variant: SuiteVariant,
        saved: records.Checkpoint,
        task: str,
        metrics: frozenset[str],
        item_metrics: frozenset[str],
    ) -> MissingScores:
        run = self.runs[saved.run_id]
        key = self._unit_key(run, saved, variant, task)
        error = self.failed.get(key, "")
        return MissingScores(run, saved, variant, task, metrics, item_metrics, key, error)

    def _unit_key(
        self, run: records.Run, saved: records.Checkpoint, variant: SuiteVariant, task: str
    ) -> str:
        """Return a key that means the same in every copy of the store.

        Data in another place are another attempt.
        """
        protocol = variant.protocol
        made = [protocol.name, protocol.metric_revision, protocol.parameters]
        body = [self.study, run.config_hash, saved.step, *made, task, self.settings.data_dir]
        return f"{KIND}/{content_hash(body)}"


def still_missing(store: Store, work: MissingScores) -> bool:
    """Return whether the scores are still missing, whoever may have stored some since planning.

    Items are not looked at, since they are stored in the same transaction.
    """
    protocol = work.variant.protocol
    if not work.metrics:
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
        checkpoint_id=work.checkpoint.id,
        protocol_id=protocol.id,
        task=work.task,
    )
    return not work.metrics <= {row.metric for row in rows}
