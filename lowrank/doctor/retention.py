"""Decide which weights may be deleted according to the study's section ``keep``.

Weights that a missing result needs are never among them.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from lowrank import checkpoint
from lowrank.config.schema import Keep, Study
from lowrank.doctor.finding import Finding, readable
from lowrank.files import atomic_file
from lowrank.store import Store, records

ENDED = ("done", "failed", "cancelled")


def retention(
    store: Store, area: str, config: Study, root: Path, runs: list[records.Run]
) -> Iterator[Finding]:
    """Yield findings on weights and resume points that ``keep`` allows to delete.

    Those that a missing result needs are reported as kept.
    """
    keep = config.keep
    trained = [run for run in runs if run.kind == "trained"]
    if keep.weights_only:
        yield from _resume_points(
            area, root, [run for run in trained if run.status in ("failed", "cancelled")]
        )
    deletable = [
        row
        for run in trained
        for row in superfluous(keep, store.find(records.Checkpoint, run_id=run.id))
    ]
    deletable = [
        row
        for row in deletable
        if _inside(root, row) and (root / row.path / checkpoint.WEIGHTS).is_file()
    ]
    if not deletable:
        return
    if any(
        run.status not in ENDED for run in trained
    ):  # a run that is still to end may be compared with any checkpoint of the others
        yield Finding(
            "note",
            area,
            f"keep: {len(deletable)} checkpoints may be deleted once all runs have ended",
        )
        return
    needed = needed_checkpoints(store, config, root)
    for row in deletable:
        if row.id in needed:
            yield Finding(
                "note",
                area,
                f"keep: {row.path} stays, because a missing result needs it",
                "lowrank study run FILE",
            )
        else:
            what = f"keep: the weights of {row.path} may be deleted ({readable(row.bytes)})"
            yield Finding(
                "note",
                area,
                what,
                "delete them; the numbers stay",
                partial(_prune, store, config, root, row),
            )


def superfluous(keep: Keep, saved: list[records.Checkpoint]) -> list[records.Checkpoint]:
    """Return the checkpoints of one run that ``keep`` does not ask for; the last one always
    stays.
    """
    newest_first = sorted(saved, key=lambda row: row.step, reverse=True)
    every = len(newest_first) + 1 if keep.checkpoints == "final" else keep.every
    return [row for index, row in enumerate(newest_first) if index % every]


def needed_checkpoints(store: Store, config: Study, root: Path) -> set[int | None]:
    """Return the ids of the checkpoints behind every result that the study asks for but lacks.

    Failed and blocked results are included.
    """
    from lowrank.evaluate.plan import plan as evaluate_plan
    from lowrank.measure import plan as measure_plan

    needed: set[int | None] = {
        ref.checkpoint_id
        for task in measure_plan(store, config, root)
        for ref in task.unit.checkpoints
    }
    return needed | {unit.checkpoint.id for unit in evaluate_plan(store, config)}


def _prune(store: Store, config: Study, root: Path, row: records.Checkpoint) -> str:
    """Delete the weights, and leave the manifest and a note, so that the folder does not look
    damaged.
    """
    if row.id in needed_checkpoints(store, config, root):
        return f"{row.path} is needed again and stays"
    folder = root / row.path
    note = {
        "deleted": checkpoint.WEIGHTS,
        "sha256": row.sha256,
        "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
    with atomic_file(folder / checkpoint.PRUNED) as file:
        file.write(json.dumps(note).encode())
    (folder / checkpoint.WEIGHTS).unlink()
    return f"weights of {row.path} deleted"


def _inside(root: Path, row: records.Checkpoint) -> bool:
    return (root / row.path).resolve().is_relative_to(root)


def _resume_points(area: str, root: Path, runs: list[records.Run]) -> Iterator[Finding]:
    for run in runs:
        for resume in root.glob(f"runs/*-{run.config_hash[:8]}/resume"):
            what = f"keep: {resume.relative_to(root)} of a run that is {run.status}"
            yield Finding(
                "note",
                area,
                what,
                "delete it; the run would start from step 0",
                partial(_forget, resume),
            )


def _forget(resume: Path) -> str:
    shutil.rmtree(resume)
    return f"{resume} deleted"
