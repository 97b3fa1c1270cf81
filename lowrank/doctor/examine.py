"""Examine the environment, the database, and each study's rows against its files."""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Iterator
from functools import partial
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement

from lowrank import logs
from lowrank.config.schema import Study
from lowrank.doctor import files
from lowrank.doctor.finding import Finding, readable
from lowrank.doctor.retention import retention
from lowrank.store import Store, health, records
from lowrank.store.claims import Claims
from lowrank.store.owner import describe

REPORTED = ("torch", "transformers", "accelerate", "sqlalchemy", "lm-eval", "psycopg", "submitit")
ROOM = 2**30  # bytes of free disk below which a study has a problem


def environment() -> Iterator[Finding]:
    """Yield findings on versions, required and installed, and on the machine's resources."""
    import torch

    from lowrank import __version__

    system = f"Python {platform.python_version()}, {platform.platform(terse=True)}"
    yield Finding("fact", "environment", f"lowrank {__version__}, {system}")
    found = {name: _version(name) for name in REPORTED}
    yield Finding(
        "fact",
        "environment",
        ", ".join(f"{name} {version or 'not installed'}" for name, version in found.items()),
    )
    for text in metadata.requires("lowrank") or ():
        requirement = Requirement(text)
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        version = _version(requirement.name)
        if version is None or not requirement.specifier.contains(version, prereleases=True):
            wanted = f"{requirement.name}{requirement.specifier}"
            what = f"{wanted} is needed, {version or 'nothing'} is installed"
            yield Finding("problem", "environment", what, f"pip install '{wanted}'")
    devices = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())] or [
        "no accelerator"
    ]
    threads = os.environ.get("OMP_NUM_THREADS", "not set")
    yield Finding(
        "fact",
        "environment",
        f"{os.cpu_count()} cores, OMP_NUM_THREADS {threads}, {', '.join(devices)}",
    )


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def examine(
    store: Store, config: Study | None = None, root: Path | None = None
) -> Iterator[Finding]:
    """Yield findings on the store and the studies in it.

    With ``config``, only that study is examined, under ``root``, together with its section
    ``keep``.
    """
    yield Finding(
        "fact", "store", f"{store.url_masked}, {readable(health.size(store))}, schema up to date"
    )
    for sentence in health.damage(store):
        yield Finding(
            "problem",
            "store",
            sentence,
            "restore a backup; keep a copy of the damaged file (docs/store.md)",
        )
    yield from _claims(store)
    for protocol in health.unused_protocols(store):
        what = (
            f"protocol {protocol.id} '{protocol.name}' of lens '{protocol.lens}': no value uses it"
        )
        yield Finding(
            "note", "store", what, "delete its row", partial(_drop_protocol, store, protocol)
        )
    for row in store.find(records.Study):
        if config is None or row.name == config.name:
            yield from _study(store, row, config, (root or Path(row.root)).resolve())


def _claims(store: Store) -> Iterator[Finding]:
    for unit in health.dead_claims(store):
        what = f"'{unit.unit_key}' is claimed by {describe(unit.owner)}, which has died or does not respond"
        yield Finding(
            "note",
            "claims",
            what,
            "any worker takes it over; or drop the claim",
            partial(_drop_claim, store, unit),
        )
    failed = store.find(records.WorkUnit, status="failed")
    roots = {row.id: row.root for row in store.find(records.Study)}
    for kind in sorted({unit.kind for unit in failed}):
        units = [unit for unit in failed if unit.kind == kind]
        what = f"{len(units)} failed ({kind}), such as: {units[-1].error}"
        cause = _cause(Path(roots.get(units[-1].study_id, "")))
        advice = f"{cause}, then: lowrank study run FILE --retry-failed"
        yield Finding("problem", "claims", what, advice)


def _study(store: Store, row: records.Study, config: Study | None, root: Path) -> Iterator[Finding]:
    area = f"study {row.name}"
    if not root.is_dir():
        advice = "give the study file on the machine that has it, or restore it"
        yield Finding("problem", area, f"its folder {root} is not here", advice)
        return
    free = shutil.disk_usage(root).free
    level = "problem" if free < ROOM else "fact"
    yield Finding(
        level,
        area,
        f"{root}: {readable(free)} free on its disk",
        "free some space" if free < ROOM else "",
    )
    runs = store.find(records.Run, study_id=row.id)
    held = Claims(store, "train").taken()
    for run in runs:
        if run.status == "running" and f"train/{row.name}/{run.config_hash}" not in held:
            what = f"run {run.id} ({run.method} {run.scale} s{run.seed}) was started, but no process is working on it"
            yield Finding("note", area, what, "lowrank study run FILE resumes it")
        if run.status == "failed":
            diverged = run.failed_step is not None
            advice = (
                "a result; --retry-failed tries it again"
                if diverged
                else f"{_cause(root)}, then --retry-failed"
            )
            what = f"run {run.id} ({run.method} {run.scale} s{run.seed}) failed: {run.error}"
            yield Finding("note" if diverged else "problem", area, what, advice)
    yield from files.examine(store, area, root, runs, held)
    if config is not None:
        yield from retention(store, area, config, root, runs)


def _cause(root: Path) -> str:
    """What to do about a failure, with the log of its study where there is one."""
    log = logs.path(root)
    return f"fix the cause (see {log})" if log.is_file() else "fix the cause"


def _drop_protocol(store: Store, protocol: records.Protocol) -> str:
    return (
        f"protocol {protocol.id} deleted"
        if health.drop_protocol(store, protocol)
        else f"protocol {protocol.id} is in use now"
    )


def _drop_claim(store: Store, unit: records.WorkUnit) -> str:
    return (
        f"claim on '{unit.unit_key}' dropped"
        if health.drop_claim(store, unit)
        else f"'{unit.unit_key}' has another owner now"
    )
