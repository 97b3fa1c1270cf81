"""States that an earlier version saved load in a fresh process and give the archived losses."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import saved

ARCHIVE: dict[str, Any] = saved.archived() or {"header": {}, "resume": {}, "checkpoints": {}}
STATES = [
    *(("resume", name) for name in saved.RESUME),
    *(("checkpoints", name) for name in saved.CHECKPOINTS),
]
LARGEST = 1_500_000  # bytes of all saved states


@pytest.fixture(scope="module")
def today(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What today's code makes of the saved states, in a process that has done nothing else."""
    answer = tmp_path_factory.mktemp("saved") / "today.json"
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
    }
    command = [sys.executable, str(Path(saved.__file__)), str(answer)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    found: dict[str, Any] = json.loads(answer.read_text(encoding="utf-8"))
    return found


@pytest.mark.parametrize(("kind", "name"), STATES, ids=["/".join(state) for state in STATES])
def test_a_saved_state_gives_the_archived_losses(
    kind: str, name: str, today: dict[str, Any]
) -> None:
    if name not in ARCHIVE[kind]:
        pytest.fail(
            f"the saved state {kind}/{name} is not in the archive; write it: {saved.AGAIN}",
            pytrace=False,
        )
    empty: dict[str, Any] = {"resume": {}, "checkpoints": {}}
    sides = [
        {**empty, "header": side["header"], kind: {name: side[kind][name]}}
        for side in (ARCHIVE, today)
    ]
    found = list(saved.differences(*sides))
    if found:
        pytest.fail("\n".join(found), pytrace=False)


def test_nothing_had_to_be_written_and_nothing_is_left_over(today: dict[str, Any]) -> None:
    assert today["made"] == {}
    for kind, cases in (("resume", saved.RESUME), ("checkpoints", saved.CHECKPOINTS)):
        assert set(ARCHIVE[kind]) == set(cases)
        assert {path.name for path in (saved.FOLDER / kind).iterdir()} == set(cases)
    assert sum(path.stat().st_size for path in saved.FOLDER.rglob("*") if path.is_file()) <= LARGEST


def test_the_states_cover_what_optimizers_keep(today: dict[str, Any]) -> None:
    """Moments at either precision, bases, the norm of the residual."""
    layouts = {name: today["resume"][name]["saved_layout"] for name in saved.RESUME}

    def keys(name: str) -> set[str]:
        return {
            path.rpartition("/")[2]
            for path in layouts[name]
            if path.startswith("/optimizer/state/")
        }

    assert keys("full_rank") == {"step", "exp_avg", "exp_avg_sq"}
    eight = {"step", "exp_avg", "exp_avg_sq", "exp_avg_scale", "exp_avg_sq_scale"}
    assert keys("full_rank_8bit") == eight
    assert keys("galore_8bit") == {*eight, "basis"}
    assert keys("fira") == {"step", "exp_avg", "exp_avg_sq", "basis", "residual_norm"}
    assert keys("relora") == keys("sltrain") == keys("full_rank")
    quantised = [
        path
        for path, leaf in layouts["galore_8bit"].items()
        if path.endswith("/exp_avg") and leaf.startswith("uint8")
    ]
    based = {path.rpartition("/")[0] for path in layouts["galore_8bit"] if path.endswith("/basis")}
    assert any(path.rpartition("/")[0] in based for path in quantised)  # moments in a subspace
    assert any(
        leaf.startswith("bfloat16")
        for path, leaf in layouts["galore_bfloat16"].items()
        if path.endswith("/basis")
    )
