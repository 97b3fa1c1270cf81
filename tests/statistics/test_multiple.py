"""Corrections for several tests, and what is too little for a statement."""

from __future__ import annotations

import numpy as np
import pytest

from lowrank.statistics import corrected, holm, too_few


def test_holm_multiplies_the_smallest_most_and_keeps_the_order() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


def test_a_test_that_was_not_made_is_not_counted() -> None:
    assert holm([None, 0.03, None, 0.01]) == [None, 0.03, None, 0.02]


def test_holm_holds_the_share_of_studies_with_a_wrong_rejection() -> None:
    p = np.random.default_rng(0).uniform(size=(2000, 5))
    wrong = np.mean([min(v for v in holm(row) if v is not None) <= 0.05 for row in p.tolist()])
    assert 0.035 < wrong < 0.065


def test_the_primary_test_is_not_corrected_and_the_others_are_among_themselves() -> None:
    p = {"lomo": 0.04, "loso": 0.02, "loro": None, "loseo": 0.03}
    assert corrected(p, "lomo") == {"lomo": 0.04, "loso": 0.04, "loro": None, "loseo": 0.04}
    assert corrected({"loso": 0.02, "loro": 0.04}, "lomo") == {"loso": 0.04, "loro": 0.04}


def test_too_few_is_said_of_each_count() -> None:
    assert too_few(methods=4, seeds=3, sizes=3) == []
    assert too_few(methods=3, seeds=1) == [
        "3 methods: no statement is made from fewer than 4",
        "1 seed: no statement is made from fewer than 3",
    ]
