"""Compare a study's folder with the rows in the store."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from lowrank import checkpoint
from lowrank.doctor.finding import Finding, readable
from lowrank.errors import CheckpointError
from lowrank.store import Store, records

RESTORE = "restore the folder from a copy; its numbers stay valid"
ABANDONED = 600.0  # seconds after which no process writes into a temporary folder any more


def examine(
    store: Store, area: str, root: Path, runs: list[records.Run], held: set[str]
) -> Iterator[Finding]:
    """Yield findings on the files of one study.

    These are rows without files, files without rows, half-written folders, left-over resume points,
    and the disk use of each run. ``held`` are the keys of claims that live processes hold.
    """
    saved = store.find(records.Checkpoint, run_id=[run.id for run in runs]) if runs else []
    yield from _rows(area, root, saved)
    yield from _orphans(store, area, root, runs, saved)
    for path in sorted(root.rglob("*.tmp")):
        if time.time() - path.stat().st_mtime > ABANDONED:
            what = f"{path.relative_to(root)} was never completed ({readable(_size(path))})"
            yield Finding("note", area, what, "delete it", partial(_delete, path))
    folders = {path.parents[1] for path in (root / row.path for row in saved)}
    by_folder = {(root / row.path).parents[1]: row.run_id for row in saved}
    states = {run.id: run for run in runs}
    for folder in sorted(path for path in folders if path.is_dir() and path.is_relative_to(root)):
        run = states[by_folder[folder]]
        yield Finding(
            "fact", area, f"{folder.relative_to(root)} ({run.status}): {readable(_size(folder))}"
        )
        resume = folder / "resume"
        if run.status == "done" and resume.is_dir():
            what = f"{resume.relative_to(root)}: the run is done and needs no resume point ({readable(_size(resume))})"
            yield Finding("note", area, what, "delete it", partial(_delete, resume))


def _rows(area: str, root: Path, saved: list[records.Checkpoint]) -> Iterator[Finding]:
    for row in saved:
        folder = (root / row.path).resolve()
        if not folder.is_relative_to(root):
            what = f"checkpoint {row.id}: its path '{row.path}' leads outside the study's folder"
            yield Finding(
                "problem", area, what, "the database has been tampered with: restore a backup"
            )
            continue
        try:
            manifest = checkpoint.read_manifest(folder)
        except CheckpointError as error:
            yield Finding("problem", area, f"checkpoint {row.id}: {error}", RESTORE)
            continue
        lacking = [name for name in manifest.files if not (folder / Path(name).name).is_file()]
        if lacking and not (folder / checkpoint.PRUNED).exists():
            what = f"checkpoint {row.id}: {row.path} lacks {', '.join(lacking)}"
            yield Finding("problem", area, what, RESTORE)
        elif manifest.weights_sha256 != row.sha256:
            what = f"checkpoint {row.id}: {row.path} holds other weights than its row"
            yield Finding(
                "problem",
                area,
                what,
                "restore the folder from a copy (lowrank checkpoint verify reads every byte)",
            )


def _orphans(
    store: Store, area: str, root: Path, runs: list[records.Run], saved: list[records.Checkpoint]
) -> Iterator[Finding]:
    """Yield findings on complete checkpoint folders without a row."""
    by_hash = {run.config_hash: run for run in runs}
    known, kept = {row.path for row in saved}, {(row.run_id, row.step) for row in saved}
    for path in sorted(root.glob(f"runs/*/checkpoints/step_*/{checkpoint.MANIFEST}")):
        folder = path.parent
        name = folder.relative_to(root).as_posix()
        if name in known:
            continue
        try:
            manifest = checkpoint.verify(folder)
        except CheckpointError as error:
            yield Finding(
                "problem",
                area,
                f"{name} has no row and is damaged: {error}",
                "delete it, or restore it from a copy",
            )
            continue
        run = by_hash.get(manifest.run_config_hash)
        if run is None:
            advice = "move it away, or import it: lowrank checkpoint import"
            yield Finding("note", area, f"{name} belongs to no run of this study", advice)
        elif (run.id, manifest.step) in kept:
            what = f"{name}: the row of its run's step {manifest.step} names another folder"
            yield Finding(
                "problem", area, what, "find out which is right: lowrank checkpoint verify"
            )
        else:
            adopt = partial(_adopt, store, name, manifest, run)
            yield Finding(
                "problem", area, f"{name} has no row", "add its row from its manifest", adopt
            )


def _adopt(store: Store, path: str, manifest: checkpoint.Manifest, run: records.Run) -> str:
    evaluation = store.first(records.EvaluationSet, sha256=manifest.evaluation_set_sha256)
    row = records.Checkpoint(
        run_id=run.id or 0,
        step=manifest.step,
        kind=manifest.kind,
        tokens_seen=manifest.tokens_seen,
        path=path,
        sha256=manifest.weights_sha256,
        bytes=manifest.bytes,
        validation_loss=manifest.validation_loss,
        validation_tokens=manifest.validation_tokens,
        evaluation_set_id=evaluation.id if evaluation else None,
    )
    return f"{path} is checkpoint {store.add(row).id}"


def _delete(path: Path) -> str:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()
    return f"{path} deleted"


def _size(path: Path) -> int:
    if path.is_file():
        return path.stat().st_size
    return sum(
        inner.stat().st_size
        for inner in path.rglob("*")
        if inner.is_file() and not inner.is_symlink()
    )
