"""Worker processes on one machine."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import IO, Any

from tqdm import tqdm

POLL = 0.2  # seconds between two looks at the output of workers
BAR_EVERY = 10.0  # seconds between two states of one worker's progress bar
GRACE = 20.0  # seconds that a worker has to stop
ONCE = re.compile(r"(failed|note): ")  # sentences that every worker prints, shown once


class WorkerProcess:
    """A worker whose output goes to the file ``log``, so that it can outlive its launcher."""

    def __init__(
        self, index: int, command: Sequence[str], environment: Mapping[str, str], log: Path
    ) -> None:
        self.index, self.log = index, log
        self._written = log.open("wb")
        self.process = subprocess.Popen(
            command,
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=self._written,
            stderr=self._written,
        )
        self._reading: IO[bytes] = log.open("rb")
        self._rest, self._bar, self._bar_shown = b"", "", time.monotonic()

    def lines(self) -> Iterator[str]:
        """Yield what the worker has printed since the last call, line by line.

        The last state of its progress bar comes at most every ``BAR_EVERY`` seconds.
        """
        *parts, self._rest = re.split(rb"(?<=[\r\n])", self._rest + self._reading.read())
        for part in parts:
            text = part.decode(errors="replace").strip()
            if part.endswith(b"\r"):
                self._bar = text or self._bar
            elif text:
                yield text
        if self._bar and time.monotonic() - self._bar_shown > BAR_EVERY:
            yield self._bar
            self._bar, self._bar_shown = "", time.monotonic()

    def close(self) -> None:
        """Close the handles of the log file."""
        self._written.close()
        self._reading.close()


def run_workers(
    commands: Sequence[Sequence[str]], environments: Sequence[Mapping[str, str]], folder: Path
) -> list[int]:
    """Run the commands in parallel to their ends; return their exit statuses.

    Their output is logged in ``folder`` and shown on stderr, each line after its worker's number.
    Ctrl-C and SIGTERM stop the workers, too.
    """
    folder.mkdir(parents=True, exist_ok=True)
    workers: list[WorkerProcess] = []
    shown: set[str] = set()
    try:
        with _Interrupts() as interrupts:
            for index, (command, environment) in enumerate(
                zip(commands, environments, strict=True), start=1
            ):
                log = folder / f"worker-{index}.log"
                with interrupts.deferred():  # else a worker that has just started is not yet known
                    workers.append(WorkerProcess(index, command, environment, log))
            while any(worker.process.poll() is None for worker in workers):
                _show(workers, shown)
                time.sleep(POLL)
    except BaseException:
        _stop(workers)
        raise
    finally:
        _show(workers, shown)
        for worker in workers:
            worker.close()
    return [worker.process.returncode for worker in workers]


def _show(workers: Sequence[WorkerProcess], shown: set[str]) -> None:
    for worker in workers:
        for line in worker.lines():
            if ONCE.match(line):
                if line in shown:
                    continue
                shown.add(line)
            tqdm.write(f"{worker.index} | {line}", file=sys.stderr)


def _stop(workers: Sequence[WorkerProcess]) -> None:
    for worker in workers:
        worker.process.terminate()
    deadline = time.monotonic() + GRACE
    for worker in workers:
        try:
            worker.process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            worker.process.kill()
            worker.process.wait()


@contextmanager
def environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Set ``variables`` in this process's environment, which its children inherit, in the block."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


class _Interrupts:
    """Raises KeyboardInterrupt on SIGTERM as on Ctrl-C in the block, and defers both on request.

    Workers are stopped by the process that knows them: a signal between the start of one and its
    entry in the list would leave it running.
    """

    def __init__(self) -> None:
        self._deferring, self._pending = False, False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> _Interrupts:
        for number in (signal.SIGTERM, signal.SIGINT):
            self._before[number] = signal.signal(number, self._interrupt)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _interrupt(self, _signal: int, _frame: FrameType | None) -> None:
        if not self._deferring:
            raise KeyboardInterrupt
        self._pending = True

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Raise what arrives in the block at its end."""
        self._deferring = True
        try:
            yield
        finally:
            self._deferring = False
        if self._pending:
            raise KeyboardInterrupt


def environments(workers: int, url: str, accelerators: int) -> list[dict[str, str]]:
    """Return the environment of each worker.

    It names the database (other users of the machine can read arguments, but not environments),
    the worker's share of the cores unless OMP_NUM_THREADS is set, and one of the accelerators where
    there are any.
    """
    share = {"OMP_NUM_THREADS": str(max(1, cores() // workers)), "OMP_WAIT_POLICY": "PASSIVE"}
    base = {**share, **os.environ, "LOWRANK_DATABASE_URL": url}
    visible = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    visible = visible or [str(number) for number in range(accelerators)]
    if not accelerators or not visible:
        return [base] * workers
    return [
        {**base, "CUDA_VISIBLE_DEVICES": visible[index % len(visible)]} for index in range(workers)
    ]


def cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
