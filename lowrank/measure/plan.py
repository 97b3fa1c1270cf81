"""Planning the missing work of a study's lenses, without writing or reading checkpoints."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lowrank import methods, metrics
from lowrank.config.loading import validate
from lowrank.config.schema import MetricEntry, Study
from lowrank.errors import ConfigError, LowrankError, StoreError, UsageError
from lowrank.hashing import content_hash
from lowrank.measure.lengths import spectrum_lengths
from lowrank.measure.sets import EvaluationSets, Opened
from lowrank.metrics.base import (
    SELECTION,
    CheckpointRef,
    Checkpoints,
    Comparison,
    Expected,
    Lens,
    LensSettings,
    TextSettings,
)
from lowrank.store import Store, records, results
from lowrank.work import failures
from lowrank.work.selection import ALL, Selection

KIND = "measure"
# Settings that are columns of a protocol.
COLUMNS = ("space", "normalization", "precision", "direction_seed")


@dataclass(frozen=True)
class LensVariant:
    """A lens with settings that a study asks for, on every ``every``-th checkpoint of a run.

    ``name`` is that of the protocol, such as exact or exact/filter.
    """

    lens: Lens
    name: str
    settings: LensSettings
    every: int = 1


@dataclass(frozen=True)
class Task:
    """A lens variant on a unit (a checkpoint, alone or against a reference) that lacks rows.

    ``missing`` has the keys of those rows, ``unit_key`` names the work in every copy of the store,
    and ``error`` is that of an earlier attempt.
    """

    variant: LensVariant
    unit: Comparison
    protocol: records.Protocol
    evaluation: Opened | None
    missing: Expected
    unit_key: str
    study_id: int | None = None
    error: str = ""

    @property
    def label(self) -> str:
        """A readable name."""
        return f"{self.variant.lens.name()} ({self.variant.name}) of {self.unit.label}"

    def row(self) -> dict[str, Any]:
        """Return the task as a row for people."""
        checkpoint, reference = self.unit.checkpoint, self.unit.reference
        return {
            "stage": "measure",
            "lens": self.variant.lens.name(),
            "protocol": self.variant.name,
            "method": checkpoint.method,
            "variant": checkpoint.variant,
            "scale": checkpoint.scale,
            "seed": checkpoint.seed,
            "step": checkpoint.step,
            "reference": reference.label if reference else "",
            "missing_values": len(self.missing.values),
            "detail": self.unit.blocked or (f"failed: {self.error}" if self.error else "missing"),
        }


def plan(
    store: Store,
    study: Study,
    root: Path,
    selection: Selection = ALL,
    sets: EvaluationSets | None = None,
    also: Collection[str] = (),
) -> list[Task]:
    """Return the tasks of ``study`` that lack rows, in the order in which they are best done.

    ``root`` is the study's folder, ``sets`` its evaluation sets where they are open already. Tasks
    whose unit is ``blocked`` are in the list, with the reason; so are those of the unit keys
    ``also``, complete or not. Raises :class:`UsageError` for a selected lens that the study does
    not ask for.
    """
    variants = _selected_variants(study, selection)
    row = store.first(records.Study, name=study.name)
    if row is None:
        return []
    checkpoints = study_checkpoints(store, row, root, selection)
    planner = _TaskPlanner(
        store,
        row,
        sets or EvaluationSets(store, study),
        failed=failures(store, KIND),
        config_hashes={run.id: run.config_hash for run in store.find(records.Run, study_id=row.id)},
    )
    tasks: list[Task] = []
    for variant in variants:
        kept = every_nth(checkpoints, variant.every)
        units = [
            unit
            for unit in variant.lens.units(checkpoints, variant.settings)
            if unit.checkpoint.checkpoint_id in kept and _is_selected(selection, unit.checkpoint)
        ]
        tasks += planner.tasks(variant, units)
    return sorted(
        (task for task in tasks if task.missing or task.unit.blocked or task.unit_key in also),
        key=_order,
    )


def _selected_variants(study: Study, selection: Selection) -> list[LensVariant]:
    variants = [
        variant
        for variant in resolve_metrics(study)
        if not selection.lenses or variant.lens.name() in selection.lenses
    ]
    absent = sorted(set(selection.lenses) - {variant.lens.name() for variant in variants})
    if absent:
        metrics.get(absent[0])  # raises for an unknown name
        raise UsageError(
            f"the study '{study.name}' does not ask for the lens '{absent[0]}'; add it to its metrics"
        )
    return variants


def _is_selected(selection: Selection, checkpoint: CheckpointRef) -> bool:
    return selection.takes(
        checkpoint.method,
        checkpoint.scale,
        checkpoint.seed,
        checkpoint.step,
        checkpoint.run_id,
        checkpoint.checkpoint_id,
    )


def plan_rows(tasks: Iterable[Task]) -> Iterator[dict[str, Any]]:
    """Yield a row for people per task."""
    return (task.row() for task in tasks)


def resolve_metrics(study: Study) -> list[LensVariant]:
    """Return the lens variants that a study's ``metrics`` section asks for, each once.

    Raises :class:`ConfigError` for an entry that is not valid.
    """
    found: list[LensVariant] = []
    for index, entry in enumerate(study.metrics):
        where = f"metrics[{index}]"
        lens = metrics.get(entry.lens)()
        for name, preset_settings in _variants(lens, entry, study.preset, where):
            merged = {**preset_settings, **entry.settings}
            settings = validate(lens.Settings, merged, f"study '{study.name}'", f"{where}.settings")
            if any(v.lens.name() == entry.lens and v.settings == settings for v in found):
                continue  # overrides can make two variants of a preset the same
            found.append(LensVariant(lens, name, settings, entry.every))
    return found


def _variants(
    lens: Lens, entry: MetricEntry, preset: str, where: str
) -> list[tuple[str, dict[str, Any]]]:
    """Return (protocol name, settings) of the variants of a preset that an entry asks for."""
    found = lens.variants(entry.preset or preset)
    if entry.variants is None:
        return [(v.name, dict(v.settings)) for v in found]
    known = {("main" if i == 0 else v.name.partition("/")[2]): v for i, v in enumerate(found)}
    for label in entry.variants:
        if label not in known:
            raise ConfigError(
                f"{where}.variants: the lens '{entry.lens}' has no variant '{label}'; known: {', '.join(known)}"
            )
    return [(known[label].name, dict(known[label].settings)) for label in entry.variants]


def study_checkpoints(
    store: Store, study: records.Study, root: Path, selection: Selection = ALL
) -> Checkpoints:
    """Return the checkpoints of a study's runs, as lenses see them.

    Of runs of the same method, variant, scale and seed (the study file was edited between them)
    only the newest counts; an older one is included if the selection names its id.
    """
    found = [run for run in store.find(records.Run, study_id=study.id) if run.status != "cancelled"]
    newest = {(run.method, run.variant, run.scale, run.seed): run.id for run in found}
    asked = {
        store.get(records.Checkpoint, wanted).run_id for wanted in selection.checkpoints
    } | set(selection.runs)
    runs = {run.id: run for run in found if run.id in asked or run.id in newest.values()}
    saved = store.find(records.Checkpoint, run_id=list(runs)) if runs else []
    latest: dict[int, int] = {}
    for checkpoint in saved:
        latest[checkpoint.run_id] = max(checkpoint.step, latest.get(checkpoint.run_id, 0))
    return Checkpoints(
        tuple(_checkpoint_ref(runs[c.run_id], c, latest[c.run_id], root) for c in saved)
    )


def _checkpoint_ref(
    run: records.Run, checkpoint: records.Checkpoint, latest: int, root: Path
) -> CheckpointRef:
    method, shape = methods.get(run.method), _shape(run, root / checkpoint.path)
    final = checkpoint.kind == "final" or (
        checkpoint.kind == "imported" and checkpoint.step == latest
    )
    lengths = spectrum_lengths(run.method, run.config.get("settings"), shape)
    return CheckpointRef(
        checkpoint_id=checkpoint.id or 0,
        run_id=run.id or 0,
        method=run.method,
        variant=run.variant,
        scale=run.scale,
        seed=run.seed,
        step=checkpoint.step,
        layers=int(shape["num_hidden_layers"]),
        lengths=lengths,
        width=min(length for _, length, _ in lengths),
        rank=run.rank if method.custom_architecture else None,
        last=final,
        has_dense=method.has_dense,
        baseline=method.family == "baseline",
        init_hash=run.init_hash,
        tokenizer_hash=run.tokenizer_hash,
    )


def _shape(run: records.Run, folder: Path) -> dict[str, Any]:
    """Return the shape of a run's model; an imported run may have it only in its files."""
    found: dict[str, Any] | None = run.config.get("shape")
    if found is None:
        found = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return found


