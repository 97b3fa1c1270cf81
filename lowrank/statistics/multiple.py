"""Several tests of one study, and what a study is too small to state."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

FEWEST = {"methods": 4, "seeds": 3, "sizes": 3}
"""The fewest that a statement may rest on.

Four methods have the first permutations that can reach 5%; two seeds have one degree of freedom, at
which a 95% interval is 6.5 times as wide as a known deviation allows; a fit that leaves out one of
two sizes has seen one size.
"""


def too_few(**counts: int) -> list[str]:
    """Return a sentence for each count (``methods``, ``seeds``, ``sizes``) that no statement may
    rest on.
    """
    return [
        f"{number} {what if number != 1 else what[:-1]}: no statement is made from fewer than {FEWEST[what]}"
        for what, number in counts.items()
        if number < FEWEST[what]
    ]


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Correct p values for how many they are by Holm's step-down method (1979).

    The k-th smallest of n is multiplied by n + 1 - k, made at least as large as the one before it,
    and at most 1: rejecting where the result is at most 5% wrongly rejects any hypothesis at all in
    at most 5% of studies, however the tests depend on each other. None (a test that could not be
    made) stays None and is not counted.
    """
    found: list[float | None] = [None] * len(p_values)
    made = [(p, i) for i, p in enumerate(p_values) if p is not None]
    largest = 0.0
    for rank, (p, i) in enumerate(sorted(made)):
        largest = max(largest, min(1.0, (len(made) - rank) * p))
        found[i] = largest
    return found


def corrected(p_values: Mapping[str, float | None], primary: str) -> dict[str, float | None]:
    """Return the p value of the ``primary`` test as it is, and the others by :func:`holm` among
    themselves.

    Only the primary test is decided on beforehand, so that it alone needs no correction. A primary
    test that is missing from ``p_values`` leaves all of them to be corrected.
    """
    others = [name for name in p_values if name != primary]
    adjusted = dict(zip(others, holm([p_values[name] for name in others]), strict=True))
    return {name: adjusted.get(name, p) for name, p in p_values.items()}
