"""PostgreSQL is stopped under a training loop: the run goes on, or stops cleanly, and ends with the
same rows.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from lowrank.errors import BusyError, StoreAwayError
from lowrank.store import Store, records
from lowrank.store.retry import with_retry
from lowrank.study import MissingRun, Plan, register, train_run
from lowrank.train import loop as loop_module
from lowrank.train import session as session_module
from lowrank.work import writer as writer_module

STOP, START = 3, 10  # updates; checkpoints and resume points are at 4, 8 and 12


class Killed(BaseException):
    """Stands for SIGKILL."""


@pytest.fixture
def server(postgres_server: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.setattr(writer_module, "INTERVAL", 0.0)
    torch.set_num_threads(1)
    yield postgres_server
    if postgres_server.process is None:
        postgres_server.start()


def run_of(plan: Plan, url: str) -> tuple[Any, ...]:
    """Train the plan's run in a store; what the store then holds."""
    with Store.open(url, create=True) as store:
        _, runs = register(store, plan)
        train_run(store, plan, MissingRun(*runs[0], "planned"), progress=False)
        return held(store)


def held(store: Store) -> tuple[Any, ...]:
    (run,) = store.find(records.Run)
    saved = [
        (c.step, c.kind, c.sha256, c.validation_loss, c.tokens_seen)
        for c in store.find(records.Checkpoint)
    ]
    curve = [
        (p.step, p.loss, p.gradient_norm, p.learning_rate, p.tokens_seen)
        for p in store.find(records.TrainingLog)
    ]
    return run.status, run.init_hash, run.last_finite_loss, sorted(saved), sorted(curve)


def before_update(monkeypatch: pytest.MonkeyPatch, act: Callable[[int], None]) -> None:
    real = loop_module.Loop.update

    def update(self: loop_module.Loop, number: int) -> Any:
        act(number)
        return real(self, number)

    monkeypatch.setattr(loop_module.Loop, "update", update)


@pytest.mark.postgres
def test_training_goes_on_without_its_database(
    plan: Plan,
    server: Any,
    postgres_store_url: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    expected = run_of(
        replace(plan, root=tmp_path / "undisturbed"), f"sqlite:///{tmp_path}/undisturbed.db"
    )
    seen: list[int] = []

    def act(update: int) -> None:
        seen.append(update)
        if update == STOP:
            server.stop()
        if update == START:
            assert (plan.root / "runs" / plan.runs[0].folder / "resume" / "step_00000008").is_dir()
            server.start()

    before_update(monkeypatch, act)
    assert run_of(plan, postgres_store_url) == expected
    assert seen == list(range(1, 13))


@pytest.mark.postgres
@pytest.mark.parametrize("ending", ["retry", "kill"])
def test_a_run_that_loses_its_database_resumes(
    plan: Plan,
    server: Any,
    postgres_store_url: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    ending: str,
) -> None:
    expected = run_of(
        replace(plan, root=tmp_path / "undisturbed"), f"sqlite:///{tmp_path}/undisturbed.db"
    )
    with pytest.MonkeyPatch.context() as patch:

        def act(update: int) -> None:
            if update == STOP:
                server.stop()
            if update == START and ending == "kill":
                raise Killed
            if update == START:
                time.sleep(0.4)

        before_update(patch, act)
        retry_seconds = 0.3 if ending == "retry" else 60
        patch.setattr(
            session_module,
            "RunWriter",
            functools.partial(writer_module.RunWriter, retry_seconds=retry_seconds),
        )
        if ending == "kill":
            with pytest.raises(Killed):
                run_of(plan, postgres_store_url)
        else:
            with pytest.raises(
                StoreAwayError,
                match=r"stopped at update \d+ after 0 seconds without its database; the same",
            ):
                run_of(plan, postgres_store_url)
    server.start()
    with Store.open(postgres_store_url) as store:
        assert [run.status for run in store.find(records.Run)] == ["running"]  # it has not failed
        assert store.count(records.TrainingLog) < STOP
    resumed: list[int] = []
    before_update(monkeypatch, resumed.append)
    assert run_of(plan, postgres_store_url) == expected
    assert resumed[0] > STOP  # it went on from a resume point that was made without the database


def test_a_run_that_was_taken_over_stores_nothing_more(
    plan: Plan, sqlite_store_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sqlite3

    path = sqlite_store_url.removeprefix("sqlite:///")

    def act(update: int) -> None:
        if update == 6:
            with sqlite3.connect(path) as connection:
                connection.execute(
                    "UPDATE work_unit SET owner = 'elsewhere@0/1/2/3', lease_until = 1e12"
                )

    before_update(monkeypatch, act)
    with pytest.raises(BusyError, match="was lost"):
        run_of(plan, sqlite_store_url)
    with Store.open(sqlite_store_url) as store:
        assert [c.step for c in store.find(records.Checkpoint)] == [0, 4]
        assert [run.status for run in store.find(records.Run)] == ["running"]


def test_retrying_ends_and_other_errors_are_not_retried() -> None:
    calls: list[int] = []

    def away() -> int:
        calls.append(1)
        if len(calls) < 3:
            raise StoreAwayError("away")
        return 7

    assert with_retry(away) == 7
    with pytest.raises(StoreAwayError):
        with_retry(lambda: (_ for _ in ()).throw(StoreAwayError("away")), seconds=0.2)
    begun = time.monotonic()
    with pytest.raises(ValueError, match="x"):
        with_retry(lambda: int("x"))
    assert time.monotonic() - begun < 0.1