def every_nth(checkpoints: Checkpoints, every: int) -> set[int]:
    """Return the ids of every n-th checkpoint of each run, counted back from its last."""
    return {
        checkpoint.checkpoint_id for run in checkpoints.runs() for checkpoint in run[::-1][::every]
    }


@dataclass(frozen=True)
class _TaskPlanner:
    """Compares the units of lens variants with the rows of a store.

    ``failed`` has the errors of earlier attempts by unit key, ``config_hashes`` those of the runs
    by id.
    """

    store: Store
    study: records.Study
    sets: EvaluationSets
    failed: dict[str, str]
    config_hashes: dict[Any, str]

    def tasks(self, variant: LensVariant, units: Iterable[Comparison]) -> Iterator[Task]:
        """Yield the units of one variant with the rows that they lack, complete ones included."""
        grouped: dict[str, list[Comparison]] = {}
        opened: dict[str, Opened | None] = {}
        for unit in units:
            evaluation, unit = self._open(variant, unit)
            sha = evaluation.record.sha256 if evaluation else ""
            opened[sha] = evaluation
            grouped.setdefault(sha, []).append(unit)
        for sha, members in grouped.items():
            yield from self._compare(variant, members, opened[sha])

    def _open(self, variant: LensVariant, unit: Comparison) -> tuple[Opened | None, Comparison]:
        """Return the evaluation set of a unit; where there is none, the unit is blocked.

        A lens that needs no text goes on without it.
        """
        settings = variant.settings
        if not isinstance(settings, TextSettings):
            return None, unit
        try:
            opened = self.sets.open(unit.checkpoint.run_id, settings.examples, settings.split)
        except StoreError:
            raise
        except LowrankError as error:
            return None, replace(unit, blocked=str(error))
        return opened, unit

    def _compare(
        self, variant: LensVariant, units: list[Comparison], evaluation: Opened | None
    ) -> Iterator[Task]:
        store, study = self.store, self.study
        sha = evaluation.record.sha256 if evaluation else ""
        protocol = find_protocol(store, protocol_record(variant, evaluation))
        there = _expected(results.study_metric_keys(store, protocol.id, study.id))
        for unit in units:
            reference = unit.reference.checkpoint_id if unit.reference else None
            known = there.get((unit.checkpoint.checkpoint_id, reference), Expected())
            yield Task(
                variant,
                unit,
                protocol,
                evaluation,
                missing=variant.lens.expected(unit, variant.settings) - known,
                unit_key=(key := unit_key(study.name, variant, sha, unit, self.config_hashes)),
                study_id=study.id,
                error=self.failed.get(key, ""),
            )


