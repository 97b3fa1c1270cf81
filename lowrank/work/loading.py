"""What every stage that works on checkpoints shares: loading one safely, and the device."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from lowrank import checkpoint
from lowrank.errors import CheckpointError
from lowrank.store import records


def load_checkpoint(root: Path, row: records.Checkpoint) -> checkpoint.Loaded:
    """Load the checkpoint of ``row`` in float32 on the CPU, verified against manifest and database.

    ``root`` is the study's folder. Raises :class:`CheckpointError` for a path that leads outside
    it, for damaged files and for weights that are not finite.
    """
    root = root.resolve()
    folder = (root / row.path).resolve()
    where = f"checkpoint {row.id} ({row.path})"
    if not folder.is_relative_to(root):
        raise CheckpointError(f"{where}: its path leads outside the study's folder {root}")
    loaded = checkpoint.load(folder, row.sha256, dtype=torch.float32)
    for name, tensor in loaded.model.state_dict().items():
        if not torch.isfinite(tensor).all():
            raise CheckpointError(f"{where}: the weight '{name}' is not finite; the run diverged")
    return loaded


def default_device() -> torch.device:
    """Return this process's accelerator where there is one, else the CPU."""
    if torch.cuda.is_available():
        rank = int(os.environ.get("LOCAL_RANK", "0"))
        return torch.device("cuda", rank % torch.cuda.device_count())
    return torch.device("cpu")


def launched() -> tuple[int, int]:
    """Return the rank of this process and the number of processes of its launch."""
    return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))


def part_of(run_id: int | None, step: int, processes: int) -> int:
    """Return the process of a launch that takes a run's checkpoint, whatever the others do."""
    return ((run_id or 0) * 1_000_003 + step) % processes
