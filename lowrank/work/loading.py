"""What the stages that work on checkpoints share: loading one safely, devices, and ranks."""

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


def rank_and_world_size() -> tuple[int, int]:
    """Return the rank of this process and the number of processes of its launch."""
    return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))


def assigned_rank(run_id: int | None, step: int, world_size: int) -> int:
    """Return the rank that works on a run's checkpoint at ``step``.

    It depends on these numbers alone, so that the processes need not agree on it.
    """
    return ((run_id or 0) * 1_000_003 + step) % world_size
