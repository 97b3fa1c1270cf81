"""Random kill -9 over a whole study; what is left after the last restart equals the undisturbed
study.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from lowrank import checkpoint
from lowrank.store import Store, records
from lowrank.store.copy import differences

STUDY = """
name: {name}
output: {root}
methods:
  full_rank: {{}}
  galore: {{settings: {{update_proj_gap: 10}}}}
  relora: {{settings: {{merge_every: 10, restart_warmup: 2}}}}
scales:
  pico: {{shape: {{hidden_size: 16, intermediate_size: 24, num_hidden_layers: 2, num_attention_heads: 2, rank: 4}}}}
data: {{source: text, path: {corpus}, vocabulary_size: 300, max_length: 16, validation_fraction: 0.2, validation_tokens: 400}}
training: {{steps: 60, batch_size: 4, learning_rate: 0.01, checkpoint_every: 15}}
{sections}
"""
METRICS = "metrics: [spectra]"
WORDS = ["matrix", "rank", "gradient", "weight", "loss", "step", "seed", "token"]
LONGEST = 240.0  # seconds
ORDER = ["begin", "train", "measure", "evaluate", "predict", "report"]


class Nursery:
    """Processes of ``lowrank`` that have done their imports when they begin
    (tests/faults/nursery.py).
    """

    def __init__(self) -> None:
        command = [sys.executable, str(Path(__file__).with_name("nursery.py"))]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )

    def _ask(self, **asked: Any) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{json.dumps(asked)}\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())

    def start(self, place: Place, *arguments: str) -> int:
        """Start ``lowrank study run`` of a study; return the number of the process."""
        environment = {"LOWRANK_CACHE": str(place.cache), "LOWRANK_DATABASE_URL": place.url}
        return int(
            self._ask(
                run=["study", "run", str(place.file), *arguments],
                environment=environment,
                log=str(place.log),
            )
        )

    def wait(self, process: int, seconds: float) -> int | None:
        """Its exit status, None while it runs."""
        status: int | None = self._ask(wait=process, seconds=seconds)
        return status

    def close(self) -> None:
        """End it."""
        self._process.communicate()


@contextmanager
def nursery() -> Iterator[Nursery]:
    """Start a nursery for the block."""
    opened = Nursery()
    try:
        yield opened
    finally:
        opened.close()


@dataclass(frozen=True)
class Place:
    """A study file, its folder and its database."""

    root: Path
    url: str
    cache: Path

    @property
    def file(self) -> Path:
        return self.root.with_suffix(".yaml")

    @property
    def log(self) -> Path:
        return self.root.with_suffix(".log")

    def stages(self) -> list[tuple[int, str, float]]:
        """Return which process began which stage when, in order."""
        path = Path(f"{self.log}.stage")
        logged = [line.split() for line in path.read_text().splitlines()] if path.exists() else []
        return [(int(process), stage, float(when)) for process, stage, when in logged]

    def seconds(self) -> dict[str, float]:
        """Return how long each stage of the only process took, the last one until now."""
        logged = self.stages()
        ends = [start for _, _, start in logged[1:]] + [time.monotonic()]
        return {stage: end - start for (_, stage, start), end in zip(logged, ends, strict=True)}

    def stage(self, process: int) -> str:
        """Return the current or last stage of a process."""
        return next(
            (stage for number, stage, _ in reversed(self.stages()) if number == process), "begin"
        )


def written(
    folder: Path, name: str, url: str = "", sections: str = METRICS, study: str = "faults"
) -> Place:
    """Write a study file next to the corpus; killed studies share a cache, the undisturbed one has
    a separate one.
    """
    cache = folder / ("cache" if name == "whole" else "cache-of-the-killed")
    place = Place(folder / name, url or f"sqlite:///{folder / name}/lowrank.db", cache)
    place.file.write_text(
        STUDY.format(name=study, root=place.root, corpus=folder / "corpus.txt", sections=sections)
    )
    return place


def write_corpus(folder: Path, seed: int) -> None:
    """Write a text of 200 documents."""
    rng = random.Random(seed)
    documents = [" ".join(rng.choices(WORDS, k=40)) + f" {i}." for i in range(200)]
    (folder / "corpus.txt").write_text("\n\n".join(documents))


def finish(nursery: Nursery, place: Place) -> dict[str, float]:
    """Run to the end; the seconds that each stage took."""
    status = nursery.wait(nursery.start(place), LONGEST)
    assert status == 0, place.log.read_text()[-3000:]
    return place.seconds()


def kill_at_random(
    nursery: Nursery,
    place: Place,
    rng: random.Random,
    stages: Sequence[str],
    longest: Mapping[str, float],
    workers: int = 1,
) -> Counter[str]:
    """For each of ``stages`` kill one of ``workers`` processes up to ``longest`` seconds after it
    came there (or beyond, where nothing was left to do), and start another; the stages that the
    kills met. Then all come to their ends.
    """
    met: Counter[str] = Counter()
    running = [nursery.start(place) for _ in range(workers)]
    for stage in stages:
        victim = rng.randrange(workers)
        status = None
        while status is None and ORDER.index(place.stage(running[victim])) < ORDER.index(stage):
            status = nursery.wait(running[victim], 0.02)
        if status is None:
            status = nursery.wait(running[victim], rng.uniform(0.0, longest[stage]))
        if status is None:
            os.killpg(running[victim], signal.SIGKILL)
            status = nursery.wait(running[victim], LONGEST)
            met[place.stage(running[victim])] += status == -signal.SIGKILL
        assert status in (0, -signal.SIGKILL), place.log.read_text()[-3000:]
        running[victim] = nursery.start(place)
    for process in running:
        assert nursery.wait(process, LONGEST) == 0, place.log.read_text()[-3000:]
    return met


def csv_tables(place: Place) -> dict[str, bytes]:
    """Return the tables of a report, except those with time, memory, attempts and the state of the
    source code.
    """
    found = {path.name: path.read_bytes() for path in (place.root / "report").rglob("*.csv")}
    return {
        name: body
        for name, body in found.items()
        if name not in ("resources.csv", "runs.csv", "provenance.csv")
    }


def require_same(whole: Place, killed: Place) -> None:
    """Rows, weights and tables of a study that was killed are those of the undisturbed one, and
    nothing is left over.
    """
    with Store.open(whole.url) as expected, Store.open(killed.url) as stored:
        assert expected.count(records.Checkpoint) == 3 * 5
        assert expected.count(records.MetricValue) > 0
        problems = [
            line for line in differences(expected, stored) if not line.startswith("study")
        ]  # its folder has another name
        assert problems == [], problems[:5]
        for row in stored.find(records.Checkpoint):
            checkpoint.verify(killed.root / row.path, row.sha256)
        assert stored.count(records.WorkUnit) == 0
    tables = csv_tables(whole)
    assert len(tables) > 10
    found = csv_tables(killed)
    assert found.keys() == tables.keys()
    assert {name: body for name, body in found.items() if body != tables[name]} == {}
    assert (killed.root / "report" / "index.html").exists()
    left = [
        path
        for path in killed.root.rglob("*")
        if path.name.endswith(".tmp") or path.name == "resume"
    ]
    assert [
        path for path in left if not path.name.startswith(".report.")
    ] == []  # of those only the doctor knows how old they are


@pytest.fixture(scope="module")
def opened() -> Iterator[Nursery]:
    with nursery() as one:
        yield one


def test_a_study_survives_kills_at_random_moments(tmp_path: Path, opened: Nursery) -> None:
    write_corpus(tmp_path, seed=11)
    whole, killed = written(tmp_path, "whole"), written(tmp_path, "killed")
    seconds = finish(opened, whole)
    stages = ["begin", "train", "train", "train", "train", "measure", "measure", "report"]
    met = kill_at_random(
        opened, killed, random.Random(11), stages, {name: one / 3 for name, one in seconds.items()}
    )
    assert met.total() == len(stages)
    assert met["train"] >= 3
    require_same(whole, killed)


@pytest.mark.postgres
def test_two_studies_at_once_on_one_database(
    tmp_path: Path, opened: Nursery, postgres_store_url: str
) -> None:
    write_corpus(tmp_path, seed=11)
    places = [written(tmp_path, name, postgres_store_url, study=name) for name in ("one", "other")]
    processes = [opened.start(place, "--only", "train", "--only", "measure") for place in places]
    for process, place in zip(processes, places, strict=True):
        assert opened.wait(process, LONGEST) == 0, place.log.read_text()[-3000:]
    with Store.open(postgres_store_url) as store:
        studies = [
            store.find(records.Run, study_id=study.id) for study in store.find(records.Study)
        ]
        assert [[run.status for run in runs] for runs in studies] == [["done"] * 3] * 2
        held = [sorted(weights_and_ranks(store, runs)) for runs in studies]
        assert held[0] == held[1]
        assert len(held[0]) == 3 * 5
        assert store.count(records.WorkUnit) == 0


def weights_and_ranks(store: Store, runs: list[records.Run]) -> Iterator[tuple[Any, ...]]:
    """Return what two studies of the same runs have in common, by checkpoint."""
    for run in runs:
        for row in store.find(records.Checkpoint, run_id=run.id):
            ranks = store.find(
                records.MetricValue,
                checkpoint_id=row.id,
                metric="stable_rank_w",
                layer=-2,
                module="",
            )
            yield (
                run.method,
                row.step,
                row.sha256,
                row.validation_loss,
                tuple(rank.value for rank in ranks),
            )
