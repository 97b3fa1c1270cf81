"""Fira: GaLore plus the part of the gradient that the subspace loses, at the same memory (arXiv:2410.01623)."""

from __future__ import annotations

import torch
from pydantic import Field, PositiveFloat
from torch import Tensor

from lowrank.methods._optimizer import Group, Move, ProjectedAdamW, ProjectedMethod, ProjectionSettings
from lowrank.methods._projection import ONE_SIDED, OneSided, add_back


class FiraAdamW(ProjectedAdamW):
    """AdamW in gradient subspaces with a scaled residual (Fira, algorithm 1): W -= step size · (alpha · back(N) + S).

    S = φ · (G - alpha · back(R)) with φ = ‖N‖ / (‖R‖ + 1e-8) along the compressed side: one factor a row where right singular
    vectors are kept, one a column for left ones. The limiter holds ‖S‖ to ``norm_growth_limit`` (1.01) times that of the previous
    update, across refreshes. Takes the place of ``fira.FiraAdamW``. Two-sided projection has no such factors: it is refused.
    """

    scale_key = "alpha"
    scalars = 1  # the norm of the residual
    proj_types = ONE_SIDED

    def add_param_group(self, param_group: Group) -> None:
        """As in :class:`ProjectedAdamW`; ``norm_growth_limit`` may be given with a projected group."""
        super().add_param_group(param_group)
        if "rank" in self.param_groups[-1]:
            self.param_groups[-1].setdefault("norm_growth_limit", 1.01)

    def _move(self, p: Tensor, G: Tensor, move: Move) -> None:
        alpha, along = move.group["alpha"], 1 if move.kind == "right" else 0
        factors = move.N.norm(dim=along, keepdim=True) / (move.R.norm(dim=along, keepdim=True) + 1e-8)
        residual = add_back(G.clone(), move.R, move.bases, move.kind, -alpha)
        norm = (residual.norm(dim=along, keepdim=True) * factors).norm()
        if "residual_norm" in move.state:
            limit = move.group["norm_growth_limit"]
            shrink = (norm / (move.state["residual_norm"] + 1e-8)).clamp(min=limit) / limit
            factors, norm = factors / shrink, norm / shrink
        move.state["residual_norm"] = norm
        add_back(p, move.N, move.bases, move.kind, -move.step_size * alpha)
        torch.addcmul(p, factors.to(p.dtype), residual.to(p.dtype), value=-move.step_size, out=p)


class FiraSettings(ProjectionSettings):
    """Settings of Fira."""

    proj_type: OneSided = "std"
    alpha: PositiveFloat = 0.25                       # of every projected update; the residual is not scaled by it
    norm_growth_limit: float = Field(1.01, ge=1.0)    # of the residual's norm, from one update to the next


class Fira(ProjectedMethod):
    """GaLore whose lost part of the gradient returns, scaled as Adam scaled the kept part."""

    title = "Fira"
    summary = "GaLore plus the scaled residual of the gradient, its growth limited"
    source = "arXiv:2410.01623"
    Settings = FiraSettings
    optimizer_class = FiraAdamW


METHOD = Fira
