"""Which checkpoints of a study to work on, as selected by the options of a command."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lowrank.errors import UsageError
from lowrank.store import Store, records


@dataclass(frozen=True)
class Selection:
    """Which checkpoints and lenses to work on; an empty tuple selects all."""

    methods: tuple[str, ...] = ()
    scales: tuple[str, ...] = ()
    seeds: tuple[int, ...] = ()
    steps: tuple[int, ...] = ()
    runs: tuple[int, ...] = ()
    checkpoints: tuple[int, ...] = ()
    lenses: tuple[str, ...] = ()

    def takes(
        self, method: str, scale: str, seed: int, step: int, run: int | None, checkpoint: int | None
    ) -> bool:
        """Return whether a checkpoint is selected, by its run's recipe, its step and the ids."""
        pairs: tuple[tuple[tuple[Any, ...], Any], ...] = (
            (self.methods, method),
            (self.scales, scale),
            (self.seeds, seed),
            (self.steps, step),
            (self.runs, run),
            (self.checkpoints, checkpoint),
        )
        return all(not wanted or value in wanted for wanted, value in pairs)

    def check(self, store: Store, study_name: str) -> None:
        """Raise :class:`UsageError` for a value that no checkpoint of the study has."""
        row = store.first(records.Study, name=study_name)
        if row is None:
            raise UsageError(
                f"the store has no study '{study_name}' yet; train it first: lowrank study run FILE"
            )
        runs = store.find(records.Run, study_id=row.id)
        saved = store.find(records.Checkpoint, run_id=[run.id for run in runs])
        known: list[tuple[str, tuple[Any, ...], set[Any]]] = [
            ("method", self.methods, {run.method for run in runs}),
            ("scale", self.scales, {run.scale for run in runs}),
            ("seed", self.seeds, {run.seed for run in runs}),
            ("run", self.runs, {run.id for run in runs}),
            ("step", self.steps, {c.step for c in saved}),
            ("checkpoint", self.checkpoints, {c.id for c in saved}),
        ]
        for what, wanted, there in known:
            for value in wanted:
                if value not in there:
                    listed = ", ".join(map(str, sorted(there))) or "none"
                    raise UsageError(
                        f"the study '{study_name}' has no checkpoint of {what} {value}; it has: {listed}"
                    )


ALL = Selection()
