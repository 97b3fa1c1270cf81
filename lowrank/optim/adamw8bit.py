"""AdamW with moments in eight bits, for methods that are trained by plain AdamW."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.optim.optimizer import Optimizer

from lowrank.errors import ConfigError
from lowrank.optim import adam


class AdamW8bit(adam.KeepsCodecs, Optimizer):
    """``torch.optim.AdamW`` whose moments are quantised in blocks between updates
    (arXiv:2110.02861).

    Moments of fewer than 4096 entries keep the precision of their parameter. The state holds
    ``step`` (int), ``exp_avg``, ``exp_avg_sq`` and, where quantised, ``exp_avg_scale`` and
    ``exp_avg_sq_scale``: it loads with ``weights_only=True``.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
    ) -> None:
        super().__init__(
            params,
            {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "state_bits": 8},
        )

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group; parameters that are spread over processes are refused."""
        super().add_param_group(param_group)
        refuse_shards(self.param_groups[-1]["params"])

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One update of every parameter that has a gradient; the closure's value,
        if one is given.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    self._update(p, p.grad, group)
        return loss

    def _update(self, p: Tensor, G: Tensor, group: dict[str, Any]) -> None:
        state = self.state[p]
        adam.advance(state, G, group)
        (beta1, beta2), t = group["betas"], state["step"]
        # AdamW's eps meets the corrected √v.
        root = math.sqrt(1.0 - beta2**t)
        stretched, size = (
            {**group, "eps": group["eps"] * root},
            group["lr"] * root / (1.0 - beta1**t),
        )
        p.mul_(1.0 - group["lr"] * group["weight_decay"])
        if adam.is_quantised(state):
            adam.quantised_update(p, G, state, stretched, self.codecs(p.device), size)
        else:
            p.add_(adam.direction(G, state, stretched), alpha=-size)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore a state; every tensor moves to its parameter's device and keeps its own dtype."""
        super().load_state_dict(
            state_dict
        )  # would cast codes and scales to the parameter's dtype: put them back
        saved = state_dict["state"]
        for group, stored in zip(self.param_groups, state_dict["param_groups"], strict=True):
            for p, i in zip(group["params"], stored["params"], strict=True):
                tensors = {
                    key: value for key, value in saved.get(i, {}).items() if torch.is_tensor(value)
                }
                self.state[p].update(
                    {key: value.detach().clone().to(p.device) for key, value in tensors.items()}
                )


def refuse_shards(parameters: Iterable[Tensor]) -> None:
    """Raise for parameters under ``fully_shard``: a block would lie on two processes."""
    if any(isinstance(p, DTensor) for p in parameters):
        raise ConfigError(
            "moments in 8 bits are not spread over processes; under fully_shard use state_bits 32"
        )
