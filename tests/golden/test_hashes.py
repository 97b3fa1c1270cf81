"""What stored rows are known by is what it was: hashes of studies, runs, protocols, evaluation sets
and units of work.
"""

from __future__ import annotations

import copy
import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest

from lowrank.metrics.curvature import CurvatureSettings


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


hashes = load("hashes")


def test_no_hash_has_changed() -> None:
    old = hashes.archived()
    assert old is not None, f"the archive of hashes is missing; write it with: {hashes.COMMAND}"
    found = list(hashes.differences(old, hashes.current()))
    assert not found, "\n".join([f"{len(found)} hashes or what they cover differ:", *found[:20]])


def test_a_changed_hash_is_named_by_its_place() -> None:
    old = hashes.archived()
    new = copy.deepcopy(old)
    new["golden/metrics.yaml"]["runs"]["cola-tiny-s1"][0] = "0"
    del new["shipped/demo.yaml"]["config"]
    first, second = hashes.differences(old, new)
    assert first.startswith("golden/metrics.yaml: runs: cola-tiny-s1: 0: archived '")
    assert second == "shipped/demo.yaml: config: archived, now missing"


def test_a_changed_default_changes_the_hashes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CurvatureSettings.model_fields["probes"], "default", 21)
    CurvatureSettings.model_rebuild(force=True)
    try:
        found = list(hashes.differences(hashes.archived(), hashes.current()))
    finally:
        monkeypatch.undo()
        CurvatureSettings.model_rebuild(force=True)
    assert any(
        "curvature" in sentence and "parameters: probes: archived 20, now 21" in sentence
        for sentence in found
    )
    assert CurvatureSettings(precision="float32").probes == 20