def protocol_record(variant: LensVariant, evaluation: Opened | None) -> records.Protocol:
    """Return the protocol of a variant on an evaluation set.

    Settings that only select what is measured are no part of it.
    """
    fields = type(variant.settings).model_fields
    kept = {name for name, info in fields.items() if info.json_schema_extra != SELECTION}
    body = variant.settings.model_dump(mode="json", include=kept)
    for name in ("examples", "split"):  # columns of the evaluation set
        body.pop(name, None)
    columns = {name: body.pop(name) for name in COLUMNS if name in body}
    return records.Protocol(
        name=variant.name,
        lens=variant.lens.name(),
        metric_revision=variant.lens.revision,
        parameters=body,
        evaluation_set_id=evaluation.record.id if evaluation else None,
        **columns,
    )


def find_protocol(store: Store, wanted: records.Protocol) -> records.Protocol:
    """Return the stored protocol that equals ``wanted`` but for id and hash.

    Where there is none it returns ``wanted``, which has no id.
    """
    for known in store.find(records.Protocol, lens=wanted.lens, name=wanted.name):
        if replace(known, id=None, parameters_hash="") == wanted:
            return known
    return wanted


def still_missing(store: Store, task: Task) -> bool:
    """Return whether the task still lacks rows, whoever may have stored some since planning."""
    wanted = replace(task.protocol, id=None, parameters_hash="")
    if task.evaluation:
        known = store.first(records.EvaluationSet, sha256=task.evaluation.record.sha256)
        wanted = replace(wanted, evaluation_set_id=known.id if known else None)
    protocol = find_protocol(store, wanted)
    if protocol.id is None:
        return True
    checkpoint, reference = task.unit.checkpoint, task.unit.reference
    there = _expected(results.checkpoint_metric_keys(store, protocol.id, checkpoint.checkpoint_id))
    found = there.get(
        (checkpoint.checkpoint_id, reference.checkpoint_id if reference else None), Expected()
    )
    return bool(task.variant.lens.expected(task.unit, task.variant.settings) - found)


def _expected(keys: Mapping[results.Pair, results.MetricKeys]) -> dict[results.Pair, Expected]:
    return {pair: Expected(*found) for pair, found in keys.items()}


def unit_key(
    study: str,
    variant: LensVariant,
    evaluation_sha: str,
    unit: Comparison,
    config_hashes: dict[Any, str],
) -> str:
    """Return the key of a task, which means the same in every copy of the store.

    ``config_hashes`` are those of the runs by id. Equal runs of two studies have different keys.
    """
    body = [
        study,
        variant.lens.name(),
        variant.lens.revision,
        variant.name,
        variant.settings.model_dump(mode="json"),
        evaluation_sha,
        *(
            [config_hashes[p.run_id], p.step] if p else None
            for p in (unit.checkpoint, unit.reference)
        ),
    ]
    return f"measure/{content_hash(body)}"


def _order(task: Task) -> tuple[Any, ...]:
    """Return the sort key: checkpoints of one step together, so that each is loaded once."""
    unit = task.unit
    return (
        unit.checkpoint.scale,
        unit.checkpoint.step,
        unit.checkpoint.recipe,
        unit.checkpoint.seed,
        unit.checkpoint.run_id,
    )
