"""Claims on both databases: one holder at a time, the dead are succeeded, a lost
lease is noticed.
"""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import sqlalchemy as sa

from lowrank.errors import BusyError, ClaimLostError, StoreAwayError
from lowrank.store import Store, owner, records
from lowrank.store.claims import UNITS, Claims, database_now


def row(store: Store, key: str) -> records.WorkUnit | None:
    return store.first(records.WorkUnit, unit_key=key)


def elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Claims from here on are of another machine, whose processes nobody can look at."""
    monkeypatch.setattr(owner, "machine", lambda: "elsewhere@0")


def test_a_unit_has_one_holder_and_leaves_no_row(store: Store) -> None:
    claims = Claims(store, "test")
    with claims.hold("a") as claim:
        assert claim is not None
        found = row(store, "a")
        assert found is not None
        assert (found.status, found.kind, found.attempts) == ("claimed", "test", 1)
        assert (found.lease_until or 0) - (found.heartbeat_at or 0) == pytest.approx(
            claims.lease, abs=5
        )
        assert claims.claim("a") is None
        assert claims.taken() == {"a"}
        with (
            pytest.raises(BusyError, match=rf"run x: process {os.getpid()} on .* wait for it"),
            claims.require("a", "run x"),
        ):
            pass
    assert row(store, "a") is None
    with pytest.raises(RuntimeError), claims.hold("a"):
        raise RuntimeError
    assert row(store, "a") is None  # it did not say that the work failed: anybody may try


def test_the_clock_is_the_databases(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    with store.connection() as connection:
        now = connection.execute(sa.select(database_now())).scalar_one()
    assert now == pytest.approx(time.time(), abs=5)
    monkeypatch.setattr(time, "time", lambda: 0.0)  # a worker whose own clock is wrong
    assert Claims(store, "test").claim("a") is not None
    assert Claims(store, "test").claim("a") is None


def test_a_failed_unit_stays_with_its_error(store: Store) -> None:
    claims = Claims(store, "test")
    for attempt in (1, 2):
        with claims.hold("a") as claim:
            assert claim is not None
            claim.fail("no such thing")
        found = row(store, "a")
        assert found is not None
        assert (found.status, found.error, found.attempts, found.owner) == (
            "failed",
            "no such thing",
            attempt,
            "",
        )
        assert claims.claim("a") is None
        assert claims.reopen() == 1
    assert Claims(store, "other").reopen() == 0


def test_a_lease_of_another_machine_is_waited_for(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        elsewhere(patch)
        dead = Claims(store, "test", lease=0.5).claim("a")
    assert dead is not None
    claims = Claims(store, "test")
    assert claims.claim("a") is None
    time.sleep(0.6)
    taken = claims.claim("a")
    assert taken is not None
    assert taken.attempts == 2
    with pytest.raises(ClaimLostError, match="'a' was lost"):
        dead.confirm()
    assert dead.lost
    assert not claims.release(dead)  # what is another's now stays
    taken.confirm()


def test_a_dead_process_of_this_machine_is_succeeded_at_once(store: Store, store_url: str) -> None:
    code = (
        "import os, sys; from lowrank.store import Store; from lowrank.store.claims import Claims; "
        f"Claims(Store.open({store_url!r}), 'test').claim('a'); os.kill(os.getpid(), 9)"
    )
    process = subprocess.Popen([sys.executable, "-c", code])
    while process.poll() is None and row(store, "a") is None:
        time.sleep(0.05)
    time.sleep(0.2)  # dead but not yet waited for: a zombie is dead, too
    claim = Claims(store, "test").claim("a")
    assert claim is not None
    assert claim.attempts == 2
    process.wait()


def test_the_heartbeat_keeps_a_lease_and_notices_its_loss(store: Store) -> None:
    claims = Claims(store, "test", lease=0.4)
    with claims.hold("a") as claim:
        assert claim is not None
        time.sleep(0.8)
        assert Claims(store, "test").claim("a") is None
        claim.check()
        with store.connection(
            writes=True
        ) as connection:  # as if it had slept through its lease and another took over
            connection.execute(
                sa.update(UNITS).values(owner="elsewhere@0/1/2/3", lease_until=database_now() + 60)
            )
        deadline = time.monotonic() + 5
        while not claim.lost and time.monotonic() < deadline:
            time.sleep(0.05)
        with pytest.raises(ClaimLostError):
            claim.check()
    assert row(store, "a") is not None


def test_the_end_of_work_does_not_wait_for_the_heartbeat(sqlite_store: Store) -> None:
    begun = time.monotonic()
    for _ in range(5):
        with Claims(sqlite_store, "test", lease=60).hold("a"):
            pass
    assert time.monotonic() - begun < 5


def test_results_and_claim_are_stored_together_or_not_at_all(store: Store) -> None:
    claim = Claims(store, "test").claim("a")
    assert claim is not None
    with store.connection(writes=True) as connection:
        connection.execute(sa.update(UNITS).values(owner="elsewhere@0/1/2/3"))
    with pytest.raises(ClaimLostError), store.transaction():
        store.add(records.Study(name="mine", config={}, config_hash="x"))
        claim.confirm()
    assert store.first(records.Study, name="mine") is None


@contextmanager
def breaking_after(store: Store, writes: int) -> Iterator[None]:
    """From the writing number ``writes`` on, once: the statement is committed, and its answer is
    lost with the connection.
    """
    whole, count = store.connection, itertools.count(1)

    @contextmanager
    def connection(**how: Any) -> Iterator[Any]:
        with whole(**how) as open_one:
            yield open_one
        if how.get("writes") and next(count) == writes:
            raise StoreAwayError("the connection broke")

    store.connection = connection  # type: ignore[method-assign]
    try:
        yield
    finally:
        del store.connection


def test_a_claim_whose_answer_was_lost_is_acquired_at_once(store: Store) -> None:
    claims = Claims(store, "test")
    with breaking_after(store, writes=1), pytest.raises(StoreAwayError), claims.hold("a"):
        raise AssertionError
    assert row(store, "a") is not None
    with claims.hold("a") as claim:
        assert claim is not None
        assert claim.attempts == 2


def test_what_could_not_be_released_is_swept(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    claims = Claims(store, "test")
    with claims.hold("a"), claims.hold("b") as kept:
        assert kept is not None
        with monkeypatch.context() as patch:
            patch.setattr(
                claims, "release", lambda claim: (_ for _ in ()).throw(StoreAwayError("away"))
            )
            with claims.hold("c"):
                pass
        assert row(store, "c") is not None
        assert claims.sweep() == 1
        assert {unit.unit_key for unit in store.find(records.WorkUnit)} == {"a", "b"}


def test_claiming_imports_no_torch() -> None:
    code = "import sys, lowrank.store.claims; print([m for m in ('torch', 'transformers', 'pandas', 'numpy') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


FROZEN = """
import sys, time
from pathlib import Path
from lowrank.store import Store, records
from lowrank.store.claims import Claims
with Store.open({url!r}) as store, Claims(store, "test", lease=1.0).hold("a") as claim:
    Path({flag!r}).write_text("held")
    while Path({flag!r}).read_text() != "go":
        time.sleep(0.02)
    with store.transaction():
        store.add(records.Study(name="of the frozen", config={{}}, config_hash="x"))
        claim.finish()
"""


def test_a_process_that_was_frozen_past_its_lease_writes_nothing(
    store: Store, store_url: str, tmp_path: Any
) -> None:
    flag = tmp_path / "flag"
    flag.write_text("")
    code = FROZEN.format(url=store_url, flag=str(flag))
    process = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True)
    while flag.read_text() != "held":
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGSTOP)
    claims, deadline = Claims(store, "test"), time.monotonic() + 20
    assert claims.claim("a") is None  # it lives, and its lease runs
    while (claim := claims.claim("a")) is None and time.monotonic() < deadline:
        time.sleep(0.1)
    assert claim is not None
    flag.write_text("go")
    process.send_signal(signal.SIGCONT)
    _, stderr = process.communicate(timeout=30)
    assert process.returncode == 1
    assert "ClaimLostError: the claim on 'a' was lost" in stderr
    assert store.first(records.Study, name="of the frozen") is None
    claim.confirm()  # and what another holds now stays its own
