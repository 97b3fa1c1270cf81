"""Doing the missing evaluations: a checkpoint is loaded once, each task is one transaction, a
failed task stops no other.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from lowrank import provenance
from lowrank.config.schema import Downstream, Study
from lowrank.errors import ClaimLostError, ConflictError, LowrankError, StoreError
from lowrank.evaluate import harness
from lowrank.evaluate.bench import Bench
from lowrank.evaluate.plan import ALL, KIND, Selection, Unit, misspelt, plan, still_missing
from lowrank.evaluate.scores import Score
from lowrank.progress import progress_bar, waiting
from lowrank.store import Store, records
from lowrank.store.claims import Claim, Claims, share


@dataclass
class Outcome:
    """What a call of :func:`evaluate` did: tasks and rows stored, sentences of what failed or was
    left alone.
    """

    units: int = 0
    rows: int = 0
    failed: list[str] = field(default_factory=list)
    left_alone: list[str] = field(default_factory=list)

    def row(self) -> dict[str, Any]:
        """The counts for people."""
        return {
            "tasks": self.units,
            "rows": self.rows,
            "failed": len(self.failed),
            "left_alone": len(self.left_alone),
        }

    @property
    def complete(self) -> bool:
        """Whether nothing that was asked for is missing."""
        return not (self.failed or self.left_alone)


def evaluate(
    store: Store,
    study: Study,
    root: Path,
    settings: Downstream | None = None,
    selection: Selection = ALL,
    *,
    retry_failed: bool = False,
    progress: bool = True,
    device: torch.device | None = None,
) -> Outcome:
    """Compute and store the missing downstream scores of ``study`` under ``root``.

    ``settings`` None: the study's ``downstream`` section, or nothing at all. Tasks that failed
    before are left alone unless ``retry_failed``. Any number of processes may call this at once:
    they claim checkpoints, wait for one another and succeed those that die. Killed at any moment,
    it loses the task in flight.
    """
    settings = settings or study.downstream
    if settings is None:
        return Outcome()
    bench = Bench(root, settings, device or default_device())
    with progress_bar(
        desc="evaluate", unit="task", disable=not progress, mininterval=1.0, delay=1.0
    ) as bar:
        shift = Shift(store, study, settings, selection, bench, bar, retry_failed)
        return shift.run(progress)


def default_device() -> torch.device:
    """The process's accelerator where there is one."""
    if torch.cuda.is_available():
        return torch.device(
            "cuda", int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count()
        )
    return torch.device("cpu")


Group = list[Unit]


