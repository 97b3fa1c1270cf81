"""Several processes of one launch compute a unit together: the rows are those of one process."""

from __future__ import annotations

import multiprocessing
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lowrank.measure import Selection, measure, plan
from lowrank.metrics import landscape
from lowrank.store import Store, records

LENSES = """
- {lens: landscape, variants: [main], settings: {directions: 5, components: [1, 5], trajectory: 2, examples: 3}}
- {lens: landscape, variants: [trained], settings: {directions: auto, fewest: 3, most: 9, relative_error: 0.3, examples: 3}}
- {lens: interpolation, settings: {points: 5, examples: 3, kinds: [consecutive]}}
- {lens: curvature, settings: {probes: 3, iterations: 2, examples: 3}}
- {lens: spectra, variants: [main], settings: {distributions: false}}
"""
DRAWN: list[int] = []
draw = landscape.random_direction


def counted(weights: Any, seed: int, index: int, normalization: Any) -> Any:
    """Return a direction, and record its number."""
    DRAWN.append(index)
    return draw(weights, seed, index, normalization)


def member(
    environment: dict[str, str],
    study: Any,
    options: dict[str, Any],
    answer: Any,
    breaks: int | None,
) -> None:
    """Measure in one process of a launch; rank 1 fails at direction ``breaks``."""
    os.environ |= environment
    rank = int(environment["RANK"])

    def broken(weights: Any, seed: int, index: int, normalization: Any) -> Any:
        if (rank, index) == (1, breaks):
            raise MemoryError("no room")
        return counted(weights, seed, index, normalization)

    landscape.random_direction = broken
    with Store.open(study.url) as store:
        outcome = measure(store, study.study, study.root, progress=False, **options)
    answer.send((outcome, DRAWN))


def launch(
    study: Any, world: int = 2, breaks: int | None = None, **options: Any
) -> list[tuple[Any, list[int]]]:
    """Measure in ``world`` processes; return (summary, numbers of drawn directions) of each."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # torch is imported already, and has one thread.
    context, waiting = multiprocessing.get_context("fork"), []
    DRAWN.clear()
    for rank in range(world):
        receiver, sender = context.Pipe(duplex=False)
        environment = {
            "RANK": str(rank),
            "WORLD_SIZE": str(world),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
        }
        process = context.Process(
            target=member, args=(environment, study, options, sender, breaks), daemon=True
        )
        process.start()
        sender.close()
        waiting.append((process, receiver))
    answers = []
    for process, receiver in waiting:
        assert receiver.poll(100), "the processes wait for one another"
        answers.append(receiver.recv())
        process.join(20)
    return answers


def content(store: Store) -> list[set[tuple[Any, ...]]]:
    """Return values and curve points."""
    pair = "checkpoint_id, reference_checkpoint_id, protocol_id"
    queries = (
        f"SELECT {pair}, metric, layer, module, value, standard_error, n FROM metric_value",
        f"SELECT {pair}, curve, position, mean, variance, n FROM curve_point",
    )
    return [set(store.select(query)[1]) for query in queries]


@pytest.fixture
def measured(make_study: Callable[..., Any], tmp_path: Path) -> Any:
    """Return a study that one process measured, emptied again; ``before`` has its rows."""
    tiny = make_study("full_rank", "relora", metrics=LENSES)
    tiny.url = str(tiny.store.url_masked)
    assert measure(tiny.store, tiny.study, tiny.root, progress=False).complete
    tiny.before = content(tiny.store)
    with tiny.store.connection(writes=True) as connection:
        for table in ("metric_value", "curve_point"):
            connection.exec_driver_sql(f"DELETE FROM {table}")
    return tiny


def test_shared_directions_give_the_rows_of_one_process(measured: Any) -> None:
    (first, drawn), (second, others) = launch(measured, split="directions")
    assert (first.failed, second.failed, second.units, second.helper) == ([], [], 0, True)
    assert content(measured.store) == measured.before, "bit for bit: both have one thread"
    assert plan(measured.store, measured.study, measured.root) == []
    assert {0, 2, 4} <= set(drawn)
    assert {1, 3} <= set(others)
    assert abs(len(drawn) - len(others)) <= 0.25 * len(drawn), "each draws about half"


def test_few_checkpoints_are_shared_by_their_directions(measured: Any) -> None:
    chosen = Selection(methods=("full_rank",), steps=(20,))
    outcomes = launch(measured, selection=chosen)
    assert [outcome.helper for outcome, _ in outcomes] == [False, True]
    outcomes = launch(measured)
    assert [outcome.helper for outcome, _ in outcomes] == [False, False], (
        "five checkpoints are enough for two"
    )
    assert [outcome.failed for outcome, _ in outcomes] == [[], []]
    assert min(outcome.units for outcome, _ in outcomes) > 0
    for found, before in zip(content(measured.store), measured.before, strict=True):
        assert sorted(found ^ before, key=str) == []


def test_what_one_process_cannot_compute_fails_for_all_and_stops_nobody(measured: Any) -> None:
    (first, _), (second, _) = launch(measured, breaks=3, split="directions")
    assert first.failed
    assert all(
        "MemoryError: no room" in sentence and "landscape" in sentence for sentence in first.failed
    )
    assert second.failed == []
    stored = {row.lens for row in measured.store.find(records.Protocol)}
    assert stored == {"landscape", "interpolation", "curvature", "spectra"}
    left = {
        task.variant.lens.name() for task in plan(measured.store, measured.study, measured.root)
    }
    assert left == {"landscape"}
    launch(measured, split="directions", retry_failed=True)
    for found, before in zip(content(measured.store), measured.before, strict=True):
        assert sorted(found ^ before, key=str) == []
