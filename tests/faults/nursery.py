"""A process that has imported lowrank and forks a command line of it for each line of its standard
input.

A command that is killed early has then done something else than importing. A line is JSON:
``{"run": arguments, "environment": variables, "log": file}`` is answered by the process's number;
``{"wait": number, "seconds": s}`` by its status, null while it runs. Beside the log, ``….stage``
tells which process began which stage of its study when.
"""

from __future__ import annotations

import dataclasses
import importlib
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

PRELOADED = (
    "lowrank.cli.study",
    "lowrank.train.job",
    "lowrank.measure",
    "lowrank.evaluate",
    "lowrank.predict",
    "lowrank.report",
    "lm_eval",
    "lowrank.evaluate.harness",
    "lowrank.study.launch",
    "transformers.models.llama.modeling_llama",
    "sqlalchemy.dialects.sqlite",
)


def fork(asked: dict[str, Any]) -> int:
    """Start a command line of lowrank in a session of its own."""
    child = os.fork()
    if child:
        return child
    try:
        os.setsid()
        os.environ.update(asked["environment"])
        log = os.open(asked["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        for stream in (1, 2):
            os.dup2(log, stream)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        log_stages(Path(f"{asked['log']}.stage"))
        status = importlib.import_module("lowrank.cli.main").run(asked["run"])
        sys.stderr.flush()
        os._exit(status)
    except BaseException:
        sys.excepthook(*sys.exc_info())
        sys.stderr.flush()
        os._exit(70)


def log_stages(path: Path) -> None:
    """Make each stage of a study log its name as it begins."""
    stages = importlib.import_module("lowrank.study").STAGES

    def tell(name: str) -> None:
        with path.open("a", encoding="utf-8") as log:
            log.write(f"{os.getpid()} {name} {time.monotonic()}\n")

    def telling(stage: Any) -> Any:
        def logged(*arguments: Any) -> int:
            tell(stage.name)
            return int(stage.run(*arguments))

        return dataclasses.replace(stage, run=logged)

    tell("begin")
    for name, stage in list(stages.items()):
        stages[name] = telling(stage)


def wait(child: int, seconds: float) -> int | None:
    """Return the exit status (negative: the signal), None if it still runs after ``seconds``."""
    deadline = time.monotonic() + seconds
    while True:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() >= deadline:
            return None
        time.sleep(0.005)


def main() -> None:
    """Serve until the end of standard input."""
    for name in PRELOADED:
        importlib.import_module(name)
    for line in sys.stdin:
        asked = json.loads(line)
        answer = fork(asked) if "run" in asked else wait(asked["wait"], asked["seconds"])
        sys.stdout.write(f"{json.dumps(answer)}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
