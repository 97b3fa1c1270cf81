"""Launchers: several processes of one machine, and job arrays through submitit's local executor."""

from __future__ import annotations

import importlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from lowrank.cli.main import run
from lowrank.store import Store, records
from lowrank.study import processes, slurm

SMALL = ["--set", "methods=[full_rank]"]
JOBS = ["--set", "slurm={cluster: local, gpus_per_node: 0, timeout_minutes: 5}"]


@pytest.fixture(autouse=True)
def home(study: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOWRANK_CACHE", str(study.parent / "cache"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def require_whole(root: Path, runs: int) -> None:
    with Store.open(root / "lowrank.db") as store:
        assert [run.status for run in store.find(records.Run)] == ["done"] * runs
        saved = store.find(records.Checkpoint)
        assert len(saved) == 3 * runs
        assert {value.checkpoint_id for value in store.find(records.MetricValue)} == {
            row.id for row in saved
        }
        assert store.count(records.WorkUnit) == 0


def test_processes_share_a_study(study: Path, capfd: pytest.CaptureFixture[str]) -> None:
    stages = ["--only", "train", "--only", "measure"]
    assert (
        run(
            [
                "study",
                "run",
                str(study),
                "--launcher",
                "processes",
                "--workers",
                "2",
                *stages,
                *SMALL,
            ]
        )
        == 0
    )
    err = capfd.readouterr().err
    require_whole(study.parent / "out", 2)
    assert "1 | " in err
    assert "2 | " in err
    begun = time.monotonic()
    assert (
        run(
            [
                "study",
                "run",
                str(study),
                "--launcher",
                "processes",
                "--workers",
                "2",
                "--only",
                "train",
                *SMALL,
            ]
        )
        == 0
    )
    assert time.monotonic() - begun < 20  # nothing is missing: no worker is started
    assert "|" not in capfd.readouterr().err


def test_jobs_of_submitit_do_a_study(study: Path, capfd: pytest.CaptureFixture[str]) -> None:
    one = ["--set", "seeds=[0]", "--set", "methods=[cola]", "--only", "train", "--only", "measure"]
    assert (
        run(["study", "run", str(study), "--launcher", "slurm", "--workers", "1", *one, *JOBS]) == 0
    ), capfd.readouterr().err
    require_whole(study.parent / "out", 1)
    assert list((study.parent / "out" / "logs" / "jobs").glob("*/*_log.out"))


def test_what_failed_under_a_launcher_is_reported_once_and_is_the_exit_status(
    study: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """Run the workers as calls in this process, which saves two starts of Python."""
    monkeypatch.setattr(
        processes, "run_workers", lambda commands, *_: [run(command[3:]) for command in commands]
    )
    bad = ["--set", "training.batch_size=100000", "--only", "train"]
    assert run(["study", "run", str(study), "--launcher", "processes", "--workers", "2", *bad]) == 1
    err = capfd.readouterr().err
    reported = [
        line for line in err.split("units done")[2].splitlines() if line.startswith("failed: ")
    ]  # after both workers
    assert len(reported) == 4
    assert all("batch" in line for line in reported)


def test_what_workers_say_is_shown_under_their_numbers_and_failures_once(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    code = "import sys; print('hello'); print('failed: the same'); print('bar 1', end='\\r'); sys.exit({status})"
    commands = [[sys.executable, "-S", "-c", code.format(status=status)] for status in (0, 3)]
    assert processes.run_workers(commands, [dict(os.environ)] * 2, tmp_path / "logs") == [0, 3]
    err = capfd.readouterr().err
    assert err.count("failed: the same") == 1
    assert "1 | hello" in err
    assert "2 | hello" in err
    assert "bar" not in err  # a progress bar is shown now and then only
    assert "failed: the same" in (tmp_path / "logs" / "worker-2.log").read_text()


def test_a_stopped_launcher_stops_its_workers(study: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "lowrank",
        "study",
        "run",
        str(study),
        "--launcher",
        "processes",
        "--workers",
        "2",
    ]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    logs = study.parent / "out" / "logs"
    deadline = time.monotonic() + 60
    while not (logs / "worker-2.log").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130, stderr
    assert "Interrupted." in stderr
    children = [p for p in Path("/proc").glob("[0-9]*/cmdline") if str(study).encode() in _read(p)]
    assert children == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_right_after_the_start_of_a_worker_stops_it_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    started: list[subprocess.Popen[bytes]] = []
    real = subprocess.Popen

    def start(*arguments: Any, **options: Any) -> subprocess.Popen[bytes]:
        started.append(real(*arguments, **options))
        if len(started) == 2:
            signal.raise_signal(number)
        return started[-1]

    monkeypatch.setattr(processes.subprocess, "Popen", start)
    before = signal.getsignal(number)
    with pytest.raises(KeyboardInterrupt):
        processes.run_workers([["sleep", "30"]] * 3, [dict(os.environ)] * 3, tmp_path / "logs")
    try:
        assert len(started) == 2
        assert [one.poll() for one in started] == [-signal.SIGTERM] * 2
    finally:
        for one in started:
            one.kill()
    assert signal.getsignal(number) is before


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--workers", "2"), "--launcher processes or slurm"),
        (("--launcher", "processes", "--workers", "9"), "use fewer, or PostgreSQL"),
        (("--launcher", "slurm"), "an SQLite file serves one machine; give --db postgresql"),
        (("--launcher", "slurm", "--set", "slurm={gpus: 1}"), "gpus"),
    ],
)
def test_what_cannot_work_is_one_sentence(
    study: Path, capsys: pytest.CaptureFixture[str], arguments: Any, words: str
) -> None:
    assert run(["study", "run", str(study), *arguments]) == 2
    assert words in capsys.readouterr().err


def test_a_missing_submitit_is_named_with_its_extra(
    study: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(sys.modules, "submitit", None)
    assert run(["study", "run", str(study), "--launcher", "slurm", "--workers", "1", *JOBS]) == 1
    assert "pip install 'lowrank[slurm]'" in capsys.readouterr().err


def test_the_database_is_in_no_argument_and_cores_are_shared(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS")
    monkeypatch.setattr(processes, "cores", lambda: 8)
    made = processes.environments(3, "postgresql://me:secret@host/db", 0)
    assert [one["OMP_NUM_THREADS"] for one in made] == ["2"] * 3
    assert made[0]["LOWRANK_DATABASE_URL"] == "postgresql://me:secret@host/db"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,6")
    assert [one["CUDA_VISIBLE_DEVICES"] for one in processes.environments(3, "x", 2)] == [
        "4",
        "6",
        "4",
    ]


def test_several_nodes_meet_at_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    from lowrank.config.schema import Slurm

    command = slurm.accelerate_launch(
        Slurm(nodes=2, gpus_per_node=4, accelerate=("--mixed_precision", "no")),
        ["--method", "cola"],
    )

    class Job:
        node, hostnames, job_id = 1, ("first", "second"), "123_4"

    ran: list[list[str]] = []
    module = importlib.import_module("submitit")
    monkeypatch.setattr(module, "JobEnvironment", Job)
    monkeypatch.setattr(
        subprocess,
        "run",
        lambda command, **_: ran.append(command) or subprocess.CompletedProcess(command, 3),
    )
    assert slurm.run_on_node(command) == 3
    command = " ".join(ran[0])
    assert "--num_processes 8 --num_machines 2" in command
    assert "--machine_rank 1 --main_process_ip first --main_process_port 21234" in command
    assert command.endswith("--mixed_precision no -m lowrank.train --method cola")
    assert os.environ.get("RANK") is None


SBATCH = """#!{python}
import pathlib, shutil, sys
shutil.copy(sys.argv[-1], {folder!r})
print("Submitted batch job 77")
"""


@pytest.mark.parametrize("whole_nodes", [True, False])
def test_the_script_of_a_job_array_asks_for_what_the_file_says(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    whole_nodes: bool,
) -> None:
    """Keep the script that submitit writes by a stand-in for Slurm's sbatch; what runs on the nodes
    is tested above.
    """
    from lowrank.config.schema import Slurm

    commands, scripts = tmp_path / "bin", tmp_path / "scripts"
    commands.mkdir()
    scripts.mkdir()
    for name in ("sbatch", "srun", "sacct", "scancel"):
        (commands / name).write_text(SBATCH.format(python=sys.executable, folder=str(scripts)))
        (commands / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(commands), prepend=":")
    monkeypatch.setenv("LOWRANK_DATABASE_URL", "postgresql://me:hunter2@host/db")
    section = Slurm(
        nodes=2,
        gpus_per_node=8,
        cpus_per_task=12,
        memory_gb=64,
        timeout_minutes=720,
        partition="gpu",
        account="lab",
        additional={"constraint": "h100"},
    )
    command = slurm.accelerate_launch(section, ["--config", "study.yaml"])
    jobs = slurm.submit(
        [command, command], section, 1, tmp_path / "jobs", "demo-train", whole_nodes=whole_nodes
    )
    assert [job.job_id for job in jobs] == ["77_0", "77_1"]
    (script,) = scripts.iterdir()
    asked = {
        line.removeprefix("#SBATCH ").strip()
        for line in script.read_text().splitlines()
        if line.startswith("#SBATCH")
    }
    nodes, gpus = ("2", "8") if whole_nodes else ("1", "1")
    assert asked >= {
        f"--nodes={nodes}",
        f"--gpus-per-node={gpus}",
        "--ntasks-per-node=1",
        "--cpus-per-task=12",
        "--mem=64GB",
        "--time=720",
        "--partition=gpu",
        "--account=lab",
        "--constraint=h100",
        "--job-name=demo-train",
        "--array=0-1%1",
    }
    written = [
        path
        for folder in (scripts, tmp_path / "jobs")
        for path in folder.rglob("*")
        if path.is_file()
    ]
    assert any(b"accelerate.commands.launch" in path.read_bytes() for path in written)
    assert not any(
        b"hunter2" in path.read_bytes() for path in written
    )  # the environment carries it
