"""Hashes that stand in databases and on disks: literal values, each made by the code that first
stored them.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from lowrank import checkpoint, files, hashing, provenance
from lowrank.config import resolve
from lowrank.data import cache
from lowrank.data.sources import _hub
from lowrank.predict.features import IDENTITY, TARGET, FeatureTable
from lowrank.store import records, write

VALUE: dict[str, Any] = {
    "b": [1, 2.5, -0.0, 1e-30, 10**20, True, None],
    "a": {"ü€": 'Grüße "x" \n', "": []},
    "Z": "z",
}
WITHOUT_BLANKS = "c5d64ddb44bb9d80b9c0aa6562446eeea718b930ff8706ccefe8de569e1f85f7"
WITH_BLANKS = "3eae711291a7c911244911f830d2815307609636e3c30a24080fc6d5047a3a59"


def test_studies_runs_units_and_caches_hash_json_without_blanks() -> None:
    assert hashing.content_hash(VALUE) == WITHOUT_BLANKS
    assert resolve.content_hash is cache.content_key is hashing.content_hash
    assert (
        hashing.content_hash([3, "galore"])
        == "0eefef693908f871d8b1fe79478fee2894e07b1466803257eb3ef92efab160a3"
    )
    assert (
        hashing.content_hash("x")
        == "ba2df4903a2c14e86dc3bcca58911b44ac1d2514b7227bf6eb08cfb978f55a1b"
    )


def test_seals_hash_json_with_blanks_and_may_hold_nan() -> None:
    assert hashing.spaced_hash(VALUE) == WITH_BLANKS
    assert hashing.spaced_hash(VALUE, allow_nan=True) == WITH_BLANKS
    assert (
        hashing.spaced_hash({"x": math.nan, "y": [math.inf, -math.inf]}, allow_nan=True)
        == "8856a5940ab0e98864fe88aa693878b7b4a396077d63f52e1d5d24e4787a577b"
    )
    assert checkpoint.sealed({"b": 1, "a": [0.1, "ü"]}) == (
        '{\n "a": [\n  0.1,\n  "\\u00fc"\n ],\n "b": 1,\n '
        '"sha256": "e84a57050b229d3523fd7b2dc5cfb43f10add8af3dbb3f1de3ad3159fff3fa56"\n}'
    )
    assert checkpoint.sealed({"b": math.nan}, strict=False) == (
        '{\n "b": NaN,\n "sha256": "c7b1afca2da37fa19c7ed1abe5ecc16b0036f59a5419cdd28b135461d5ca269d"\n}'
    )


@pytest.mark.parametrize("hashed", [hashing.content_hash, hashing.spaced_hash])
@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_what_strict_json_lacks_is_refused(hashed: Any, number: float) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        hashed({"x": number})
    with pytest.raises(TypeError, match="not JSON serializable"):
        hashed({"x": {1, 2}})


@pytest.mark.parametrize(
    ("evaluation_set", "expected"),
    [
        ("ab" * 32, "399d0db9a43e4dc2aa32aab471a9f94665f99b21a4d1c82746ffc3cc9415d2fb"),
        (None, "fa8bcd20211f86d2aeacbf6180ce0468b5b017ba35341105b36db0aeb2ec6041"),
    ],
)
def test_protocols(evaluation_set: str | None, expected: str) -> None:
    protocol = records.Protocol(
        name="exact/filter",
        lens="landscape",
        metric_revision=2,
        parameters=VALUE,
        evaluation_set_id=7,
        space="dense",
        normalization="filter",
        precision="float32",
        direction_seed=0,
    )
    assert write.protocol_hash(protocol, evaluation_set) == expected


def test_provenance(monkeypatch: pytest.MonkeyPatch) -> None:
    versions = {"torch": "2.9.0", "python": "3.11.1"}
    monkeypatch.setattr(provenance, "__version__", "0.1.0")
    monkeypatch.setattr(provenance, "git_commit", lambda: "c0ffee+")
    monkeypatch.setattr(provenance, "library_versions", lambda: versions)
    monkeypatch.setattr(provenance, "device_name", lambda: "CPU é")
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    assert (
        provenance.current().hash
        == "8a9d55c21c48a25437c5520b76ba41f31f6e8cfd45a31590c6414edd798f03a6"
    )


def test_tables_of_features() -> None:
    rows = [("60m", "galore", "", 1, 100, 0.25, 3.5), ("60m", "cola", "x", 0, 20, math.nan, 1 / 3)]
    table = FeatureTable(
        pd.DataFrame(rows, columns=[*IDENTITY, "sharpness", TARGET]), ("sharpness",), ()
    )
    assert (
        table.content_hash(["sharpness"], 3, 100)
        == "ab9546ec8ebb29c9761c89686af64819754564553970bed22c514a53c488d699"
    )


def test_files(tmp_path: Path) -> None:
    one, two = tmp_path / "one.bin", tmp_path / "two.txt"
    one.write_bytes(bytes(range(256)) * 5000)
    two.write_text("Grüße", encoding="utf-8")
    sha256 = "7d471e4af16db5a30ce10aebbc29f5178b2edbad6c7dc2e8ff8ee6e4848a726f"
    assert hashing.file_sha256(one) == sha256
    assert files.file_entry(one) == {"sha256": sha256, "bytes": 1_280_000}
    assert cache.hashes([one, two]) == {
        "one.bin": sha256,
        "two.txt": "f83e039796c6453a10f5519e39fd113901572316a1a8ea07cb525d2801dfd074",
    }
    assert (
        _hub.files_hash(tmp_path)
        == "2fda2705529d3f2c2363fba4f71fbb1c043c1e7d4a0d922cf2dd67b965ff1d6a"
    )
    with pytest.raises(FileNotFoundError):
        hashing.file_sha256(tmp_path / "none")
