"""Fira: GaLore plus the part of the gradient outside the subspace, at the same memory
(arXiv:2410.01623).
"""

from __future__ import annotations

from pydantic import Field, PositiveFloat

from lowrank.methods.base import PROJ_TYPE, ProjectedMethod, ProjectionSettings
from lowrank.optim.fira import FiraAdamW
from lowrank.optim.projection import OneSided

ONE_SIDED = PROJ_TYPE.removesuffix("; full: both sides")


class FiraSettings(ProjectionSettings):
    """Settings of Fira."""

    proj_type: OneSided = Field("std", description=ONE_SIDED)
    alpha: PositiveFloat = Field(
        0.25,
        description="GaLore scale factor: multiplies every projected update, but not the scaled residual",
    )
    norm_growth_limit: float = Field(
        1.01,
        ge=1.0,
        description="largest growth of the residual's norm from one update to the next",
    )


class Fira(ProjectedMethod):
    """GaLore plus the residual of the gradient, scaled as Adam scales the projected part."""

    title = "Fira"
    summary = "GaLore plus the scaled residual of the gradient, its growth limited"
    source = "arXiv:2410.01623"
    Settings = FiraSettings
    optimizer_class = FiraAdamW


METHOD = Fira
