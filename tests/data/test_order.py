"""Permutations by integer arithmetic: equal to the published generator, and uniform."""

from __future__ import annotations

import numpy as np
import pytest

from lowrank.data import order
from lowrank.data.batch import rows_hash


def test_words_match_splitmix64():
    """The first outputs of the generator for the seed 1234567, as its implementations are commonly
    checked.
    """
    expected = [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]
    assert [order.draw(1234567, n) for n in range(5)] == expected


@pytest.mark.parametrize("seed", [0, 1, 2**64 - 1, order.key("rows", 3, 4)])
@pytest.mark.parametrize("size", [0, 1, 2, 1000])
def test_a_permutation_sorts_by_those_words(seed, size):
    assert order.permutation(size, seed).tolist() == sorted(
        range(size), key=lambda n: order.draw(seed, n)
    )


def test_permutations_are_uniform():
    places = np.array(
        [order.permutation(6, order.key("uniform", seed)).tolist().index(0) for seed in range(3000)]
    )
    counts = np.bincount(places, minlength=6)
    assert ((counts - 500) ** 2 / 500).sum() < 25  # chi-square with 5 degrees of freedom: p = 1e-4


def shuffled(size: int, count: int, seed: int = 7) -> list[int]:
    reservoir: order.Reservoir[int] = order.Reservoir(size, seed)
    return [out for item in range(count) for out in reservoir.push(item)] + list(reservoir.drain())


def test_a_shuffle_buffer_permutes_its_items():
    out = shuffled(50, 3000)
    assert sorted(out) == list(range(3000))
    assert 0.4 < np.mean(np.diff(out) < 0) < 0.6  # neighbours leave in either order
    late = np.array([place - item for place, item in enumerate(out)][:2900])
    assert late.min() >= -50
    assert shuffled(50, 3000) == out != shuffled(50, 3000, seed=8)
    assert shuffled(0, 30) == list(range(30))


def test_a_shuffle_buffer_continues_from_its_state():
    whole = shuffled(50, 3000)
    first: order.Reservoir[int] = order.Reservoir(50, 7)
    out = [leaving for item in range(1111) for leaving in first.push(item)]
    second = order.Reservoir(50, 7, list(first.held), first.count)
    out += [leaving for item in range(1111, 3000) for leaving in second.push(item)]
    assert out + list(second.drain()) == whole


def test_the_hash_covers_tokens_labels_and_shape():
    tokens = np.arange(60, dtype=np.int32).reshape(6, 10)
    labels = tokens.copy()
    found = {rows_hash(tokens, None), rows_hash(tokens.reshape(10, 6), None)}
    assert (
        rows_hash(tokens, labels) in found
    )  # no padding is the same as labels that are all scored
    labels[5, 9] = -100
    found.add(rows_hash(tokens, labels))
    for place in [(0, 0), (5, 9), (3, 4)]:
        changed = tokens.copy()
        changed[place] += 1
        found.add(rows_hash(changed, None))
    assert len(found) == 6
