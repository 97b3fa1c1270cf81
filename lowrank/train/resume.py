"""Resume points: everything that a run needs to go on, written atomically, the newest one kept.

A resume point holds weights, optimizer state, method state and the loop's counters. It holds no
random state, since the rows of a batch, dropout masks and every other random choice are functions
of the seed and the update.
"""

from __future__ import annotations

import errno
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from lowrank.checkpoint import file_entry, sealed, unsealed, write_folder
from lowrank.errors import CheckpointError

STATE, LOOP = "state.pt", "loop.json"


@dataclass(frozen=True, kw_only=True)
class Progress:
    """The loop's counters after update ``update``, and the run's rows that were not stored by then.

    ``seconds`` is the time of training, ``peak_memory_bytes`` the peak of all sessions so far.
    """

    update: int = 0
    tokens_seen: int = 0
    seconds: float = 0.0
    last_finite_loss: float | None = None
    peak_memory_bytes: int | None = None
    pending: list[dict[str, Any]] = field(default_factory=list)


def write_resume_point(folder: Path, progress: Progress, state: dict[str, Any]) -> None:
    """Write the resume point ``folder``/step_… and remove all others.

    ``state`` holds tensors and plain values only. An existing one of the same update is kept.
    """
    target = folder / f"step_{progress.update:08d}"

    def fill(temporary: Path) -> None:
        try:
            torch.save(state, temporary / STATE)
        except RuntimeError as error:  # how torch reports a write that failed
            raise OSError(errno.EIO, "the disk is full or refuses to write") from error
        loop = {"progress": asdict(progress), "files": {STATE: file_entry(temporary / STATE)}}
        (temporary / LOOP).write_text(sealed(loop, strict=False), encoding="utf-8")

    if not target.exists():
        write_folder(target, fill)
    for other in resume_points(folder):
        if other != target:
            shutil.rmtree(other, ignore_errors=True)


def resume_points(folder: Path) -> list[Path]:
    """Return the folders of complete resume points, oldest first."""
    return sorted(path for path in folder.glob("step_*") if path.is_dir())


def read_resume_point(folder: Path) -> tuple[Progress, dict[str, Any]] | None:
    """Read and verify the newest resume point under ``folder``; return None where there is none.

    Raises :class:`CheckpointError` for one that is damaged.
    """
    found = resume_points(folder)
    if not found:
        return None
    path = found[-1]
    try:
        loop = unsealed((path / LOOP).read_text(encoding="utf-8"))
        progress = Progress(**loop["progress"])
        intact = file_entry(path / STATE) == loop["files"][STATE]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"{path}: damaged resume point ({error}); delete it to train the run again from the start"
        ) from error
    if not intact:
        raise CheckpointError(
            f"{path / STATE}: damaged resume point (SHA-256 differs); delete it to train the run again from the start"
        )
    return progress, torch.load(path / STATE, map_location="cpu", weights_only=True)
