"""Protocols in words, for lenses with and without an evaluation set in one study."""

from __future__ import annotations

import math

import pytest

from lowrank.report.source import described

ROW = {
    "name": "exact",
    "lens": "spectra",
    "metric_revision": 1,
    "space": "dense",
    "normalization": "",
    "direction_seed": None,
    "precision": "float64",
    "parameters_hash": "0123456789",
    "examples": 8.0,
    "evaluation_set": "metrics",
}


@pytest.mark.parametrize("missing", [None, "", math.nan])
def test_a_protocol_without_text(missing: object) -> None:
    assert "rows of" not in described({**ROW, "examples": math.nan, "evaluation_sha256": missing})


def test_a_protocol_with_text() -> None:
    assert "8 rows of metrics (abcdefab)" in described({**ROW, "evaluation_sha256": "abcdefabcdef"})
