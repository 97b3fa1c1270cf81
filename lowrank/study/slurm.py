"""Jobs of a Slurm cluster through submitit: what is missing becomes job arrays."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from lowrank.config.schema import Slurm
from lowrank.errors import LowrankError, UsageError
from lowrank.progress import progress_bar

POLL = 1.0
FIRST_PORT, PORTS = 20_000, 20_000  # for the processes of one run to meet


def submitit() -> Any:
    """The module submitit; without it, one sentence."""
    try:
        import submitit as module
    except ModuleNotFoundError as error:
        raise LowrankError(
            "the launcher slurm needs submitit; install it with: pip install 'lowrank[slurm]'"
        ) from error
    return module


def submit(
    commands: Sequence[list[str]],
    slurm: Slurm,
    parallel: int,
    folder: Path,
    name: str,
    *,
    whole_nodes: bool,
) -> list[Any]:
    """Submit one array with an element for each command; ``whole_nodes``: each runs on all nodes
    that ``slurm`` asks for.
    """
    executor = submitit().AutoExecutor(folder=folder / "%j", cluster=slurm.cluster)
    nodes = slurm.nodes if whole_nodes else 1
    given: dict[str, Any] = {
        "name": name,
        "nodes": nodes,
        "tasks_per_node": 1,
        "cpus_per_task": slurm.cpus_per_task,
        "timeout_min": slurm.timeout_minutes,
        "gpus_per_node": slurm.gpus_per_node if whole_nodes else min(1, slurm.gpus_per_node),
        "mem_gb": slurm.memory_gb,
        "slurm_partition": slurm.partition,
        "slurm_account": slurm.account,
        "slurm_qos": slurm.qos,
        "slurm_array_parallelism": parallel,
        "slurm_additional_parameters": slurm.additional or None,
    }
    executor.update_parameters(**{key: value for key, value in given.items() if value is not None})
    return list(executor.map_array(run_on_node, commands))


def run_on_node(command: list[str]) -> int:
    """What a job does on each of its nodes: the command, told which node it is; its exit status."""
    job = submitit().JobEnvironment()
    head, port = (
        job.hostnames[0],
        FIRST_PORT + int("0" + "".join(filter(str.isdigit, str(job.job_id)))) % PORTS,
    )
    known = {"{node}": str(job.node), "{head}": head, "{port}": str(port)}
    return subprocess.run(
        [known.get(word, word) for word in command], check=False, env=_plain_environment()
    ).returncode


def _plain_environment() -> dict[str, str]:
    """Without the variables by which a launcher inside a job would take itself for one of Slurm's
    own tasks.
    """
    return {
        key: value
        for key, value in os.environ.items()
        if key not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")
    }


def accelerate_launch(slurm: Slurm, arguments: Sequence[str]) -> list[str]:
    """``accelerate launch … -m lowrank.train …`` for all accelerators of all nodes that ``slurm``
    asks for.
    """
    processes = max(1, slurm.gpus_per_node) * slurm.nodes
    given = [
        "--num_processes",
        str(processes),
        "--num_machines",
        str(slurm.nodes),
        "--dynamo_backend",
        "no",
    ]
    if slurm.gpus_per_node == 0:
        if slurm.nodes > 1:
            raise UsageError(
                "slurm.nodes: several nodes need accelerators; set slurm.gpus_per_node, or slurm.nodes to 1"
            )
        given.append("--cpu")
    elif processes > 1:
        given.append("--multi_gpu")
    if slurm.nodes > 1:
        given += ["--machine_rank", "{node}", "--main_process_ip", "{head}"]
    given += ["--main_process_port", "{port}"]
    return [
        sys.executable,
        "-m",
        "accelerate.commands.launch",
        *given,
        *slurm.accelerate,
        "-m",
        "lowrank.train",
        *arguments,
    ]


def wait(jobs: Sequence[Any], what: str) -> None:
    """Return when all jobs have ended, however they did. Interrupted, it leaves them alone and says
    how to stop them.
    """
    array = str(jobs[0].job_id).partition("_")[0]
    try:
        with progress_bar(
            total=len(jobs), desc=f"{what}: jobs of array {array}", unit="job"
        ) as bar:
            while bar.n < len(jobs):
                bar.update(sum(job.done() for job in jobs) - bar.n)
                time.sleep(POLL)
    except KeyboardInterrupt:
        tqdm.write(
            f"the jobs go on; scancel {array} stops them, the same command waits for what they hold",
            file=sys.stderr,
        )
        raise
