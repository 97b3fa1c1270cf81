"""Spectra of weights and of their updates, per matrix, layer and projection type.

The weight of a target layer is its effective dense W (``space: dense``) or each of its trained
factors (``space: factor``, as published: ReLoRA's W0, A and B are three matrices, and SLTrain's
sparse part is not included). If a method has no dense equivalent, W is the product of its factors,
a linearisation, and ΔW is that of the factors; a note states either.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Literal, cast

import torch
from pydantic import PositiveFloat
from threadpoolctl import ThreadpoolController
from torch import Tensor

from lowrank.geometry.spectrum import (
    SHAPES,
    product_singular_values,
    singular_value_metrics,
    singular_values,
)
from lowrank.metrics.base import (
    AGGREGATE_LAYER,
    ALL_MODULES,
    MODULES,
    CheckpointRef,
    Checkpoints,
    Comparison,
    Context,
    Expected,
    Lens,
    LensSettings,
    MetricError,
    MetricInfo,
    Result,
    Spectrum,
    Value,
    consecutive,
    merge_units,
    place,
    selection,
)

NORMS = ("delta_norm", "delta_norm_relative")
LINEARISED = "the product of the factors, a linearisation: the method has no dense equivalent"
FACTORS = "of the factors: the method has no dense equivalent"


Key = tuple[int, str, str]
"""(layer, module, factor) of a matrix; ``factor`` is '' for dense weights."""
Entry = Tensor | tuple[Tensor, Tensor]
"""A matrix W, or the factors (B, A) of a product."""


@dataclass(frozen=True)
class Matrices:
    """The matrices of one checkpoint; ``parts`` has (base, B, A) for those equal to base + B·A."""

    entries: Mapping[Key, Entry]
    note: str = ""
    parts: Mapping[Key, tuple[Tensor, Tensor, Tensor]] = field(default_factory=dict)


class SpectraSettings(LensSettings):
    """Settings of the spectra."""

    precision: Literal["float64"] = "float64"
    space: Literal["dense", "factor"] = "dense"
    threshold: PositiveFloat = 0.1
    skip_initial: bool = False  # the published rows start after step 0
    distributions: bool = selection(
        True
    )  # store singular values: W of the last checkpoint and ΔW(last, first)


MATRICES = (("w", "the weights"), ("dw", "ΔW = W_t - W_(t-1) between consecutive checkpoints"))
RANK_RANGE = "[1, min(m, n)]; 0 for a zero matrix"
SHAPE_FACTS = (
    (
        "effective_rank",
        "exp of the entropy of σ/Σσ",
        "dimensions",
        RANK_RANGE,
        "Roy and Vetterli 2007",
    ),
    ("stable_rank", "‖W‖_F²/σ₁²", "dimensions", RANK_RANGE, "Rudelson and Vershynin 2007"),
    ("spectral_gap", "(σ₁-σ₂)/σ₁", "1", "[0, 1]", "arXiv:2605.13652"),
    ("threshold_rank", "number of σ above 0.1", "count", "[0, min(m, n)]", "arXiv:2605.13652"),
)
METRICS = (
    *(
        MetricInfo(
            f"{name}_{which}",
            f"{definition} of {matrix}; mean over attention and MLP matrices",
            unit,
            reach,
            source,
            section="spectra",
        )
        for which, matrix in MATRICES
        for name, definition, unit, reach, source in SHAPE_FACTS
    ),
    MetricInfo(
        "delta_norm",
        "‖ΔW‖_F, ΔW as above; aggregates are root sums of squares",
        "weight",
        "[0, ∞)",
        "arXiv:2605.13652",
        section="spectra",
    ),
    MetricInfo(
        "delta_norm_relative",
        "‖ΔW‖_F/‖W_t‖_F",
        "1",
        "[0, ∞)",
        "arXiv:2605.13652",
        section="spectra",
    ),
)


class Spectra(Lens):
    """Effective rank, stable rank, spectral gap and threshold rank of W and ΔW."""

    title = "Spectra of weights and updates"
    Settings = SpectraSettings
    position = 3
    presets = {
        "exact": {"main": {}, "factor": {"space": "factor", "distributions": False}},
        "published": {"main": {"space": "factor", "skip_initial": True}},
    }
    metrics = METRICS

    def units(self, checkpoints: Checkpoints, settings: SpectraSettings) -> list[Comparison]:
        """Return every checkpoint for W and every consecutive pair for ΔW.

        The pair (last, first) of each run is for the distribution of ΔW's singular values.
        """
        units = []
        for run in checkpoints.runs():
            kept = [p for p in run if p.step > 0 or not settings.skip_initial]
            units += [
                Comparison(
                    p,
                    None,
                    frozenset({"w", "final"} if p.last and settings.distributions else {"w"}),
                )
                for p in kept
            ]
            if settings.distributions and len(kept) > 1 and kept[-1].last:
                units.append(Comparison(kept[-1], kept[0], frozenset({"span"})))
        units += [
            Comparison(checkpoint, previous, frozenset({"dw"}))
            for checkpoint, previous in consecutive(checkpoints, settings.skip_initial)
        ]
        return merge_units(units)

    def expected(self, unit: Comparison, settings: SpectraSettings) -> Expected:
        """Return the keys of values per layer and module, of aggregates, and of spectra."""
        names = [
            f"{name}_{which}" for which in ("w", "dw") if which in unit.roles for name in SHAPES
        ]
        names += NORMS if "dw" in unit.roles else ()
        layers, modules = (*range(unit.checkpoint.layers), AGGREGATE_LAYER), (*MODULES, ALL_MODULES)
        spectra = frozenset(
            (matrix, layer, module, factors if self._of_factors(unit, matrix, settings) else dense)
            for matrix, role in (("w", "final"), ("dw", "span"))
            if role in unit.roles
            for layer in range(unit.checkpoint.layers)
            for module, dense, factors in unit.checkpoint.lengths
        )
        return Expected(
            frozenset((n, layer, m) for n in names for layer in layers for m in modules),
            frozenset(),
            spectra,
        )

    def _of_factors(self, unit: Comparison, matrix: str, settings: SpectraSettings) -> bool:
        """Return whether a spectrum pools the singular values of the factors.

        W as a product of factors has as many values as a dense one.
        """
        return settings.space == "factor" or (matrix == "dw" and not unit.checkpoint.has_dense)

    def compute(
        self, unit: Comparison, context: Context, settings: SpectraSettings
    ) -> Iterable[Result]:
        """Yield the rows of W, or of ΔW if there is a reference."""
        now = matrices(unit.checkpoint, context, settings.space, linearise=unit.reference is None)
        if unit.reference is None:
            spectra = all_singular_values(now.entries)
            yield from shape_rows(spectra, "w", settings.threshold, now.note)
            if "final" in unit.roles:
                yield from distributions(spectra, "w")
            return
        before = matrices(unit.reference, context, settings.space, linearise=False)
        deltas = differences(now, before, unit)
        spectra = all_singular_values(deltas)
        if "dw" in unit.roles:
            yield from shape_rows(spectra, "dw", settings.threshold, now.note)
            yield from norm_rows(spectra, now)
        if "span" in unit.roles:
            yield from distributions(spectra, "dw")


def matrices(checkpoint: CheckpointRef, context: Context, space: str, linearise: bool) -> Matrices:
    """Return the matrices of a checkpoint in ``space``, "dense" or "factor".

    ``linearise`` makes W the product of the factors if there is no dense equivalent. Raises
    :class:`MetricError` if there is no matrix.
    """
    loaded = context.loaded(checkpoint)
    dense = (
        context.memo(checkpoint, "dense", lambda: loaded.method.dense(loaded.model))
        if space == "dense"
        else None
    )
    if dense is not None:
        parts = context.memo(
            checkpoint, "parts", lambda: loaded.method.low_rank_parts(loaded.model)
        )
        found = Matrices(
            {(*place(path), ""): W for path, W in dense.items()},
            parts={(*place(path), ""): p for path, p in parts.items()},
        )
    else:
        factors = context.memo(checkpoint, "factors", lambda: loaded.method.factors(loaded.model))
        note = FACTORS if space == "dense" else ""
        found = Matrices(
            {
                (*place(path.rpartition(".")[0]), path.rpartition(".")[2]): W
                for path, W in factors.items()
            },
            note,
        )
        if space == "dense" and linearise:
            found = Matrices(products(found.entries, checkpoint), LINEARISED)
    if not found.entries:
        raise MetricError(
            f"{checkpoint.label}: no matrix to take a spectrum of; the method '{checkpoint.method}' has no target layer"
        )
    return found


def products(
    factors: Mapping[Key, Any], checkpoint: CheckpointRef
) -> dict[Key, tuple[Tensor, Tensor]]:
    """Return (B, A) of each layer and module, whose product is an (out, in) matrix.

    Raises :class:`MetricError` unless there are two factors.
    """
    grouped: dict[tuple[int, str], list[Tensor]] = {}
    for (layer, module, _), W in factors.items():
        grouped.setdefault((layer, module), []).append(W)
    pairs = {}
    for (layer, module), found in grouped.items():
        if len(found) != 2:
            count = len(found)
            raise MetricError(
                f"{checkpoint.label}: {count} factors in layer {layer} {module}, not two; measure space: factor"
            )
        first, second = found
        B, A = (second, first) if second.shape[1] == first.shape[0] else (first, second)
        pairs[layer, module, ""] = (B, A)
    return pairs


def all_singular_values(entries: Mapping[Key, Entry]) -> dict[Key, Tensor]:
    """Return the singular values of many matrices, decomposed in parallel.

    One thread decomposes one matrix, and PyTorch's number of threads run at a time. Several threads
    per matrix of this size would be slower, and the last digits would depend on their number.
    """
    with (
        _blas().limit(limits=1, user_api="blas"),
        ThreadPoolExecutor(torch.get_num_threads()) as pool,
    ):
        return dict(zip(entries, pool.map(_spectrum, entries.values()), strict=True))


def _spectrum(entry: Entry) -> Tensor:
    return product_singular_values(*entry) if isinstance(entry, tuple) else singular_values(entry)


@cache
def _blas() -> ThreadpoolController:
    """Return the controller of this process's BLAS libraries; finding them takes milliseconds."""
    return ThreadpoolController()


