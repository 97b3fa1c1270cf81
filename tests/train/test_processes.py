"""Two processes (torchrun and gloo) against one with twice the accumulation, for every method;
kills across processes.
"""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from lowrank import methods
from lowrank.store import Store, records
from lowrank.study import Plan, register
from lowrank.train.job import train
from lowrank.train.session import Job

HERE = Path(__file__).parent
SETTINGS = """
methods:
  full_rank: {}
  galore: {settings: {update_proj_gap: 4}}
  fira: {settings: {update_proj_gap: 4}}
  cola: {}
  sltrain: {settings: {sparsity: 0.1}}
  relora: {settings: {merge_every: 5, restart_warmup: 2, dropout: 0.0}}
"""


@pytest.fixture
def every_method(study_file: Path) -> Plan:
    """Return a plan of all methods with a refresh or merge inside ten updates and no dropout."""
    text = study_file.read_text().replace("methods: [full_rank]", SETTINGS)
    study_file.write_text(text)
    plan = Plan.of(
        study_file,
        ["training.steps=10", "training.checkpoint_every=5", "training.max_grad_norm=1.0"],
    )
    assert sorted(plan.study.methods) == methods.names(), (
        "a new method belongs into this test's study, too"
    )
    return plan


def torchrun(study: Path, root: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc_per_node",
        "2",
    ]
    command += [
        str(HERE / "two_processes.py"),
        str(study),
        *arguments,
        "--",
        "--set",
        "training.steps=10",
    ]
    command += [
        "--set",
        "training.checkpoint_every=5",
        "--set",
        "training.max_grad_norm=1.0",
        "--set",
        f"output={root}",
    ]
    return subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def curves(url: str) -> dict[str, list[float]]:
    with Store.open(url) as store:
        runs = store.find(records.Run)
        assert {(run.method, run.status) for run in runs} == {(run.method, "done") for run in runs}
        return {
            run.method: [point.loss for point in store.find(records.TrainingLog, run_id=run.id)]
            for run in runs
        }


def test_two_processes_follow_one(every_method: Plan, study_file: Path, tmp_path: Path) -> None:
    two = replace(every_method, root=tmp_path / "two")
    done = torchrun(study_file, two.root, *every_method.study.methods)
    assert done.returncode == 0, done.stderr[-3000:]
    one = replace(every_method, root=tmp_path / "one")
    torch.set_num_threads(1)
    with Store.open(one.database, create=True) as store:
        for config, run in register(store, one)[1]:
            # Two processes hold two rows each; one process takes its four rows in two
            # micro-batches.
            config = config.model_copy(
                update={"training": config.training.model_copy(update={"micro_batch_size": 2})}
            )
            train(Job(config, run, one.root, store))
    alone, together = curves(one.database), curves(two.database)
    with Store.open(two.database) as store:
        assert {run.world_size for run in store.find(records.Run)} == {2}
    for method, losses in alone.items():
        assert len(losses) == 10
        assert together[method] == pytest.approx(losses, abs=1e-4), method
        assert losses[-1] < losses[0]
