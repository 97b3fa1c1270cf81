"""Several `lowrank study run` on one store: each run trained once, each checkpoint measured once,
one of them killed.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from filelock import FileLock

from lowrank.cli.main import run
from lowrank.store import Store, records
from lowrank.store.claims import Claim
from lowrank.study import Plan


def start(study: Path, url: str, *arguments: str) -> subprocess.Popen[str]:
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "LOWRANK_CACHE": str(study.parent / "cache"),
        "LOWRANK_DATABASE_URL": url,
    }
    command = [
        sys.executable,
        "-m",
        "lowrank",
        "study",
        "run",
        str(study),
        "--only",
        "train",
        "--only",
        "measure",
        *arguments,
    ]
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )


def done_units(stderr: str) -> tuple[int, int]:
    """Return the runs trained and units measured, as the command prints them."""
    found = re.search(r"train (\d+), measure (\d+)", stderr)
    assert found is not None, stderr
    return int(found[1]), int(found[2])


def test_three_processes_share_a_study_and_one_is_killed(study: Path, store_url: str) -> None:
    processes = [start(study, store_url) for _ in range(3)]
    with Store.open(store_url) as store:
        deadline = time.monotonic() + 120
        while not store.find(records.WorkUnit, kind="train") and time.monotonic() < deadline:
            time.sleep(0.05)
        (claim, *_) = store.find(records.WorkUnit, kind="train")
        victim = next(
            process for process in processes if str(process.pid) == claim.owner.split("/")[1]
        )
        os.kill(victim.pid, signal.SIGKILL)
        counts = []
        for process in processes:
            _, stderr = process.communicate(timeout=240)
            if process is not victim:
                assert process.returncode == 0, stderr[-3000:]
                counts.append(done_units(stderr))
        runs = store.find(records.Run)
        assert [run.status for run in runs] == ["done"] * 4
        assert sum(run.attempts for run in runs) in (
            4,
            5,
        )  # the victim's run was begun twice, unless it died before it began
        assert store.count(records.Checkpoint) == 12
        measured = {value.checkpoint_id for value in store.find(records.MetricValue)}
        assert len(measured) == 12
        assert store.count(records.WorkUnit) == 0
        trained, units = map(sum, zip(*counts, strict=True))
        assert trained == 4
        stored = [*store.find(records.MetricValue), *store.find(records.SingularValue)]
        assert units == len(
            {
                (value.checkpoint_id, value.reference_checkpoint_id, value.protocol_id)
                for value in stored
            }
        )


def test_who_finds_the_folder_in_use_waits_and_goes_on(
    study: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Let the claim of a frozen process lapse, which still exists and holds the run's lock."""
    monkeypatch.setenv("LOWRANK_CACHE", str(study.parent / "cache"))
    chosen = ["--set", "methods=[cola]", "--set", "seeds=[0]"]
    (config,) = Plan.of(study, ["methods=[cola]", "seeds=[0]"]).runs
    folder = study.parent / "out" / "runs" / config.folder
    folder.mkdir(parents=True)
    lock = FileLock(folder / "train.lock", thread_local=False)
    lock.acquire()
    give_up = Claim.give_up
    monkeypatch.setattr(Claim, "give_up", lambda claim: (give_up(claim), lock.release()))
    assert run(["study", "run", str(study), "--only", "train", *chosen]) == 0
    err = capsys.readouterr().err
    assert err.count("note: ") == err.count("another process is training this run") == 1
    assert "train 1 units done, 0 failed" in err
