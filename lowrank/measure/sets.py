"""The evaluation sets of a study's runs, each opened once."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from lowrank.config.loading import validate
from lowrank.config.resolve import resolve_runs
from lowrank.config.schema import Data, Study
from lowrank.errors import LowrankError
from lowrank.metrics.base import MetricError
from lowrank.store import Store, records

if TYPE_CHECKING:
    from lowrank.data.batch import EvaluationSet

SET_NAME = "metrics"


@dataclass(frozen=True)
class Opened:
    """An evaluation set and its record, which has an id if the set is in the store."""

    record: records.EvaluationSet
    content: EvaluationSet


class EvaluationSets:
    """Opens the fixed rows that metrics are computed on; runs with the same data share them."""

    def __init__(self, store: Store, study: Study) -> None:
        self.store, self.study = store, study
        self._data: dict[int, Data] = {}
        self._opened: dict[tuple[str, int, str], Opened] = {}
        self._failed: dict[tuple[str, int, str], LowrankError] = {}

    def open(self, run_id: int, examples: int | None, split: str = "validation") -> Opened:
        """Return the evaluation set of a run, drawn from a held-out split.

        ``examples`` is its number of rows; None takes that of the run's data section. Raises
        :class:`MetricError` where it scores no token, and other errors of the package where its
        text cannot be read; that is tried once.
        """
        data = self._data_of(run_id)
        count = data.evaluation_examples if examples is None else examples
        key = (data.model_dump_json(), count, split)
        if key in self._failed:
            raise self._failed[key]
        if key not in self._opened:
            try:
                self._opened[key] = self._open(data, count, split)
            except LowrankError as error:
                self._failed[key] = error  # every unit reports it, and nobody tries again
                raise
        found = self._opened[key]
        if found.record.id is None and (
            known := self.store.first(records.EvaluationSet, sha256=found.record.sha256)
        ):
            found = self._opened[key] = replace(found, record=replace(found.record, id=known.id))
        return found

    def _open(self, data: Data, examples: int, split: str) -> Opened:
        from lowrank.data import open_data

        seed = data.evaluation_seed
        content = open_data(data, seed).evaluation_set(
            SET_NAME, split=split, examples=examples, seed=seed
        )
        if content.record.tokens == 0:
            raise MetricError(
                f"the evaluation set of source '{data.source}' scores no token; give documents of two tokens or more"
            )
        known = self.store.first(records.EvaluationSet, sha256=content.record.sha256)
        return Opened(replace(content.record, id=known.id if known else None), content)

    def _data_of(self, run_id: int) -> Data:
        """Return the data section that a run was resolved with; an imported run has the study's."""
        if run_id not in self._data:
            run = self.store.get(records.Run, run_id)
            section = run.config.get("data")
            if section is None:
                self._data[run_id] = resolve_runs(self.study)[0].data
            else:
                self._data[run_id] = validate(Data, section, f"run {run_id}", "data")
        return self._data[run_id]
