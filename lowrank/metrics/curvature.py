"""Curvature by Hessian-vector products: a cross-check of the landscape.

Along standard normal directions d, E[½(L(θ+ad)+L(θ-ad)) - L(θ)] = ½a² tr(H) + O(a⁴): the sharpness
along random directions estimates a trace. This lens computes tr(H) by Hutchinson's estimator and
the largest eigenvalue by the Lanczos process.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

from pydantic import NonNegativeInt, PositiveFloat, PositiveInt

from lowrank.geometry.hessian import (
    hessian_products as hessian_products,
)
from lowrank.geometry.hessian import (
    hutchinson as hutchinson,
)
from lowrank.geometry.hessian import (
    top_eigenvalue as top_eigenvalue,
)
from lowrank.metrics.base import (
    NO_DENSE,
    Comparison,
    Context,
    Lens,
    MetricInfo,
    Result,
    TextSettings,
    Value,
)


class CurvatureSettings(TextSettings):
    """Settings of the estimators: the space, and the numbers of Hessian-vector products."""

    space: Literal["dense", "trained"] = "dense"
    direction_seed: NonNegativeInt = 0
    probes: PositiveInt = 20
    iterations: PositiveInt = 50
    tolerance: PositiveFloat = 0.01
    skip_initial: bool = False


class Curvature(Lens):
    """Trace and top eigenvalue of the Hessian."""

    title = "Curvature by Hessian-vector products"
    Settings = CurvatureSettings
    position = 5
    presets = {
        "exact": {"main": {}},
        "published": {"main": {"space": "trained", "skip_initial": True}},
    }
    metrics = (
        MetricInfo(
            "hessian_trace",
            "tr(H) of the loss by Hutchinson's estimator",
            "nats/token",
            "(-∞, ∞)",
            "Hutchinson 1990",
            "lower",
        ),
        MetricInfo(
            "hessian_top_eigenvalue",
            "largest eigenvalue of H by the Lanczos process",
            "nats/token",
            "(-∞, ∞)",
            "Lanczos 1950",
            "lower",
        ),
    )

    def compute(
        self, unit: Comparison, context: Context, settings: CurvatureSettings
    ) -> Iterable[Result]:
        """Yield the trace and the largest eigenvalue in ``space``, in nats per token."""
        network = None
        if settings.space == "trained" or unit.checkpoint.has_dense:
            network = context.network(unit.checkpoint, settings.space)
        if network is None:
            for info in self.metrics:
                yield Value(info.name, None, note=NO_DENSE)
            return
        with hessian_products(network, context.batches(unit, settings.batch_rows)) as (
            product,
            like,
        ):
            trace = hutchinson(product, like, settings.probes, settings.direction_seed, context)
            value, bound, used = top_eigenvalue(
                product, like, settings.iterations, settings.tolerance, settings.direction_seed
            )
        yield Value("hessian_trace", trace.value, standard_error=trace.standard_error, n=trace.n)
        close = bound <= settings.tolerance * abs(value)
        note = (
            ""
            if close
            else f"not converged after {used} products: the error is at most {bound:.2g}"
        )
        yield Value("hessian_top_eigenvalue", value, n=used, note=note)


LENS = Curvature
