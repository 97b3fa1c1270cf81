"""What lenses compute with: checkpoints that are loaded and verified once, and the batches of an evaluation set."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

import torch

from lowrank import checkpoint
from lowrank.errors import CheckpointError
from lowrank.measure.plan import Task
from lowrank.metrics.base import Batch, Point, Unit
from lowrank.store import Store, records

T = TypeVar("T")
MEMORY_SHARE = 0.4  # of the machine's memory, for checkpoints that later tasks need


class Workbench:
    """Holds the checkpoints of the tasks ahead; a checkpoint leaves when no task needs it any more.

    Where the memory does not hold all of them, those whose next use is farthest leave first and are loaded again.
    ``loads`` counts loads by checkpoint.
    """

    def __init__(self, store: Store, root: Path, device: torch.device, budget: int | None = None) -> None:
        self.store, self.root, self.device = store, root.resolve(), device
        self.budget = budget if budget is not None else int(MEMORY_SHARE * os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
        self.loads: Counter[int] = Counter()
        self._held: dict[int, checkpoint.Loaded] = {}
        self._memo: dict[int, dict[str, Any]] = {}
        self._broken: dict[int, CheckpointError] = {}
        self._uses: dict[int, list[int]] = {}
        self._task: Task | None = None
        self._batches: dict[tuple[str, int | None], list[Batch]] = {}

    def schedule(self, tasks: Iterable[Task]) -> None:
        """Tell which tasks will come, in their order."""
        self._uses = {}
        for index, task in enumerate(tasks):
            for point in task.unit.points:
                self._uses.setdefault(point.checkpoint_id, []).append(index)

    def begin(self, task: Task) -> None:
        """``task`` is computed next."""
        self._task = task

    def end(self, index: int) -> None:
        """Task ``index`` is done: let go of what nobody needs."""
        for point_id, uses in self._uses.items():
            while uses and uses[0] <= index:
                uses.pop(0)
            if not uses:
                self._drop(point_id)

    def loaded(self, point: Point) -> checkpoint.Loaded:
        """The checkpoint in float32 on the CPU, verified against manifest and database."""
        key = point.checkpoint_id
        if key in self._broken:
            raise self._broken[key]
        if key not in self._held:
            try:
                loaded = self._load(key)
            except CheckpointError as error:
                self._broken[key] = error
                raise
            self._make_room(_bytes(loaded))
            self._held[key] = loaded
        return self._held[key]

    def memo(self, point: Point, key: str, compute: Callable[[], T]) -> T:
        """``compute()``, kept as long as the checkpoint is."""
        kept = self._memo.setdefault(point.checkpoint_id, {})
        if key not in kept:
            kept[key] = compute()
        found: T = kept[key]
        return found

    def batches(self, unit: Unit, examples: int | None) -> list[Batch]:
        """The evaluation set of the current task on the device."""
        if self._task is None or self._task.evaluation is None:
            raise RuntimeError("this lens declares that it needs no data")
        opened = self._task.evaluation
        key = (opened.record.sha256, BATCH_ROWS)
        if key not in self._batches:
            self._batches = {key: [
                Batch(b.input_ids.to(self.device), b.labels.to(self.device)) for b in opened.content.batches(BATCH_ROWS)
            ]}
        return self._batches[key]

    def _load(self, checkpoint_id: int) -> checkpoint.Loaded:
        row = self.store.get(records.Checkpoint, checkpoint_id)
        folder = (self.root / row.path).resolve()
        if not folder.is_relative_to(self.root):
            raise CheckpointError(f"checkpoint {checkpoint_id}: its path '{row.path}' leads outside the study's folder {self.root}")
        loaded = checkpoint.load(folder, row.sha256, dtype=torch.float32)
        self.loads[checkpoint_id] += 1
        return loaded

    def _make_room(self, size: int) -> None:
        """Let the checkpoints with the farthest next use go until ``size`` bytes fit; two always stay, for a pair."""
        while len(self._held) > 1 and sum(map(_bytes, self._held.values())) + size > self.budget:
            current = {p.checkpoint_id for p in self._task.unit.points} if self._task else set()
            candidates = [key for key in self._held if key not in current]
            if not candidates:
                return
            self._drop(max(candidates, key=lambda key: self._uses.get(key, [1 << 62])[0]))

    def _drop(self, key: int) -> None:
        self._held.pop(key, None)
        self._memo.pop(key, None)


BATCH_ROWS = 16


def _bytes(loaded: checkpoint.Loaded) -> int:
    return sum(t.numel() * t.element_size() for t in loaded.model.state_dict().values())
