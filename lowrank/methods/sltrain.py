"""SLTrain: every target weight is a low-rank product plus a sparse matrix (arXiv:2406.02214)."""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from pydantic import Field, PositiveFloat, PositiveInt
from torch import Tensor, nn

from lowrank.errors import ConfigError
from lowrank.layers import Draw, FactoredLinear, fill, kaiming, replace_targets, targets
from lowrank.methods.base import RANK, Method
from lowrank.optim.sharding import full_tensor
from lowrank.settings import Config


class SLTrainLinear(FactoredLinear):
    """The layer x ↦ W x with W = (alpha/rank)·B·A + S (SLTrain, equation 2).

    S has ⌊sparsity·in·out⌋ entries ``values`` at the flat positions ``indices`` (sorted, int64,
    row-major). The support is a persistent buffer: it is saved with the weights and never trained.
    """

    indices: Tensor

    def __init__(
        self,
        in_features: int,
        out_features: int,
        rank: int,
        sparsity: float,
        alpha: float,
        bias: bool = False,
    ) -> None:
        super().__init__(in_features, out_features, rank, bias)
        entries = int(sparsity * in_features * out_features)
        if not 0.0 < sparsity <= 1.0 or entries == 0:
            raise ConfigError(
                f"sparsity {sparsity} keeps no entry of a layer of shape ({out_features}, {in_features}), or more than all; "
                f"choose {1 / (in_features * out_features):.2g} to 1"
            )
        self.sparsity, self.alpha = sparsity, alpha
        self.values = nn.Parameter(torch.empty(entries))
        self.register_buffer("indices", torch.zeros(entries, dtype=torch.int64), persistent=True)
        self.reset_parameters()

    def reset_parameters(self, draw: Draw | None = None) -> None:
        """Draw A Kaiming-uniform (a = √5), S uniform in ±1/√in and its support; set B to zero.

        The support is uniform without repetition.
        """
        bound = self.in_features**-0.5
        fill(self.A, kaiming, draw, "A")
        nn.init.zeros_(self.B)
        fill(self.values, partial(nn.init.uniform_, a=-bound, b=bound), draw, "values")
        self.reset_bias()
        self._draw_support(None if draw is None else draw("indices"))

    def _draw_support(self, generator: torch.Generator | None) -> None:
        # The meta device has no data; a support that was loaded from a checkpoint is kept.
        if self.indices.device.type != "meta" and not getattr(
            self.indices, "_is_hf_initialized", False
        ):
            positions = torch.randperm(self.in_features * self.out_features, generator=generator)[
                : len(self.indices)
            ]
            self.indices.copy_(positions.sort().values)

    def dense(self) -> Tensor:
        """Return W (out, in), differentiable with respect to ``A``, ``B`` and ``values``.

        If these are sharded, every process gets the full W.
        """
        product = (self.alpha / self.rank) * full_tensor(self.B) @ full_tensor(self.A)
        # Autocast may have made the product half precision; the sum needs one dtype.
        return (
            product.flatten()
            .index_add(0, self.indices, full_tensor(self.values).to(product.dtype))
            .view_as(product)
        )

    def sparse(self) -> Tensor:
        """Return S as a dense matrix (out, in)."""
        flat = self.values.new_zeros(self.out_features * self.in_features)
        return flat.index_add(0, self.indices, self.values).view(
            self.out_features, self.in_features
        )

    def forward(self, x: Tensor) -> Tensor:
        """Apply the effective weight."""
        return F.linear(x, self.dense(), self.bias)

    def extra_repr(self) -> str:
        """Return shape, rank, sparsity and alpha."""
        return f"{super().extra_repr()}, sparsity={self.sparsity}, alpha={self.alpha}"


class SLTrainSettings(Config):
    """Settings of SLTrain."""

    rank: PositiveInt = Field(description=RANK)
    alpha: PositiveFloat = Field(
        32.0, description="the low-rank part is multiplied by alpha / rank"
    )
    sparsity: float = Field(
        0.03, gt=0.0, le=1.0, description="share of the entries of W in the sparse part"
    )


class SLTrain(Method):
    """Low-rank factors plus a sparse matrix on a fixed support instead of each dense weight."""

    family = "architecture"
    title = "SLTrain"
    summary = "low-rank factors plus trained entries on a fixed random support"
    source = "arXiv:2406.02214"
    Settings = SLTrainSettings
    custom_architecture = True

    def attach(self, model: nn.Module) -> None:
        """Replace the target layers."""
        s = self.settings
        replace_targets(
            model,
            lambda old: SLTrainLinear(
                old.in_features, old.out_features, s.rank, s.sparsity, s.alpha, old.bias is not None
            ),
        )

    @torch.no_grad()
    def dense(self, model: nn.Module) -> dict[str, Tensor]:
        """Return the sum of both parts of each target layer by module path."""
        return {
            path: module.dense()
            for path, module in targets(model)
            if isinstance(module, SLTrainLinear)
        }

    @torch.no_grad()
    def low_rank_parts(self, model: nn.Module) -> dict[str, tuple[Tensor, Tensor, Tensor]]:
        """Return the sparse matrices and the factors by module path."""
        layers = {
            path: module for path, module in targets(model) if isinstance(module, SLTrainLinear)
        }
        return {
            path: (m.sparse(), (m.alpha / m.rank) * m.B.double(), m.A.double())
            for path, m in layers.items()
        }


METHOD = SLTrain
