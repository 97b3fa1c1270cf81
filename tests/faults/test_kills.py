"""Random kill -9 over a whole study; what is left after the last restart equals the undisturbed study."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

from lowrank.store import Store, records
from lowrank.store.copy import differences

STUDY = """
name: faults
output: {root}
methods:
  full_rank: {{}}
  galore: {{settings: {{update_proj_gap: 10}}}}
  relora: {{settings: {{merge_every: 10, restart_warmup: 2}}}}
scales:
  pico: {{shape: {{hidden_size: 16, intermediate_size: 24, num_hidden_layers: 2, num_attention_heads: 2, rank: 4}}}}
data: {{source: text, path: {corpus}, vocabulary_size: 300, max_length: 16, validation_fraction: 0.2, validation_tokens: 400}}
training: {{steps: 60, batch_size: 4, learning_rate: 0.01, checkpoint_every: 15}}
metrics: [spectra]
"""
# benchmarks/faults.py asks for more: many seeds, and a stage that takes too long for every day.
KILLS = int(os.environ.get("LOWRANK_TEST_KILLS", "8"))
SEED = int(os.environ.get("LOWRANK_TEST_SEED", "11"))
STUDY += os.environ.get("LOWRANK_TEST_SECTIONS", "")


def start(study: Path, cache: Path) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "LOWRANK_CACHE": str(cache)}
    command = [sys.executable, "-m", "lowrank", "study", "run", str(study)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True)


def finish(study: Path, cache: Path) -> float:
    """Run to the end; the seconds it took."""
    begun = time.monotonic()
    process = start(study, cache)
    _, stderr = process.communicate(timeout=240)
    assert process.returncode == 0, stderr.decode()[-3000:]
    return time.monotonic() - begun


def written(tmp_path: Path, name: str) -> tuple[Path, Path]:
    root, file = tmp_path / name, tmp_path / f"{name}.yaml"
    file.write_text(STUDY.format(root=root, corpus=tmp_path / "corpus.txt"))
    return root, file


def test_a_study_survives_kills_at_random_moments(tmp_path: Path) -> None:
    words = ["matrix", "rank", "gradient", "weight", "loss", "step", "seed", "token"]
    rng = random.Random(SEED)
    documents = [" ".join(rng.choices(words, k=40)) + f" {i}." for i in range(200)]
    (tmp_path / "corpus.txt").write_text("\n\n".join(documents))
    whole_root, whole = written(tmp_path, "whole")
    seconds = finish(whole, tmp_path / "cache")
    root, study = written(tmp_path, "killed")
    for _ in range(KILLS):
        process = start(study, tmp_path / "cache-of-the-killed")
        try:
            process.wait(timeout=rng.uniform(0.25, 1.0) * seconds)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            print("killed", flush=True)  # benchmarks/faults.py counts
        process.communicate()
    finish(study, tmp_path / "cache-of-the-killed")
    with Store.open(f"sqlite:///{whole_root}/lowrank.db") as expected, Store.open(f"sqlite:///{root}/lowrank.db") as found:
        assert expected.count(records.Checkpoint) == 3 * 5
        assert expected.count(records.MetricValue) > 0
        problems = [line for line in differences(expected, found) if not line.startswith("study")]  # its folder has another name
        assert problems == []
    assert (root / "report" / "index.html").exists()
    assert not [path for path in root.rglob("*") if ".tmp" in path.name]
