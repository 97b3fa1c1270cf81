"""CoLA: every target layer is B·σ(A·x), a bottleneck with a non-linearity inside (EMNLP 2025,
arXiv:2502.10940).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Literal

import torch.nn.functional as F
from pydantic import Field, PositiveInt
from torch import Tensor, nn

from lowrank.errors import ConfigError
from lowrank.layers import Draw, FactoredLinear, fill, replace_targets
from lowrank.methods.base import RANK, Method
from lowrank.settings import Config

Activation = Literal["silu", "gelu", "relu", "tanh", "identity"]
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "gelu": F.gelu,
    "relu": F.relu,
    "tanh": F.tanh,
    "identity": lambda x: x,
}


class CoLALinear(FactoredLinear):
    """The layer x (…, in) ↦ B·σ(A·x) (…, out) (CoLA, equation 3).

    No dense matrix is equivalent to it, unless σ is the identity.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        rank: int,
        activation: str = "silu",
        bias: bool = False,
    ) -> None:
        super().__init__(in_features, out_features, rank, bias)
        if activation not in ACTIVATIONS:
            raise ConfigError(
                f"activation is '{activation}'; choose one of {', '.join(ACTIVATIONS)}"
            )
        self.activation = activation
        self.reset_parameters()

    def reset_parameters(self, draw: Draw | None = None) -> None:
        """Draw both factors from N(0, 1/√(rank·(in+out)))."""
        std = (self.rank * (self.in_features + self.out_features)) ** -0.25
        fill(self.A, partial(nn.init.normal_, std=std), draw, "A")
        fill(self.B, partial(nn.init.normal_, std=std), draw, "B")
        self.reset_bias()

    def forward(self, x: Tensor) -> Tensor:
        """Apply both factors."""
        return F.linear(ACTIVATIONS[self.activation](F.linear(x, self.A)), self.B, self.bias)


class CoLASettings(Config):
    """Settings of CoLA."""

    rank: PositiveInt = Field(description=RANK)
    activation: Activation = Field("silu", description="non-linearity between the factors")
    outer_gate_activation: bool = Field(
        True,
        description="keep the MLP's own SiLU around its gate (published: true to 130m, false from 350m on)",
    )


class CoLA(Method):
    """Bottleneck layers with a non-linearity instead of dense ones."""

    family = "architecture"
    title = "CoLA"
    summary = "every target layer is a bottleneck with a non-linearity inside"
    source = "EMNLP 2025, arXiv:2502.10940"
    Settings = CoLASettings
    custom_architecture = True
    has_dense = False

    def attach(self, model: nn.Module) -> None:
        """Replace the target layers; remove the SiLU of the gate if the settings say so."""
        rank, activation = self.settings.rank, self.settings.activation
        replace_targets(
            model,
            lambda old: CoLALinear(
                old.in_features, old.out_features, rank, activation, old.bias is not None
            ),
        )
        if not self.settings.outer_gate_activation:
            for module in model.modules():
                if hasattr(module, "gate_proj"):
                    module.act_fn = nn.Identity()

    def dense(self, model: nn.Module) -> None:
        """Return None: the non-linearity has no dense equivalent."""


METHOD = CoLA
