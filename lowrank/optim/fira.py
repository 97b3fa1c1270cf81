"""Fira: GaLore plus the part of the gradient that the subspace loses, at the same memory
(arXiv:2410.01623).
"""

from __future__ import annotations

import torch
from torch import Tensor

from lowrank.optim.adam import Group
from lowrank.optim.projected import Move, ProjectedAdamW, ProjectedMatrix
from lowrank.optim.projection import ONE_SIDED, add_back
from lowrank.optim.sharding import full_tensor, norms
from lowrank.optim.state import FiraState

SHORTCUT = 0.5  # largest alpha for which the residual's norm is taken from a difference of squares


class FiraAdamW(ProjectedAdamW):
    """AdamW in gradient subspaces with a scaled residual (Fira, algorithm 1).

    W -= step size · (alpha · back(N) + S) with S = φ · (G - alpha · back(R)) and φ = ‖N‖ / (‖R‖ +
    1e-8) along the compressed side: one factor per row where right singular vectors are kept, one
    per column for left ones. The limiter holds ‖S‖ to ``norm_growth_limit`` (1.01)
    times that of the previous update, across refreshes.

    ``alpha`` of a projected group is 1.0 by default, 0.25 in the published runs. Replaces
    ``fira.FiraAdamW``: arguments and groups are the same, and so is the trajectory under the
    convention of signs. Further arguments, keys of groups and errors are those of
    :class:`ProjectedAdamW`; the ``proj_type`` ``full`` has no such factors and is refused.
    """

    scale_key = "alpha"
    scalars = 1  # the norm of the residual
    proj_types = ONE_SIDED
    state_class = FiraState

    def add_param_group(self, param_group: Group) -> None:
        """Add a group as :class:`ProjectedAdamW` does.

        A projected group may also have ``norm_growth_limit``.
        """
        super().add_param_group(param_group)
        if "rank" in self.param_groups[-1]:
            self.param_groups[-1].setdefault("norm_growth_limit", 1.01)

    def move(self, matrix: ProjectedMatrix, G: Tensor, move: Move) -> None:
        """Add the direction and the scaled residual to the matrix."""
        p, along = matrix.parameter, _compressed_side(matrix)
        factors = norms(move.N, along) / (norms(move.R, along) + 1e-8)
        if (
            matrix.group["alpha"] <= SHORTCUT
            and G.dtype in (torch.float32, torch.float64)
            and p.dtype == G.dtype
        ):
            self._move_by_shortcut(matrix, G, move, factors)
        else:
            self._move_by_residual(matrix, G, move, factors)

    def _move_by_residual(
        self, matrix: ProjectedMatrix, G: Tensor, move: Move, factors: Tensor
    ) -> None:
        """Form the residual and add it."""
        p, kind, alpha = matrix.parameter, matrix.kind, matrix.group["alpha"]
        residual = add_back(G.clone(), move.R, move.bases, kind, -alpha)
        factors = self._limited(factors, norms(residual, _compressed_side(matrix)), matrix)
        add_back(p, move.N, move.bases, kind, -move.step_size * alpha)
        p.sub_(residual.mul_(factors), alpha=move.step_size)

    def _move_by_shortcut(
        self, matrix: ProjectedMatrix, G: Tensor, move: Move, factors: Tensor
    ) -> None:
        """Add the same without forming the residual, by two products instead of three.

        Q is orthonormal, so of each row or column ‖G - alpha · RQ‖² = ‖G‖² - (1 - (1 - alpha)²)
        ‖R‖², and alpha · NQ + φ (G - alpha · RQ) = φ G + alpha · (N - φ R) Q. The difference of
        squares loses no digits as long as enough of the subspace's part stays in the residual: (1 -
        alpha)² of its square.
        """
        p, along, alpha = matrix.parameter, _compressed_side(matrix), matrix.group["alpha"]
        squares = (
            norms(G, along).square() - (1.0 - (1.0 - alpha) ** 2) * norms(move.R, along).square()
        )
        factors = self._limited(factors, squares.clamp(min=0.0).sqrt(), matrix)
        p.addcmul_(G, factors, value=-move.step_size)
        within = torch.addcmul(move.N, move.R, factors, value=-1.0)
        add_back(p, within, move.bases, matrix.kind, -move.step_size * alpha)

    @staticmethod
    def _limited(factors: Tensor, residual: Tensor, matrix: ProjectedMatrix) -> Tensor:
        """Shrink ``factors`` so that ‖S‖ grows no faster than the limit, and remember ‖S‖.

        ``residual`` are the norms of the residual's rows or columns.
        """
        state: FiraState = matrix.state
        norm = full_tensor(torch.linalg.vector_norm(residual * factors))
        if state.residual_norm is not None:
            limit = matrix.group["norm_growth_limit"]
            shrink = (norm / (state.residual_norm + 1e-8)).clamp(min=limit) / limit
            factors, norm = factors / shrink, norm / shrink
        state.residual_norm = norm
        return factors


def _compressed_side(matrix: ProjectedMatrix) -> int:
    return 1 if matrix.kind == "right" else 0
