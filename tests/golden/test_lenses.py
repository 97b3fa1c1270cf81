"""Every lens gives the rows that it gave, on weights that no platform moves."""

from __future__ import annotations

import copy
import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest
import torch


def load(name: str) -> Any:
    """The module of this folder called ``name``; it is loaded once."""
    key = f"lowrank_golden_{name}"
    if key not in sys.modules:
        spec = importlib.util.spec_from_file_location(key, Path(__file__).with_name(f"{name}.py"))
        assert spec is not None
        assert spec.loader is not None
        sys.modules[key] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[key])
    return sys.modules[key]


lenses = load("lenses")


@pytest.fixture(scope="module")
def archive() -> dict[str, Any]:
    """The archive, which must be there."""
    found = lenses.archived()
    assert found is not None, f"the archive of lenses is missing; write it with: {lenses.COMMAND}"
    return dict(found)


def test_no_row_has_changed(archive: dict[str, Any]) -> None:
    found = list(lenses.differences(archive, lenses.current()))
    assert not found, "\n".join([f"{len(found)} rows differ:", *found[:20]])


@pytest.mark.parametrize(
    "metric", ["ccbh", "effective_rank_w", "hessian_trace", "sharpness_random", "held_out_loss"]
)
def test_a_value_off_by_a_thousandth_is_named(archive: dict[str, Any], metric: str) -> None:
    new = copy.deepcopy(archive)
    rows = {
        key: row[0]
        for key, row in new["values"].items()
        if f"|{metric}|" in key and "published" not in key
    }
    largest = max(
        (key for key, value in rows.items() if value != "absent"), key=lambda key: abs(rows[key])
    )
    new["values"][largest][0] *= 1.001
    assert len(list(lenses.differences(archive, new))) == 1
    new["environment"] = {}  # another machine: within the tolerances, still too far
    (sentence,) = lenses.differences(archive, new)
    assert sentence.startswith(f"values: {largest}: archived")


def test_another_machine_may_move_the_last_digits(archive: dict[str, Any]) -> None:
    new = copy.deepcopy(archive)
    for row in new["values"].values():
        row[0] = row[0] if isinstance(row[0], str) else row[0] * (1 + 1e-9)
    assert list(lenses.differences(archive, new))
    new["environment"] = {}
    assert not list(lenses.differences(archive, new))


def test_missing_and_new_rows_are_named(archive: dict[str, Any]) -> None:
    new = copy.deepcopy(archive)
    del new["values"][min(new["values"])]
    new["spectra"][f"{min(new['spectra'])}2"] = [1.0]
    first, second = lenses.differences(archive, new)
    assert first.endswith("archived, now missing")
    assert second.endswith("not in the archive")


def test_a_metric_without_rows_names_the_command(archive: dict[str, Any]) -> None:
    old = copy.deepcopy(archive)
    old["values"] = {key: row for key, row in old["values"].items() if key.split("|")[3] != "ccbh"}
    (sentence,) = lenses.differences(old, archive)
    assert sentence.startswith(
        "the metric 'ccbh' of lens 'interpolation' is registered and not in the archive"
    )
    assert sentence.endswith(lenses.COMMAND)


def test_a_changed_protocol_is_named_once(archive: dict[str, Any]) -> None:
    old = copy.deepcopy(archive)
    name = next(name for name in old["protocols"] if name.startswith("curvature"))
    old["protocols"][name] = old["protocols"][name].replace('"probes": 3', '"probes": 4')
    (sentence,) = lenses.differences(old, archive)
    assert sentence.startswith(f"the protocol '{name}': archived")
    assert '"probes": 4' in sentence


def test_drawn_weights_are_exact() -> None:
    drawn = lenses.drawn("a name", torch.Size([2, 3]), 2)
    assert (drawn * 2**15).tolist() == [[-753.0, -382.0, -4605.0], [-1788.0, -2330.0, -6279.0]]
