"""Permutations of whole methods, and the out-of-fold errors of least squares under all of them."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.linear_model import LinearRegression
from sklearn.model_selection import LeaveOneGroupOut
from sklearn.preprocessing import StandardScaler

from lowrank.predict.crossval import Floats, PredictError

ENUMERATED = math.factorial(7)
"""Distinct permutations up to which all of them are used."""
DRAWN = 999
"""Permutations drawn, beside the observed order, where there are more than :data:`ENUMERATED`."""
FULL_RANK = 1e-9
"""Least eigenvalue, of what a left-out group leaves of the standardised features, that counts as
full rank.
"""


@dataclass(frozen=True)
class Exchange:
    """Which rows each method has, and which methods may be exchanged.

    ``own`` holds the row numbers of each method in the order of its cells, and ``classes`` the
    numbers of methods that have the same cells.
    """

    own: list[NDArray[np.intp]]
    classes: list[list[int]]

    @classmethod
    def of(cls, methods: NDArray[np.intp], cells: NDArray[np.intp]) -> Exchange:
        """Return the exchange of whole methods, given a number for the method and cell of each
        row.

        Raises PredictError where a method has two rows of one cell.
        """
        own, classes = [], dict[tuple[int, ...], list[int]]()
        for number in range(methods.max(initial=-1) + 1):
            rows = np.flatnonzero(methods == number)
            rows = rows[np.argsort(cells[rows], kind="stable")]
            key = tuple(cells[rows].tolist())
            if len(set(key)) < len(key):
                raise PredictError(
                    "two rows of one method have the same size, seed and step; "
                    "give each row of a method a cell of its own"
                )
            own.append(rows)
            classes.setdefault(key, []).append(number)
        return cls(own, list(classes.values()))

    @property
    def distinct(self) -> int:
        """How many distinct permutations there are, the observed order among them."""
        return math.prod(math.factorial(len(members)) for members in self.classes)

    @property
    def largest(self) -> int:
        """How many methods at most have the same cells."""
        return max((len(members) for members in self.classes), default=0)

    def sources(self, drawn: int, generator: np.random.Generator) -> NDArray[np.intp]:
        """Return for each permutation the method whose residuals each method gets, the observed
        order first; all permutations where they are few, else ``drawn`` random ones.
        """
        count = len(self.own)
        if self.distinct > ENUMERATED:
            found = np.tile(np.arange(count), (1 + drawn, 1))
            for members in self.classes:
                orders = np.tile(np.array(members), (drawn, 1))
                found[1:, members] = generator.permuted(orders, axis=1)
            return found
        found = np.arange(count)[None]
        for members in self.classes:
            orders = np.array(list(itertools.permutations(members)))
            found = np.repeat(found, len(orders), axis=0)
            found[:, members] = np.tile(orders, (len(found) // len(orders), 1))
        return found

    def donors(self, method: int) -> NDArray[np.intp]:
        """Return the rows whose residuals the rows of ``method`` get from each method (methods,
        rows); its own for a method that it is not exchanged with.
        """
        members = next(members for members in self.classes if method in members)
        return np.stack([self.own[m if m in members else method] for m in range(len(self.own))])


def squared_errors(
    features: Floats,
    explained: Floats,
    residual: Floats,
    groups: NDArray[np.intp],
    exchange: Exchange,
    sources: NDArray[np.intp],
) -> Floats:
    """Return the pooled out-of-fold squared error of least squares on ``features`` for the target
    of each permutation.

    With an orthonormal basis Q of the features and the intercept, the errors of group g are those
    of the fit to all rows, e_g, times (I - Q_g Q_g')^-1. What is needed of a target y is thus
    |y|² and Q_g' y for each group, which are sums over methods of numbers that depend only on
    which method's residuals a method got: a table of methods by methods for each group. No
    permuted target is ever made.
    """
    centred = features - features.mean(axis=0)
    scaled = centred / np.maximum(centred.std(axis=0), np.finfo(float).tiny)
    basis = np.linalg.qr(np.hstack([np.ones((len(scaled), 1)), scaled]))[0]
    members = members_of(groups)
    kept = np.eye(basis.shape[1]) - np.stack([basis[g].T @ basis[g] for g in members])
    if np.linalg.eigvalsh(kept).min() < FULL_RANK:
        return squared_errors_by_fits(features, explained, residual, groups, exchange, sources)
    products = np.stack([basis[g].T @ explained[g] for g in members])[:, None]
    products = np.repeat(products, len(sources), axis=1)  # (groups, permutations, basis)
    total = np.zeros(len(sources))
    for method, own in enumerate(exchange.own):
        donors, got = exchange.donors(method), sources[:, method]
        total += ((explained[own] + residual[donors]) ** 2).sum(axis=1)[got]
        for g in np.unique(groups[own]):
            at = groups[own] == g
            products[g] += (residual[donors[:, at]] @ basis[own[at]])[got]
    coefficients = products.sum(axis=0)
    errors = products - coefficients + coefficients @ kept
    inverse = np.linalg.inv(kept)
    left_out = ((errors @ (inverse + inverse @ inverse)) * errors).sum(axis=(0, 2))
    found: Floats = total - (coefficients**2).sum(axis=1) + left_out
    return found


def members_of(groups: NDArray[np.intp]) -> list[NDArray[np.intp]]:
    """Return the row numbers of each group."""
    return [np.flatnonzero(groups == g) for g in range(groups.max() + 1)]


def squared_errors_by_fits(
    features: Floats,
    explained: Floats,
    residual: Floats,
    groups: NDArray[np.intp],
    exchange: Exchange,
    sources: NDArray[np.intp],
) -> Floats:
    """Return what :func:`squared_errors` does, by a fit of every fold to every permuted target.

    For features that some training fold does not determine: the fit is then the shortest one, as
    everywhere in the predictor.
    """
    rows = np.empty((len(explained), len(sources)), dtype=np.intp)
    for method, own in enumerate(exchange.own):
        rows[own] = exchange.donors(method)[sources[:, method]].T
    targets = explained[:, None] + residual[rows]
    found: Floats = (out_of_fold_residuals(features, targets, groups) ** 2).sum(axis=0)
    return found


def out_of_fold_r2(features: Floats, targets: Floats, groups: NDArray[np.object_]) -> Floats:
    """Pooled out-of-fold R² of least squares for many targets (rows, targets) on the same features
    (rows, columns).

    The same figure as :func:`~lowrank.predict.crossval.cross_validate`'s for each of them.
    """
    residual = out_of_fold_residuals(features, targets, groups)
    centred = targets - targets.mean(axis=0)
    total: Floats = 1.0 - (residual**2).sum(axis=0) / (centred**2).sum(axis=0)
    return total


def out_of_fold_residuals(features: Floats, targets: Floats, groups: ArrayLike) -> Floats:
    """Return many targets (rows, targets) less their predictions by fits without their group."""
    residual = np.empty_like(targets)
    for train, test in LeaveOneGroupOut().split(features, groups=groups):
        scaler = StandardScaler().fit(features[train])
        model = LinearRegression().fit(scaler.transform(features[train]), targets[train])
        residual[test] = targets[test] - model.predict(scaler.transform(features[test]))
    return residual