def differences(now: Matrices, before: Matrices, unit: Comparison) -> dict[Key, Entry]:
    """Return ΔW of every matrix in float64.

    Raises :class:`MetricError` if the checkpoints have different shapes.
    """
    deltas: dict[Key, Entry] = {}
    for key, W in now.entries.items():
        V = before.entries.get(key)
        if not isinstance(W, Tensor) or not isinstance(V, Tensor) or W.shape != V.shape:
            odd = f"layer {key[0]} {key[1]}"
            raise MetricError(
                f"{unit.label}: the checkpoints have different shapes ({odd}); ΔW needs two of the same model"
            )
        if key in now.parts and key in before.parts:
            deltas[key] = _moved_parts(now.parts[key], before.parts[key])
        else:
            deltas[key] = W.double() - V.double()
    return deltas


def _moved_parts(
    now: tuple[Tensor, Tensor, Tensor], before: tuple[Tensor, Tensor, Tensor]
) -> Entry:
    """Return ΔW of W = base + B·A, without the rounding errors of two dense float32 sums.

    If both have the same base, bit for bit, ΔW is a product of rank 2r at most: BA - B'A' = [B-B',
    B'] [A; A-A'], which avoids cancellation when the factors changed little. A merge between the
    two checkpoints changes the base; ΔW is then dense.
    """
    base, base_before = now[0], before[0]
    B, A, B_before, A_before = (part.double() for part in (*now[1:], *before[1:]))
    left, right = torch.cat((B - B_before, B_before), 1), torch.cat((A, A - A_before), 0)
    return (
        (left, right)
        if torch.equal(base, base_before)
        else base.double() - base_before.double() + left @ right
    )


