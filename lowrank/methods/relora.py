"""ReLoRA: frozen weights with adapters that are periodically merged and restarted.

The method is that of Lialin et al. (ICLR 2024, arXiv:2307.05695).
"""

from __future__ import annotations

from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt
from torch import Tensor, nn

from lowrank import schedule
from lowrank.errors import ConfigError, LowrankError
from lowrank.layers import Draw, FactoredLinear, fill, kaiming, plain_path, replace_targets, targets
from lowrank.methods.base import RANK, Method
from lowrank.optim.sharding import full_tensor, like
from lowrank.optim.state import AdamState
from lowrank.settings import Config, Training

Init = Literal["lora", "published"]
Reset = Literal["full", "shared_mask", "independent_masks"]
Restarts = Literal["relora", "published"]
RESTARTS = {"relora": schedule.cosine_restarts, "published": schedule.cosine_restarts_published}


class ReLoRALinear(FactoredLinear):
    """The layer x ↦ (W0 + (alpha/rank)·B·A) x (ReLoRA, section 3), with dropout before A.

    ``weight`` (out, in) is W0, taken from ``linear`` and frozen; its bias is kept and trained.
    ``init="published"`` starts with both factors at zero, so that the adapter learns nothing before
    the first merge.
    """

    def __init__(
        self,
        linear: nn.Linear,
        rank: int,
        alpha: float,
        dropout: float,
        *,
        init: Init = "lora",
        initializer_range: float = 0.02,
    ) -> None:
        super().__init__(linear.in_features, linear.out_features, rank)
        if not 0.0 <= dropout < 1.0:
            raise ConfigError(f"dropout is {dropout}; it must lie in [0, 1)")
        self.alpha, self.dropout, self.init, self.initializer_range = (
            alpha,
            dropout,
            init,
            initializer_range,
        )
        self.weight = nn.Parameter(linear.weight.detach(), requires_grad=False)
        self.bias = linear.bias
        self.to(device=linear.weight.device, dtype=linear.weight.dtype)
        self.reset_factors()

    @property
    def scale(self) -> float:
        """The factor of the product B·A."""
        return self.alpha / self.rank

    def reset_parameters(self, draw: Draw | None = None) -> None:
        """Draw W0 from N(0, initializer_range²), as full rank does, and then the factors."""
        fill(self.weight, partial(nn.init.normal_, std=self.initializer_range), draw, "weight")
        self.reset_factors(draw)
        self.reset_bias()

    def reset_factors(self, draw: Draw | None = None) -> None:
        """Draw A Kaiming-uniform (a = √5), or set it to zero as published; set B to zero."""
        if self.init == "published":
            nn.init.zeros_(self.A)
        else:
            fill(self.A, kaiming, draw, "A")
        nn.init.zeros_(self.B)

    @torch.no_grad()
    def merge_(self, draw: Draw | None = None) -> None:
        """Add the product to W0, then draw A (Kaiming-uniform for every ``init``) and zero B."""
        self.weight.copy_(self.dense())
        fill(self.A, kaiming, draw, "A")
        self.B.zero_()

    def dense(self) -> Tensor:
        """Return the effective W (out, in)."""
        return torch.addmm(self.weight, self.B, self.A, alpha=self.scale)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the frozen weight and the adapter."""
        adapted = F.linear(F.linear(F.dropout(x, self.dropout, self.training), self.A), self.B)
        return F.linear(x, self.weight, self.bias) + self.scale * adapted

    def extra_repr(self) -> str:
        """Return shape, rank, alpha and dropout."""
        return f"{super().extra_repr()}, alpha={self.alpha}, dropout={self.dropout}"


class ReLoRASettings(Config):
    """Settings of ReLoRA.

    With the defaults the adapters learn from the first update; every published choice is an option.
    """

    rank: PositiveInt = Field(description=RANK)
    alpha: PositiveFloat = Field(32.0, description="the product is multiplied by alpha / rank")
    dropout: float = Field(0.1, ge=0.0, lt=1.0, description="dropout of the adapter's input")
    merge_every: PositiveInt = Field(1000, description="updates between two merges")
    restart_warmup: NonNegativeInt = Field(
        100, description="updates of the learning rate's ramp after a merge"
    )
    init: Init = Field(
        "lora",
        description="lora: B starts at zero; published: both factors do, until the first merge",
    )
    reset: Reset = Field(
        "full",
        description="moments after a merge: full zeroes them and their counter; a mask keeps a random "
        "share, the same of both moments or (published) independent_masks",
    )
    keep: float = Field(0.01, ge=0.0, le=1.0, description="share of the moments that a mask keeps")
    restarts: Restarts = Field(
        "relora",
        description="ramp after a merge: relora ends on the cosine; published ends low, then jumps onto it",
    )
    merge_lag: NonNegativeInt = Field(
        0, description="updates by which merges are late (published: 1, after k·merge_every + 1)"
    )


class ReLoRA(Method):
    """Frozen weights with adapters that are merged and restarted every ``merge_every`` updates."""

    family = "adapter"
    title = "ReLoRA"
    summary = "frozen weights that absorb a low-rank adapter every so often"
    source = "ICLR 2024, arXiv:2307.05695"
    Settings = ReLoRASettings
    custom_architecture = True

    def attach(self, model: nn.Module) -> None:
        """Wrap the target layers."""
        s, std = (
            self.settings,
            float(getattr(getattr(model, "config", None), "initializer_range", 0.02)),
        )
        replace_targets(
            model,
            lambda old: ReLoRALinear(
                old, s.rank, s.alpha, s.dropout, init=s.init, initializer_range=std
            ),
        )

    def lr_factor(self, update: int, training: Training) -> float:
        """Return the factor of a cosine with a ramp from zero after every merge.

        The update before a merge still belongs to the old cycle.
        """
        s, step = self.settings, update - training.schedule_lag
        if s.restarts == "relora" and self.merges_after(update):
            return schedule.cosine(step, training.steps, training.warmup, training.min_lr_ratio)
        return RESTARTS[s.restarts](
            step,
            training.steps,
            training.warmup,
            s.merge_every,
            s.restart_warmup,
            training.min_lr_ratio,
        )

    def merges_after(self, update: int) -> bool:
        """Return whether a merge follows ``update``."""
        cycle, position = divmod(update - self.settings.merge_lag, self.settings.merge_every)
        return bool(cycle >= 1 and position == 0)

    @torch.no_grad()
    def after_update(
        self, update: int, model: nn.Module, optimizer: torch.optim.Optimizer, draw: Draw
    ) -> None:
        """Merge and restart all adapters if a merge is due.

        Raises :class:`LowrankError` if there is no adapter, or if one has no moments to reset.
        """
        if not self.merges_after(update):
            return
        adapters = [
            (plain_path(path), module)
            for path, module in model.named_modules()
            if isinstance(module, ReLoRALinear)
        ]
        if not adapters:
            raise LowrankError(f"{self.name}: the model has no adapter to merge at update {update}")
        for path, module in adapters:
            self._restart(path, module, update, optimizer, draw)

    def _restart(
        self,
        path: str,
        module: ReLoRALinear,
        update: int,
        optimizer: torch.optim.Optimizer,
        draw: Draw,
    ) -> None:
        """Merge one adapter and reset its moments."""
        module.merge_(lambda name: draw(f"{path}.{name}/merge/{update}"))
        for name, factor in (("A", module.A), ("B", module.B)):
            state = AdamState(optimizer.state.get(factor, {}))
            self._reset(state, f"{path}.{name}", update, draw)

    def _reset(self, state: AdamState, name: str, update: int, draw: Draw) -> None:
        """Forget the moments of one factor, in place."""
        if not state.has_moments:
            raise LowrankError(
                f"{self.name}: the optimizer has no moments of {name} to reset at update {update}; train with AdamW"
            )
        kind = self.settings.reset
        for moment in state.moments:
            if kind == "full":
                moment.values.zero_()
                continue
            label = name if kind == "shared_mask" else f"{name}/{moment.key}"
            drawn = torch.rand(moment.values.shape, generator=draw(f"{label}/reset/{update}"))
            moment.values.mul_(like(drawn < self.settings.keep, moment.values))
        if kind == "full":
            # Without the corrections of a new counter the first step would be (1-β₁)/√(1-β₂) = 3.2
            # learning rates long.
            state.restart()

    def dense(self, model: nn.Module) -> dict[str, Tensor]:
        """Return the frozen weights plus the adapters by module path."""
        with torch.no_grad():
            return {
                path: full_tensor(module.dense())
                for path, module in targets(model)
                if isinstance(module, ReLoRALinear)
            }

    @torch.no_grad()
    def low_rank_parts(self, model: nn.Module) -> dict[str, tuple[Tensor, Tensor, Tensor]]:
        """Return the frozen weights, which only merges change, and the factors of the adapters."""
        adapters = {
            path: module for path, module in targets(model) if isinstance(module, ReLoRALinear)
        }
        return {
            path: (m.weight.detach(), m.scale * m.B.detach().double(), m.A.detach().double())
            for path, m in adapters.items()
        }


METHOD = ReLoRA
