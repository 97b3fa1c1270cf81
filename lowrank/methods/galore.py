"""GaLore: full weights and gradients, Adam's moments in a low-rank subspace of the gradient
(arXiv:2403.03507).
"""

from __future__ import annotations

from pydantic import PositiveFloat
from torch import Tensor

from lowrank.methods._optimizer import Move, ProjectedAdamW, ProjectedMethod, ProjectionSettings
from lowrank.methods._projection import add_back


class GaLoreAdamW(ProjectedAdamW):
    """AdamW in gradient subspaces (GaLore, algorithm 2): W -= step size · scale · back(N).

    Takes the place of ``galore_torch.GaLoreAdamW``: the same arguments, groups and trajectory
    (under the convention of signs).
    """

    scale_key = "scale"

    def _move(self, p: Tensor, G: Tensor, move: Move) -> None:
        add_back(p, move.N, move.bases, move.kind, -move.step_size * move.group["scale"])


class GaLoreSettings(ProjectionSettings):
    """Settings of GaLore."""

    scale: PositiveFloat = 0.25  # of every projected update: it multiplies the learning rate


class GaLore(ProjectedMethod):
    """AdamW whose moments live in the leading singular subspace of each gradient."""

    title = "GaLore"
    summary = "full weights, Adam's moments in a periodically refreshed subspace of the gradient"
    source = "arXiv:2403.03507"
    Settings = GaLoreSettings
    optimizer_class = GaLoreAdamW


METHOD = GaLore