def cells(key: Key) -> tuple[tuple[int, str], ...]:
    """Return the cell (layer, module) of a matrix and the three aggregates that include it."""
    layer, module, _ = key
    return (
        (layer, module),
        (AGGREGATE_LAYER, module),
        (layer, ALL_MODULES),
        (AGGREGATE_LAYER, ALL_MODULES),
    )


def shape_rows(
    spectra: Mapping[Key, Tensor], which: str, threshold: float, note: str
) -> Iterator[Value]:
    """Yield the four shape metrics of every cell, each the mean over the cell's matrices."""
    found: dict[tuple[int, str], list[dict[str, float]]] = {}
    for key, values in spectra.items():
        shapes = singular_value_metrics(values, threshold)
        for cell in cells(key):
            found.setdefault(cell, []).append(shapes)
    for (layer, module), rows in found.items():
        for name in SHAPES:
            mean = math.fsum(row[name] for row in rows) / len(rows)
            yield Value(f"{name}_{which}", mean, layer, module, n=len(rows), note=note)


def norm_rows(spectra: Mapping[Key, Tensor], now: Matrices) -> Iterator[Value]:
    """Yield ‖ΔW‖_F and ‖ΔW‖_F/‖W‖_F of every cell.

    A cell of several matrices has the norm of all their entries. ‖ΔW‖_F² is the sum of the squared
    singular values, which is the trace of the Gram matrix.
    """
    squares: dict[tuple[int, str], list[tuple[float, float]]] = {}
    for key, values in spectra.items():
        W = now.entries[key]
        pair = (float(values.square().sum()), float(cast(Tensor, W).double().square().sum()))
        for cell in cells(key):
            squares.setdefault(cell, []).append(pair)
    for (layer, module), pairs in squares.items():
        moved, size = (math.sqrt(math.fsum(column)) for column in zip(*pairs, strict=True))
        yield Value("delta_norm", moved, layer, module, n=len(pairs), note=now.note)
        relative, note = (moved / size, now.note) if size > 0 else (None, "the weights are zero")
        yield Value("delta_norm_relative", relative, layer, module, n=len(pairs), note=note)


def distributions(spectra: Mapping[Key, Tensor], matrix: str) -> Iterator[Spectrum]:
    """Yield the singular values of each layer and module, those of several factors pooled."""
    pooled: dict[tuple[int, str], list[Tensor]] = {}
    for (layer, module, _), values in spectra.items():
        pooled.setdefault((layer, module), []).append(values)
    for (layer, module), parts in pooled.items():
        yield Spectrum(
            matrix, layer, module, torch.cat(parts).sort(descending=True).values.tolist()
        )


LENS = Spectra
