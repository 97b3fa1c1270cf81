"""Today's code trains every method to the archived losses and gradient norms."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import _corpus
import _equality
import _rooms
import losses
import pytest
import regenerate

ARCHIVE: dict[str, Any] = losses.archived() or {"header": {}, "cells": {}}
ARCHIVED = sorted({cell.partition("/")[0] for cell in ARCHIVE["cells"]})
REGISTERED = sorted(_rooms.method_names())
SAME_TWICE = (
    ("relora", "float32", "none"),
    ("galore", "pure_bfloat16", "state_bits_8"),
    ("fira", "bfloat16_autocast", "none"),
)
LARGEST = 150_000  # bytes of the archive
NEAR = {"loss": 1e-5}


@pytest.mark.parametrize("method", sorted({*ARCHIVED, *REGISTERED}))
def test_every_method_trains_as_archived(method: str) -> None:
    if method not in ARCHIVED:
        pytest.fail(
            f"the method '{method}' is not in the archive of losses; add it: {losses.AGAIN}",
            pytrace=False,
        )
    if method not in REGISTERED:
        pytest.fail(
            f"the archived method '{method}' is gone; if that is meant, drop it: {losses.AGAIN}",
            pytrace=False,
        )
    old = {
        **ARCHIVE,
        "cells": {
            cell: value for cell, value in ARCHIVE["cells"].items() if cell.startswith(f"{method}/")
        },
    }
    found = list(
        losses.differences(old, {"header": losses.header(), "cells": losses.cells_of(method)})
    )
    if found:
        pytest.fail("\n".join([*found, f"if the change is meant: {losses.AGAIN}"]), pytrace=False)


@pytest.mark.parametrize("cell", SAME_TWICE, ids="/".join)
def test_two_runs_on_one_machine_agree_in_every_bit(cell: tuple[str, str, str]) -> None:
    assert losses.compute(*cell) == losses.cells_of(cell[0])["/".join(cell)]


def test_the_archive_holds_every_combination_in_full_digits() -> None:
    wanted = {
        f"{method}/{p}/{s}" for method in ARCHIVED for p in losses.PRECISIONS for s in losses.SAVERS
    }
    assert set(ARCHIVE["cells"]) == wanted
    for cell, found in ARCHIVE["cells"].items():
        if "refused" in found:
            assert set(found) == {"refused"}, cell
            continue
        assert set(found) == {"loss", "gradient_norm"}, cell
        assert all(
            len(series) == losses.UPDATES and all(map(math.isfinite, series))
            for series in found.values()
        ), cell
        assert found["loss"][-1] < found["loss"][0], cell  # it learns
    assert {
        cell.split("/")[2] for cell, found in ARCHIVE["cells"].items() if "refused" in found
    } == {
        "per_layer_updates_with_clipping",
        "per_layer_updates_with_accumulation",
    }
    assert losses.PATH.stat().st_size <= LARGEST
    assert _equality.dumps(ARCHIVE, wide=("cells",)) == losses.PATH.read_text(encoding="utf-8")


def test_the_text_is_that_of_its_rule() -> None:
    assert _corpus.PATH.read_text(encoding="utf-8") == _corpus.text()


def test_the_data_set_is_the_same_wherever_its_file_lies(tmp_path: Path) -> None:
    assert ARCHIVE["header"]["dataset_fingerprint"] == _rooms.dataset().fingerprint
    elsewhere = tmp_path / "moved.jsonl"
    elsewhere.write_text(_corpus.text(), encoding="utf-8")
    assert (
        _rooms.open_corpus(elsewhere, tmp_path / "cache").fingerprint
        == _rooms.dataset().fingerprint
    )


def test_a_difference_is_seen_and_said() -> None:
    old = {"loss": [4.0, 3.0, 2.0]}
    bit = {"loss": [4.0, math.nextafter(3.0, 4.0), 2.0]}
    assert list(_equality.series_differences("cell", 1, old, old, {})) == []
    (said,) = _equality.series_differences("cell", 1, old, bit, {})
    assert (
        said
        == "cell: loss first differs at update 2: 3.0 became 3.0000000000000004 (relative 1.5e-16)"
    )
    assert list(_equality.series_differences("cell", 1, old, bit, NEAR)) == []
    assert (
        len(list(_equality.series_differences("cell", 1, old, {"loss": [4.0, 3.0001, 2.0]}, NEAR)))
        == 1
    )
    assert list(_equality.series_differences("cell", 1, old, {"loss": [math.nan, 3.0, 2.0]}, NEAR))
    assert list(_equality.series_differences("cell", 1, old, {"loss": [4.0]}, NEAR)) == [
        "cell: loss has 1 values, the archive 3"
    ]


def test_bits_are_asked_for_on_the_same_machine_alone() -> None:
    here = _equality.header(_rooms.VERSION)
    assert _equality.is_same_machine(
        here, {**here, "lowrank": "another", "python": "another", "numpy": "another"}
    )
    for key in _equality.EXACT:
        assert not _equality.is_same_machine(here, {**here, key: "another"})
    (cell,) = (name for name in ARCHIVE["cells"] if name == "galore/float32/none")
    trajectory = ARCHIVE["cells"][cell]
    moved = {**trajectory, "loss": [loss * (1 + 1e-6) for loss in trajectory["loss"]]}
    old, new = (
        {"header": ARCHIVE["header"], "cells": {cell: value}} for value in (trajectory, moved)
    )
    assert len(list(losses.differences(old, new))) == 1
    assert (
        list(losses.differences(old, {**new, "header": {**ARCHIVE["header"], "cpu": "another"}}))
        == []
    )


@pytest.mark.parametrize("write", [False, True])
def test_regenerating_tells_and_writes_only_when_asked(
    write: bool,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    written: list[int] = []
    target = SimpleNamespace(
        ARCHIVE="losses",
        current=lambda: 2,
        archived=lambda: 1,
        differences=lambda old, new: iter([f"{old} became {new}"]),
        write=written.append,
    )
    monkeypatch.setattr(regenerate, "load", lambda name: target)
    assert regenerate.main(["losses", *(["--write"] if write else [])]) == 1
    assert capsys.readouterr().out.splitlines()[0] == "losses: 1 became 2"
    assert written == ([2] if write else [])
    target.archived = lambda: 2
    target.differences = lambda old, new: iter(())
    assert regenerate.main(["losses"]) == 0
