"""What lenses compute with: checkpoints that are loaded and verified once, and the batches of an
evaluation set.
"""

from __future__ import annotations

import copy
import os
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from lowrank import checkpoint
from lowrank.errors import LowrankError
from lowrank.export import dense_model
from lowrank.geometry.estimate import EvaluationBatch
from lowrank.measure.group import SINGLE, ProcessGroup
from lowrank.measure.memory import footprint
from lowrank.measure.plan import Task
from lowrank.metrics.base import CheckpointRef, Comparison, MetricError
from lowrank.store import Store, records
from lowrank.work.loading import load_checkpoint

A = TypeVar("A")
T = TypeVar("T")
# The share of the machine's and of the accelerator's memory that cached checkpoints may take.
MEMORY_SHARE = 0.4


class CheckpointCache:
    """The checkpoints of the tasks ahead; one is dropped when no task needs it any more.

    Beside a checkpoint the cache holds what lenses derive from it (dense copies, copies on the
    accelerator, bases of directions). Where the memory does not hold all of them, those whose next
    use is farthest are dropped first and loaded again later. ``budget`` is the memory of the
    machine that the cache may take, in bytes. ``loads`` counts loads by checkpoint.
    """

    def __init__(
        self,
        store: Store,
        root: Path,
        device: torch.device,
        budget: int | None = None,
        group: ProcessGroup = SINGLE,
    ) -> None:
        self.store, self.root, self.device, self.group = store, root.resolve(), device, group
        limits = budgets(device) if budget is None else Counter({**budgets(device), "cpu": budget})
        # Processes that compute together must drop the same checkpoints.
        self.budget = group.minimum(limits)
        self.loads: Counter[int] = Counter()
        self._held: dict[int, checkpoint.Loaded] = {}
        self._sizes: dict[int, Counter[str]] = {}
        self._memo: dict[int, dict[str, Any]] = {}
        self._broken: dict[int, LowrankError] = {}
        self._uses: dict[int, list[int]] = {}
        self._task: Task | None = None
        self._batches: dict[tuple[str, int], list[EvaluationBatch]] = {}

    def schedule(self, tasks: Iterable[Task]) -> None:
        """Set the tasks that will come, in their order, and drop what none of them needs."""
        self._uses = {}
        for index, task in enumerate(tasks):
            for ref in task.unit.checkpoints:
                self._uses.setdefault(ref.checkpoint_id, []).append(index)
        for key in [key for key in self._held if key not in self._uses]:
            self._drop(key)

    def begin(self, task: Task) -> None:
        """Set the task that is computed next."""
        self._task = task

    def end(self, index: int) -> None:
        """Drop the checkpoints that no task but number ``index`` needs.

        Tasks are done in any order where several processes share them.
        """
        for checkpoint_id, uses in self._uses.items():
            if index in uses:
                uses.remove(index)
            if not uses:
                self._drop(checkpoint_id)

    def loaded(self, ref: CheckpointRef) -> checkpoint.Loaded:
        """Return the checkpoint in float32 on the CPU, verified against manifest and database.

        Raises :class:`LowrankError` where it cannot be loaded; that is tried once.
        """
        key = ref.checkpoint_id
        if key in self._broken:
            raise self._broken[key]
        if key not in self._held:
            try:
                loaded = self._load(key)
            except LowrankError as error:
                self._broken[key] = error
                raise
            self._held[key] = loaded
            self._make_room(key)
        return self._held[key]

    def memo(self, ref: CheckpointRef, key: str, compute: Callable[[], T]) -> T:
        """Return ``compute()``, cached under ``key`` as long as the checkpoint is."""
        kept = self._memo.setdefault(ref.checkpoint_id, {})
        if key not in kept:
            kept[key] = compute()
            self._make_room(ref.checkpoint_id)
        found: T = kept[key]
        return found

    def network(self, ref: CheckpointRef, space: str) -> nn.Module | None:
        """Return the checkpoint on the device, as trained or as the equivalent plain LLaMA.

        ``space`` "dense" asks for the latter; None where the method has no dense equivalent.
        """
        loaded = self.loaded(ref)
        if space != "dense" or not loaded.method.custom_architecture:
            return self.memo(ref, "network", lambda: self._on_device(loaded.model))
        return self.memo(ref, "dense network", lambda: self._moved(dense_model(loaded)))

    def map(self, compute: Callable[[A], T], items: Sequence[A]) -> list[T]:
        """Return ``compute`` of every item in order; each process of the group does a share."""
        return self.group.map(compute, items)

    spread = map  # the name of 0.1, which lenses of other packages call

    @property
    def processes(self) -> int:
        """The number of processes that :meth:`map` shares work among."""
        return self.group.world_size

    def batches(self, unit: Comparison, rows: int) -> list[EvaluationBatch]:
        """Return the evaluation set of the current task on the device, ``rows`` rows a batch.

        Raises :class:`MetricError` where a checkpoint of ``unit`` has another tokenizer.
        """
        opened = self._task.evaluation if self._task else None
        if opened is None:
            raise RuntimeError("a lens that uses the evaluation set declares needs_data")
        for ref in unit.checkpoints:
            if ref.tokenizer_hash not in ("", opened.record.tokenizer_hash):
                raise MetricError(
                    f"{ref.label}: its tokenizer is not that of the evaluation set; put it into a separate study"
                )
        key = (opened.record.sha256, rows)
        if key not in self._batches:
            made = [
                EvaluationBatch(b.input_ids.to(self.device), b.labels.to(self.device))
                for b in opened.content.batches(rows)
            ]
            self._batches = {key: made}  # tasks come by checkpoint, so that several sets are rare
        return self._batches[key]

    def _on_device(self, model: nn.Module) -> nn.Module:
        """Return the model itself on a CPU, a copy elsewhere: the loaded one stays on the CPU."""
        return model if self.device.type == "cpu" else copy.deepcopy(model).to(self.device)

    def _moved(self, model: nn.Module | None) -> nn.Module | None:
        return None if model is None else model.to(self.device)

    def _load(self, checkpoint_id: int) -> checkpoint.Loaded:
        loaded = load_checkpoint(self.root, self.store.get(records.Checkpoint, checkpoint_id))
        self.loads[checkpoint_id] += 1
        return loaded

    def _make_room(self, key: int) -> None:
        """Drop checkpoints, the farthest next use first, until all fit after ``key`` has grown.

        Those of the current task stay, whatever they take.
        """
        self._sizes[key] = footprint(self._held.get(key), self._memo.get(key))
        current = {key} | (
            {p.checkpoint_id for p in self._task.unit.checkpoints} if self._task else set()
        )
        while any(
            size > self.budget[device]
            for device, size in sum(self._sizes.values(), Counter()).items()
        ):
            candidates = [key for key in self._sizes if key not in current]
            if not candidates:
                return
            self._drop(max(candidates, key=lambda key: self._uses.get(key, [1 << 62])[0]))

    def _drop(self, key: int) -> None:
        self._held.pop(key, None)
        self._memo.pop(key, None)
        self._sizes.pop(key, None)


def budgets(device: torch.device) -> Counter[str]:
    """Return the bytes that cached checkpoints may take, by type of device ('cpu', 'cuda')."""
    found = Counter(
        {"cpu": int(MEMORY_SHARE * os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))}
    )
    if device.type == "cuda":
        found["cuda"] = int(MEMORY_SHARE * torch.cuda.get_device_properties(device).total_memory)
    return found
