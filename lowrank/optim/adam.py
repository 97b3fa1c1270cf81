"""Adam's moments and the direction that they give, in the gradient's precision or in eight bits.

The state of a parameter holds ``step`` (int), ``exp_avg`` and ``exp_avg_sq``; where these are
quantised they hold codes, and ``exp_avg_scale`` and ``exp_avg_sq_scale`` the scales of their
blocks. ``group`` is a parameter group with ``lr``, ``betas``, ``eps`` and, for moments in eight
bits, ``state_bits`` 8.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.optim.adamw import adamw

from lowrank.optim.quantisation import BLOCK, SMALLEST, Codec, blocks_of
from lowrank.optim.sharding import local

MOMENTS = ("exp_avg", "exp_avg_sq")
FUSED_DTYPES = (torch.float32, torch.float64)
FUSED_DEVICES = ("cpu", "cuda")
CHUNK = 4096 * BLOCK  # entries of a quantised state that are opened at a time
Group = dict[str, Any]
State = dict[str, Any]
Codecs = tuple[Codec, Codec]


class KeepsCodecs:
    """An optimizer that makes the codecs of both moments once for each device."""

    def codecs(self, device: torch.device) -> Codecs:
        """Those of first and second moments."""
        made: dict[torch.device, Codecs] = self.__dict__.setdefault("_codecs", {})
        if device not in made:
            made[device] = Codec(signed=True, device=device), Codec(signed=False, device=device)
        return made[device]


def advance(state: State, like: Tensor, group: Group) -> None:
    """Count one update; the first makes the moments of gradients such as ``like``."""
    if "exp_avg" not in state:
        for key in MOMENTS:
            if group.get("state_bits", 32) == 8 and like.numel() >= SMALLEST:
                state[key] = torch.zeros(like.shape, dtype=torch.uint8, device=like.device)
                state[f"{key}_scale"] = torch.zeros(blocks_of(like.numel()), device=like.device)
            else:
                state[key] = torch.zeros_like(like, memory_format=torch.contiguous_format)
    state["step"] = state.get("step", 0) + 1


def step_size(step: int, group: Group) -> float:
    """The learning rate with Adam's bias correction, where the group asks for it."""
    if not group["correct_bias"]:
        return float(group["lr"])
    beta1, beta2 = group["betas"]
    return float(group["lr"] * math.sqrt(1.0 - beta2**step) / (1.0 - beta1**step))


def fusable(G: Tensor, state: State) -> bool:
    """Whether PyTorch's fused Adam applies: it walks through memory, and all it walks through must
    lie alike.

    Half precision keeps the rounding of a chain of operations, as the published runs had it.
    """
    same = (
        G.dtype == state["exp_avg"].dtype
        and G.dtype in FUSED_DTYPES
        and G.device.type in FUSED_DEVICES
    )
    return same and all(
        local(tensor).is_contiguous() for tensor in (G, state["exp_avg"], state["exp_avg_sq"])
    )


def fused(
    parameters: list[Tensor],
    gradients: list[Tensor],
    states: list[State],
    group: Group,
    size: float,
) -> None:
    """Put ``gradients`` into the moments and do p -= size · m / (√v + eps), in one pass over
    memory.

    All states are at the same step. PyTorch's AdamW divides by √v/√(1-β₂ᵗ) + eps and multiplies by
    lr/(1-β₁ᵗ): with its eps and lr stretched accordingly, that is the update wanted here.
    """
    keep = [
        i for i, gradient in enumerate(gradients) if local(gradient).numel()
    ]  # a process may hold no row at all
    if not keep:
        return

    def mine(tensors: list[Tensor]) -> list[Tensor]:
        return [local(tensors[i]) for i in keep]

    (beta1, beta2), step = group["betas"], states[0]["step"]
    root = math.sqrt(1.0 - beta2**step)
    steps = torch.full(
        (len(keep),), step - 1.0, dtype=torch.float32, device=gradients[0].device
    ).unbind()
    m, v = ([s[key] for s in states] for key in MOMENTS)
    adamw(
        mine(parameters),
        mine(gradients),
        mine(m),
        mine(v),
        [],
        list(steps),
        fused=True,
        amsgrad=False,
        maximize=False,
        beta1=beta1,
        beta2=beta2,
        weight_decay=0.0,
        lr=size * (1.0 - beta1**step) / root,
        eps=group["eps"] / root,
    )


def direction(G: Tensor, state: State, group: Group) -> Tensor:
    """Put ``G`` into moments that are not quantised, and return N = m / (√v + eps)."""
    if fusable(G, state):
        N = torch.zeros_like(G, memory_format=torch.contiguous_format)
        fused([N], [G], [state], group, size=-1.0)
        return N
    (beta1, beta2), m, v = group["betas"], state["exp_avg"], state["exp_avg_sq"]
    G = G.to(m.dtype)
    m.mul_(beta1).add_(G, alpha=1.0 - beta1)
    v.mul_(beta2).addcmul_(G, G, value=1.0 - beta2)
    return torch.div(m, v.sqrt().add_(group["eps"]))


def is_quantised(state: State) -> bool:
    """Whether the moments are codes."""
    return "exp_avg_scale" in state


def quantised_directions(
    G: Tensor, state: State, group: Group, codecs: Codecs
) -> Iterator[tuple[slice, Tensor]]:
    """Put ``G`` into quantised moments, a chunk at a time; yields (entries of the flattened ``G``,
    their N, flat, float32).

    A chunk is opened to float32, updated and closed again, so that the whole moments never exist. N
    comes from the moments before they are rounded.
    """
    gradient = G.reshape(-1)
    for begin in range(0, len(gradient), CHUNK):
        entries = slice(begin, min(begin + CHUNK, len(gradient)))
        blocks = slice(begin // BLOCK, blocks_of(entries.stop))
        opened: State = {"step": state["step"]}
        for key, codec in zip(MOMENTS, codecs, strict=True):
            opened[key] = codec.decode(state[key].view(-1)[entries], state[f"{key}_scale"][blocks])
        N = direction(gradient[entries].to(torch.float32), opened, group)
        for key, codec in zip(MOMENTS, codecs, strict=True):
            state[key].view(-1)[entries], state[f"{key}_scale"][blocks] = codec.encode(opened[key])
        yield entries, N


def quantised_direction(G: Tensor, state: State, group: Group, codecs: Codecs) -> Tensor:
    """N of all of ``G``, in its shape and dtype."""
    N = torch.empty(G.shape, dtype=G.dtype, device=G.device)
    for entries, part in quantised_directions(G, state, group, codecs):
        N.view(-1)[entries] = part
    return N


def quantised_update(
    p: Tensor, G: Tensor, state: State, group: Group, codecs: Codecs, size: float
) -> None:
    """p -= size · N, chunk by chunk."""
    flat = p.detach().reshape(-1)
    for entries, N in quantised_directions(G, state, group, codecs):
        flat[entries].add_(N, alpha=-size)
    if not p.is_contiguous():
        p.copy_(flat.view(p.shape))
