"""GaLore: AdamW whose moments live in a subspace of the gradient (arXiv:2403.03507)."""

from __future__ import annotations

from torch import Tensor

from lowrank.optim.projected import Move, ProjectedAdamW
from lowrank.optim.projection import add_back


class GaLoreAdamW(ProjectedAdamW):
    """AdamW in gradient subspaces (GaLore, algorithm 2): W -= step size · scale · back(N).

    Takes the place of ``galore_torch.GaLoreAdamW``: the same arguments, groups and trajectory
    (under the convention of signs).
    """

    scale_key = "scale"

    def _move(self, p: Tensor, G: Tensor, move: Move) -> None:
        add_back(p, move.N, move.bases, move.kind, -move.step_size * move.group["scale"])
