"""The missing work of a study's lenses as tasks; nothing is written and no checkpoint is read."""

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
    Expected,
    Lens,
    LensSettings,
    Panel,
    Point,
    TextSettings,
    Unit,
)
from lowrank.store import Store, records, results
from lowrank.work import failures
from lowrank.work.selection import ALL, Selection

KIND = "measure"
COLUMNS = (
    "space",
    "normalization",
    "precision",
    "direction_seed",
)  # settings that are columns of a protocol


@dataclass(frozen=True)
class Variant:
    """One way of measuring that a study asks for: a lens under a protocol, on every n-th
    checkpoint.
    """

    lens: Lens
    name: str
    settings: LensSettings
    every: int = 1


@dataclass(frozen=True)
class Task:
    """A unit of work whose rows are not all there. ``error`` is that of an earlier attempt."""

    variant: Variant
    unit: Unit
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
        """The task for people."""
        point, reference = self.unit.checkpoint, self.unit.reference
        return {
            "stage": "measure",
            "lens": self.variant.lens.name(),
            "protocol": self.variant.name,
            "method": point.method,
            "variant": point.variant,
            "scale": point.scale,
            "seed": point.seed,
            "step": point.step,
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
    """The tasks of ``study`` that lack rows, in the order in which they are best done.

    ``root`` is the study's folder. Tasks whose unit is ``blocked`` are in the list, with the
    reason; so are those of the unit keys ``also``, complete or not.
    """
    row = store.first(records.Study, name=study.name)
    variants = [
        v
        for v in resolve_metrics(study)
        if not selection.lenses or v.lens.name() in selection.lenses
    ]
    unasked = sorted(set(selection.lenses) - {v.lens.name() for v in variants})
    if unasked:
        metrics.get(unasked[0])  # an unknown name says so itself
        raise UsageError(
            f"the study '{study.name}' does not ask for the lens '{unasked[0]}'; add it to its metrics"
        )
    if row is None:
        return []
    sets = sets or EvaluationSets(store, study)
    panel = study_panel(store, row, root, selection)
    failed = failures(store, KIND)
    keys = {run.id: run.config_hash for run in store.find(records.Run, study_id=row.id)}
    tasks: list[Task] = []
    for variant in variants:
        kept = every_nth(panel, variant.every)
        chosen = [
            u
            for u in variant.lens.units(panel, variant.settings)
            if u.checkpoint.checkpoint_id in kept
        ]
        tasks += all_tasks(
            store,
            row,
            variant,
            [u for u in chosen if _taken(selection, u.checkpoint)],
            sets,
            failed,
            keys,
        )
    return sorted(
        (task for task in tasks if task.missing or task.unit.blocked or task.unit_key in also),
        key=_order,
    )


def _taken(selection: Selection, point: Point) -> bool:
    return selection.takes(
        point.method, point.scale, point.seed, point.step, point.run_id, point.checkpoint_id
    )


def plan_rows(tasks: Iterable[Task]) -> Iterator[dict[str, Any]]:
    """Tasks for people, one row each."""
    return (task.row() for task in tasks)


def resolve_metrics(study: Study) -> list[Variant]:
    """The protocols that a study's ``metrics`` section asks for, each once; raises
    :class:`ConfigError`.
    """
    found: list[Variant] = []
    for index, entry in enumerate(study.metrics):
        where = f"metrics[{index}]"
        lens = metrics.get(entry.lens)()
        for name, preset_settings in _variants(lens, entry, study.preset, where):
            merged = {**preset_settings, **entry.settings}
            settings = validate(lens.Settings, merged, f"study '{study.name}'", f"{where}.settings")
            if any(v.lens.name() == entry.lens and v.settings == settings for v in found):
                continue  # overrides can make two variants of a preset the same
            found.append(Variant(lens, name, settings, entry.every))
    return found


def _variants(
    lens: Lens, entry: MetricEntry, preset: str, where: str
) -> list[tuple[str, dict[str, Any]]]:
    """(protocol name, settings) of the variants of a preset that an entry asks for."""
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


def study_panel(
    store: Store, study: records.Study, root: Path, selection: Selection = ALL
) -> Panel:
    """The checkpoints of a study's runs as points.

    Of runs that differ in the recipe alone, the study file having been edited, the newest counts;
    an older one that is selected by its number is there too.
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
    return Panel(tuple(_point(runs[c.run_id], c, latest[c.run_id], root) for c in saved))


def _point(run: records.Run, checkpoint: records.Checkpoint, latest: int, root: Path) -> Point:
    method, shape = methods.get(run.method), _shape(run, root / checkpoint.path)
    final = checkpoint.kind == "final" or (
        checkpoint.kind == "imported" and checkpoint.step == latest
    )
    lengths = spectrum_lengths(run.method, run.config.get("settings"), shape)
    return Point(
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
    """Shape of a run's model; an imported run may only tell by its files."""
    found: dict[str, Any] | None = run.config.get("shape")
    if found is None:
        found = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return found


def every_nth(panel: Panel, every: int) -> set[int]:
    """Ids of every n-th checkpoint of each run, counted back from its last."""
    return {point.checkpoint_id for run in panel.runs() for point in run[::-1][::every]}


def all_tasks(
    store: Store,
    study: records.Study,
    variant: Variant,
    units: list[Unit],
    sets: EvaluationSets,
    failed: dict[str, str],
    keys: dict[Any, str],
) -> Iterator[Task]:
    """The units of one variant with the rows that they lack."""
    grouped: dict[str, list[Unit]] = {}
    opened: dict[str, Opened | None] = {}
    for unit in units:
        evaluation = None
        if isinstance(variant.settings, TextSettings):
            try:
                evaluation = sets.open(
                    unit.checkpoint.run_id, variant.settings.examples, variant.settings.split
                )
            except StoreError:
                raise
            except (
                LowrankError
            ) as error:  # no text, or none that can be scored: lenses that need none go on
                unit = replace(unit, blocked=str(error))
        sha = evaluation.record.sha256 if evaluation else ""
        opened[sha] = evaluation
        grouped.setdefault(sha, []).append(unit)
    for sha, members in grouped.items():
        protocol = find_protocol(store, protocol_record(variant, opened[sha]))
        there = _expected(results.study_metric_keys(store, protocol.id, study.id))
        for unit in members:
            reference = unit.reference.checkpoint_id if unit.reference else None
            known = there.get((unit.checkpoint.checkpoint_id, reference), Expected())
            lacking = variant.lens.expected(unit, variant.settings) - known
            key = unit_key(study.name, variant, sha, unit, keys)
            yield Task(
                variant, unit, protocol, opened[sha], lacking, key, study.id, failed.get(key, "")
            )


def protocol_record(variant: Variant, evaluation: Opened | None) -> records.Protocol:
    """The protocol of a variant on an evaluation set; settings that only select stay out of it."""
    fields = type(variant.settings).model_fields
    kept = {name for name, info in fields.items() if info.json_schema_extra != SELECTION}
    body = variant.settings.model_dump(mode="json", include=kept)
    for name in ("examples", "split"):  # the evaluation set says them
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
    """The stored protocol that equals ``wanted`` but for id and hash, else ``wanted`` without an
    id.
    """
    for known in store.find(records.Protocol, lens=wanted.lens, name=wanted.name):
        if replace(known, id=None, parameters_hash="") == wanted:
            return known
    return wanted


def still_missing(store: Store, task: Task) -> bool:
    """Whether the rows of a task are not all there now, whoever may have stored them since it was
    planned.
    """
    wanted = replace(task.protocol, id=None, parameters_hash="")
    if task.evaluation:
        known = store.first(records.EvaluationSet, sha256=task.evaluation.record.sha256)
        wanted = replace(wanted, evaluation_set_id=known.id if known else None)
    protocol = find_protocol(store, wanted)
    if protocol.id is None:
        return True
    point, reference = task.unit.checkpoint, task.unit.reference
    there = _expected(results.checkpoint_metric_keys(store, protocol.id, point.checkpoint_id))
    found = there.get(
        (point.checkpoint_id, reference.checkpoint_id if reference else None), Expected()
    )
    return bool(task.variant.lens.expected(task.unit, task.variant.settings) - found)


def _expected(keys: Mapping[results.Pair, results.MetricKeys]) -> dict[results.Pair, Expected]:
    return {pair: Expected(*found) for pair, found in keys.items()}


def unit_key(
    study: str, variant: Variant, evaluation_sha: str, unit: Unit, keys: dict[Any, str]
) -> str:
    """A key of a unit of work that means the same in every copy of the store; equal runs of two
    studies differ in it.
    """
    body = [
        study,
        variant.lens.name(),
        variant.lens.revision,
        variant.name,
        variant.settings.model_dump(mode="json"),
        evaluation_sha,
        *([keys[p.run_id], p.step] if p else None for p in (unit.checkpoint, unit.reference)),
    ]
    return f"measure/{content_hash(body)}"


def _order(task: Task) -> tuple[Any, ...]:
    """Checkpoints of one step together, so that each is loaded once and few are held at a time."""
    unit = task.unit
    return (
        unit.checkpoint.scale,
        unit.checkpoint.step,
        unit.checkpoint.arm,
        unit.checkpoint.seed,
        unit.checkpoint.run_id,
    )
