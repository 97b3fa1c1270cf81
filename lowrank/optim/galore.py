"""GaLore: AdamW whose moments live in a subspace of the gradient (arXiv:2403.03507)."""

from __future__ import annotations

from torch import Tensor

from lowrank.optim.projected import Move, ProjectedAdamW, ProjectedMatrix
from lowrank.optim.projection import add_back


class GaLoreAdamW(ProjectedAdamW):
    """AdamW in gradient subspaces (GaLore, algorithm 2): W -= step size · scale · back(N).

    ``scale`` of a projected group is the GaLore scale factor α (1.0 by default, 0.25 in the
    published runs). Replaces ``galore_torch.GaLoreAdamW``: arguments and groups are the same, and
    so is the trajectory under the convention of signs. Further arguments, keys of groups and errors
    are those of :class:`ProjectedAdamW`.
    """

    scale_key = "scale"

    def move(self, matrix: ProjectedMatrix, G: Tensor, move: Move) -> None:
        """Add the direction, taken back to the full space, to the matrix."""
        size = -move.step_size * matrix.group["scale"]
        add_back(matrix.parameter, move.N, move.bases, matrix.kind, size)
