"""A wheel in an empty environment away from the checkout does what the checkout does."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
STUDY = """
name: wheel
methods: [full_rank, galore]
scales: {pico: {shape: {hidden_size: 16, intermediate_size: 24, num_hidden_layers: 1, num_attention_heads: 2, rank: 4}}}
data: {source: text, path: corpus.txt, vocabulary_size: 300, max_length: 16, validation_fraction: 0.2, validation_tokens: 200}
training: {steps: 4, batch_size: 2, checkpoint_every: 2}
metrics: [spectra]
"""


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh environment with the wheel; its dependencies are those of this one, lowrank itself is
    not visible.
    """
    folder = tmp_path_factory.mktemp("wheel")
    for name in (
        "lowrank",
        "cli",
        "sql",
        "migrations",
    ):  # a copy: building leaves files in the tree
        shutil.copytree(
            ROOT / name, folder / "source" / name, ignore=shutil.ignore_patterns("__pycache__")
        )
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder / "source")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    subprocess.run(
        [
            *pip,
            "wheel",
            "-q",
            "--no-deps",
            "--no-build-isolation",
            "-w",
            folder / "dist",
            folder / "source",
        ],
        check=True,
        timeout=300,
    )
    subprocess.run(
        [sys.executable, "-m", "venv", "--without-pip", folder / "venv"], check=True, timeout=120
    )
    (wheel,) = (folder / "dist").glob("lowrank-*.whl")
    python = folder / "venv" / "bin" / "python"
    subprocess.run(
        [*pip, "--python", python, "install", "-q", "--no-deps", wheel], check=True, timeout=120
    )
    (site,) = (folder / "venv" / "lib").glob("python*/site-packages")
    # A path in a .pth file is searched, but the .pth files in it (an editable lowrank among them)
    # are not read.
    (site / "dependencies.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    return folder


def call(environment: Path, *command: str, cwd: Path) -> str:
    program, *rest = command
    clean = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}
    clean |= {"LOWRANK_CACHE": str(environment / "cache"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [environment / "venv" / "bin" / program, *rest],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=300,
        env=clean,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_the_wheel_holds_no_top_level_strangers(environment: Path, tmp_path: Path) -> None:
    code = (
        "import importlib.util as u, lowrank; print(lowrank.__file__); "
        "print([n for n in ('cli', 'sql', 'migrations', 'tests') if u.find_spec(n)])"
    )
    where, strangers = call(environment, "python", "-c", code, cwd=tmp_path).splitlines()
    assert Path(where).is_relative_to(environment)
    assert strangers == "[]"


def test_the_wheel_runs_a_study_to_its_report(environment: Path, tmp_path: Path) -> None:
    words = ["matrix", "rank", "gradient", "weight", "loss", "step", "seed", "token"]
    documents = [" ".join(words[(i * j) % 8] for j in range(1, 40)) + f" {i}." for i in range(200)]
    (tmp_path / "corpus.txt").write_text("\n\n".join(documents))
    (tmp_path / "wheel.yaml").write_text(STUDY)
    report = call(environment, "lowrank", "study", "run", "wheel.yaml", cwd=tmp_path).strip()
    assert "galore" in (tmp_path / report).read_text()
    call(environment, "lowrank", "db", "check", "--db", "outputs/wheel/lowrank.db", cwd=tmp_path)
    rows = call(
        environment,
        "lowrank",
        "query",
        "perplexity",
        "--param",
        "study=wheel",
        "--format",
        "csv",
        "--db",
        "outputs/wheel/lowrank.db",
        cwd=tmp_path,
    )
    assert len(rows.splitlines()) == 3
