"""Fira: GaLore plus the part of the gradient that the subspace loses, at the same memory
(arXiv:2410.01623).
"""

from __future__ import annotations

import torch
from torch import Tensor

from lowrank.optim.projected import Group, Move, ProjectedAdamW
from lowrank.optim.projection import ONE_SIDED, add_back
from lowrank.optim.sharding import norms, whole

SHORTCUT = 0.5  # largest alpha for which the residual's norm is taken from a difference of squares


class FiraAdamW(ProjectedAdamW):
    """AdamW in gradient subspaces with a scaled residual (Fira, algorithm 1): W -= step size ·
    (alpha · back(N) + S).

    S = φ · (G - alpha · back(R)) with φ = ‖N‖ / (‖R‖ + 1e-8) along the compressed side: one factor
    a row where right singular vectors are kept, one a column for left ones. The limiter holds ‖S‖
    to ``norm_growth_limit`` (1.01) times that of the previous update, across refreshes. Takes the
    place of ``fira.FiraAdamW``. Two-sided projection has no such factors: it is refused.
    """

    scale_key = "alpha"
    scalars = 1  # the norm of the residual
    proj_types = ONE_SIDED

    def add_param_group(self, param_group: Group) -> None:
        """As in :class:`ProjectedAdamW`; ``norm_growth_limit`` may be given with a
        projected group.
        """
        super().add_param_group(param_group)
        if "rank" in self.param_groups[-1]:
            self.param_groups[-1].setdefault("norm_growth_limit", 1.01)

    def _move(self, p: Tensor, G: Tensor, move: Move) -> None:
        along = 1 if move.kind == "right" else 0
        factors = norms(move.N, along) / (norms(move.R, along) + 1e-8)
        if (
            move.group["alpha"] <= SHORTCUT
            and G.dtype in (torch.float32, torch.float64)
            and p.dtype == G.dtype
        ):
            self._move_by_shortcut(p, G, move, factors, along)
        else:
            self._move_by_residual(p, G, move, factors, along)

    def _move_by_residual(
        self, p: Tensor, G: Tensor, move: Move, factors: Tensor, along: int
    ) -> None:
        alpha = move.group["alpha"]
        residual = add_back(G.clone(), move.R, move.bases, move.kind, -alpha)
        factors = self._limited(factors, norms(residual, along), move)
        add_back(p, move.N, move.bases, move.kind, -move.step_size * alpha)
        p.sub_(residual.mul_(factors), alpha=move.step_size)

    def _move_by_shortcut(
        self, p: Tensor, G: Tensor, move: Move, factors: Tensor, along: int
    ) -> None:
        """The same without ever making the residual, by two products instead of three.

        Q is orthonormal, so of each row or column ‖G - alpha · RQ‖² = ‖G‖² - (1 - (1 - alpha)²)
        ‖R‖², and alpha · NQ + φ (G - alpha · RQ) = φ G + alpha · (N - φ R) Q. The difference of
        squares loses no digits as long as enough of the subspace's part stays in the residual: (1 -
        alpha)² of its square.
        """
        alpha = move.group["alpha"]
        squares = (
            norms(G, along).square() - (1.0 - (1.0 - alpha) ** 2) * norms(move.R, along).square()
        )
        factors = self._limited(factors, squares.clamp(min=0.0).sqrt(), move)
        p.addcmul_(G, factors, value=-move.step_size)
        add_back(
            p,
            torch.addcmul(move.N, move.R, factors, value=-1.0),
            move.bases,
            move.kind,
            -move.step_size * alpha,
        )

    @staticmethod
    def _limited(factors: Tensor, residual: Tensor, move: Move) -> Tensor:
        """``factors`` shrunk so that ‖S‖ grows no faster than the limit; remembers it. ``residual``
        are its norms.
        """
        norm = whole(torch.linalg.vector_norm(residual * factors))
        if "residual_norm" in move.state:
            limit = move.group["norm_growth_limit"]
            shrink = (norm / (move.state["residual_norm"] + 1e-8)).clamp(min=limit) / limit
            factors, norm = factors / shrink, norm / shrink
        move.state["residual_norm"] = norm
        return factors
