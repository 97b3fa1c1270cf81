"""Several `lowrank study run` on one store: each run trained once, each checkpoint measured once, one of them killed."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

from lowrank.store import Store, records


def start(study: Path, url: str, *arguments: str) -> subprocess.Popen[str]:
    environment = {
        **os.environ, "OMP_NUM_THREADS": "1", "LOWRANK_CACHE": str(study.parent / "cache"), "LOWRANK_DATABASE_URL": url,
    }
    command = [sys.executable, "-m", "lowrank", "study", "run", str(study), "--only", "train", "--only", "measure", *arguments]
    return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def done_units(stderr: str) -> tuple[int, int]:
    """Runs trained and units measured, as the command says."""
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
        victim = next(process for process in processes if str(process.pid) == claim.owner.split("/")[1])
        os.kill(victim.pid, signal.SIGKILL)
        counts = []
        for process in processes:
            _, stderr = process.communicate(timeout=240)
            if process is not victim:
                assert process.returncode == 0, stderr[-3000:]
                counts.append(done_units(stderr))
        runs = store.find(records.Run)
        assert [run.status for run in runs] == ["done"] * 4
        assert sum(run.attempts for run in runs) in (4, 5)  # the victim's run was begun twice, unless it died before it began
        assert store.count(records.Checkpoint) == 12
        measured = {value.checkpoint_id for value in store.find(records.MetricValue)}
        assert len(measured) == 12
        assert store.count(records.WorkUnit) == 0
        trained, units = map(sum, zip(*counts, strict=True))
        assert trained == 4
        stored = [*store.find(records.MetricValue), *store.find(records.SingularValue)]
        assert units == len({(value.checkpoint_id, value.reference_checkpoint_id, value.protocol_id) for value in stored})