class Shift:
    """One process's part: it claims checkpoints, and does all missing tasks of one
    before the next.
    """

    def __init__(
        self,
        store: Store,
        study: Study,
        settings: Downstream,
        selection: Selection,
        bench: Bench,
        bar: tqdm[Any],
        retry_failed: bool,
    ) -> None:
        self.store, self.study, self.settings, self.selection, self.bench, self.bar = (
            store,
            study,
            settings,
            selection,
            bench,
            bar,
        )
        self.outcome = Outcome()
        self.failures: Counter[str] = Counter()
        self.left: Counter[str] = Counter()
        self.retried: set[str] | None = (
            None if retry_failed else set()
        )  # None: what has failed when the first plan is made
        self.tried: set[str] = set()
        self.made_by: int | None = None

    def run(self, progress: bool) -> Outcome:
        """Evaluate until nothing is missing that can be evaluated."""
        row = self.store.first(records.Study, name=self.study.name)
        claims = Claims(self.store, "evaluate checkpoint", study_id=row.id if row else None)
        share(
            claims,
            self.missing,
            self.key,
            self.work,
            waiting=waiting("evaluate") if progress else lambda units: None,
        )
        self.outcome.failed = [
            *misspelt(self.settings),
            *(f"{error}{_times(n)}" for error, n in self.failures.items()),
        ]
        again = "it failed before (--retry-failed tries it again)"
        self.outcome.left_alone = [f"{error}{_times(n)}; {again}" for error, n in self.left.items()]
        return self.outcome

    def missing(self) -> list[Group]:
        """What there is to do now, by checkpoint; what failed before is counted."""
        units = plan(self.store, self.study, self.settings, self.selection)
        rank, world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
        units = [
            unit
            for unit in units
            if ((unit.run.id or 0) * 1_000_003 + unit.checkpoint.step) % world == rank
        ]
        if self.retried is None:
            self.retried = {unit.unit_key for unit in units if unit.error}
        fresh = [unit for unit in units if unit.unit_key not in self.tried]
        left = [unit for unit in fresh if unit.error and unit.unit_key not in self.retried]
        self.left = Counter(unit.error for unit in left)
        skipped = {unit.unit_key for unit in left}
        groups: dict[int | None, Group] = {}
        for unit in fresh:
            if unit.unit_key not in skipped:
                groups.setdefault(unit.checkpoint.id, []).append(unit)
        self.bar.total = self.bar.n + sum(map(len, groups.values()))
        return list(groups.values())

    def key(self, group: Group) -> str:
        """The key under which a checkpoint is claimed; it means the same in every copy of the
        store.
        """
        return f"evaluate/{self.study.name}/{group[0].run.config_hash}/{group[0].checkpoint.step}"

    def work(self, group: Group, claim: Claim) -> bool:
        """Evaluate one checkpoint; False where others have done all of it meanwhile, or have taken
        it over.
        """
        did = False
        for unit in group:
            if still_missing(self.store, unit):
                did = True
                self.bar.set_postfix_str(unit.label, refresh=False)
                try:
                    self._attempt(unit, claim)
                except ClaimLostError:
                    return False
            self.tried.add(unit.unit_key)
            self.bar.update()
        self.bench.release()
        return did

    def _attempt(self, unit: Unit, claim: Claim) -> None:
        """Compute and store one task of one checkpoint; a failure is a row of its own."""
        try:
            found = self.bench.scores(unit)
            if self.made_by is None:
                self.made_by = self.store.add(provenance.current()).id
            self.outcome.rows += store_scores(self.store, unit, *found, self.made_by, claim)
            self.outcome.units += 1
        except ClaimLostError:
            raise
        except StoreError as error:
            if not isinstance(error, ConflictError):
                raise
            self._fail(unit, str(error))
        except LowrankError as error:
            self._fail(unit, str(error))
        except Exception as error:
            self._fail(unit, f"{type(error).__name__}: {error}")

    def _fail(self, unit: Unit, error: str) -> None:
        error = f"{unit.variant.suite.name}/{unit.task}: {error}"
        self.failures[error] += 1
        known = self.store.first(records.WorkUnit, unit_key=unit.unit_key)
        attempts = (known.attempts if known else 0) + 1
        self.store.put(
            records.WorkUnit(
                unit_key=unit.unit_key, kind=KIND, status="failed", attempts=attempts, error=error
            )
        )


def store_scores(
    store: Store,
    unit: Unit,
    task: harness.LoadedTask,
    found: Iterable[Score],
    truncated: int,
    made_by: int | None,
    claim: Claim | None = None,
) -> int:
    """Store what the unit lacks in one transaction, in which the claim is confirmed; the number of
    new rows.
    """
    note = (
        f"the contexts of {truncated} requests were cut on the left to fit the model"
        if truncated
        else ""
    )
    with store.transaction():
        if claim is not None:
            claim.confirm()
        if unit.error:
            store.forget_unit(unit.unit_key)
        protocol = store.add(replace(unit.variant.protocol, id=None))
        common: dict[str, Any] = {
            "checkpoint_id": unit.checkpoint.id,
            "protocol_id": protocol.id,
            "task": unit.task,
        }
        made: list[records.Record] = [
            records.DownstreamScore(
                **common,
                category=unit.info.category,
                metric=score.metric,
                value=score.value,
                standard_error=score.standard_error,
                n=score.n,
                chance=score.chance,
                task_version=task.version,
                harness_version=harness.version(),
                note=note,
                provenance_id=made_by,
            )
            for score in found
            if score.metric in unit.metrics
        ]
        there = _stored_items(store, unit, protocol.id)
        made += [
            records.DownstreamItem(**common, metric=score.metric, item=item, value=value)
            for score in found
            if score.metric in unit.item_metrics
            for item, value in score.items.items()
            if (score.metric, item) not in there
        ]
        return store.add_all(made)


def _stored_items(store: Store, unit: Unit, protocol_id: int | None) -> set[tuple[str, str]]:
    """(metric, item) that the store has of the unit."""
    _, rows = store.select(
        "SELECT metric, item FROM downstream_item WHERE checkpoint_id = :checkpoint AND protocol_id = :protocol AND task = :task",
        {"checkpoint": unit.checkpoint.id, "protocol": protocol_id, "task": unit.task},
    )
    return {(metric, item) for metric, item in rows}


def _times(n: int) -> str:
    return f" ({n} checkpoints)" if n > 1 else ""
