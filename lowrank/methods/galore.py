"""GaLore: full weights and gradients, Adam's moments in a low-rank subspace of the gradient
(arXiv:2403.03507).
"""

from __future__ import annotations

from pydantic import Field, PositiveFloat

from lowrank.methods.base import ProjectedMethod, ProjectionSettings
from lowrank.optim.galore import GaLoreAdamW


class GaLoreSettings(ProjectionSettings):
    """Settings of GaLore."""

    scale: PositiveFloat = Field(
        0.25,
        description="GaLore scale factor: multiplies every projected update, and so the learning rate of the target matrices",
    )


class GaLore(ProjectedMethod):
    """AdamW with moments in the leading singular subspace of each gradient."""

    title = "GaLore"
    summary = "full weights, Adam's moments in a periodically refreshed subspace of the gradient"
    source = "arXiv:2403.03507"
    Settings = GaLoreSettings
    optimizer_class = GaLoreAdamW


METHOD = GaLore
