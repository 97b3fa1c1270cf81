"""Adam's moments and the direction that they give, in the gradient's precision or in eight bits.

``state`` is a view of the stored state of one parameter (:class:`lowrank.optim.state.AdamState`).
``group`` is a parameter group with ``lr``, ``betas``, ``eps``, ``correct_bias`` and, for moments in
eight bits, ``state_bits`` 8. The direction is N = m / (√v + eps) with the uncorrected √v, as GaLore
has it (arXiv:2403.03507, algorithm 2); :func:`step_size` carries the correction of the bias
(arXiv:1412.6980, section 2).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim.adamw import adamw

from lowrank.optim.quantisation import BLOCK, SMALLEST, BlockCodec, blocks_of
from lowrank.optim.sharding import local_tensor
from lowrank.optim.state import AdamState, Moment

FUSED_DTYPES = (torch.float32, torch.float64)
FUSED_DEVICES = ("cpu", "cuda")
CHUNK = 4096 * BLOCK  # entries of a quantised state that are decoded at a time
Group = dict[str, Any]
Codecs = tuple[BlockCodec, BlockCodec]


class KeepsCodecs:
    """Mixin of an optimizer that makes the codecs of both moments once for each device."""

    def codecs(self, device: torch.device) -> Codecs:
        """Return the codecs of the first (signed) and of the second (unsigned) moment."""
        made: dict[torch.device, Codecs] = self.__dict__.setdefault("_codecs", {})
        if device not in made:
            made[device] = (
                BlockCodec(signed=True, device=device),
                BlockCodec(signed=False, device=device),
            )
        return made[device]


def advance(state: AdamState, gradient: Tensor, group: Group) -> None:
    """Count one update. The first one makes zero moments of the shape and dtype of ``gradient``.

    With ``state_bits`` 8 in ``group`` moments of at least 4096 entries are uint8 codes, with
    float32 scales of their blocks.
    """
    if not state.has_moments:
        for moment in state.moments:
            if group.get("state_bits", 32) == 8 and gradient.numel() >= SMALLEST:
                moment.values = torch.zeros(
                    gradient.shape, dtype=torch.uint8, device=gradient.device
                )
                moment.scales = torch.zeros(blocks_of(gradient.numel()), device=gradient.device)
            else:
                moment.values = torch.zeros_like(gradient, memory_format=torch.contiguous_format)
    state.step = state.step + 1


def step_size(step: int, group: Group) -> float:
    """Return the learning rate of update ``step`` (1, 2, …), corrected for Adam's bias.

    That is lr · √(1-β₂ᵗ) / (1-β₁ᵗ), or lr alone where ``correct_bias`` of the group is false.
    """
    if not group["correct_bias"]:
        return float(group["lr"])
    beta1, beta2 = group["betas"]
    return float(group["lr"] * math.sqrt(1.0 - beta2**step) / (1.0 - beta1**step))


def fusable(G: Tensor, state: AdamState) -> bool:
    """Tell whether PyTorch's fused Adam can put the gradient ``G`` into the moments of ``state``.

    It walks through memory, so gradient and moments have to be contiguous, of one dtype. Half
    precision is left out: the fused kernel rounds once, the published runs round after every
    operation.
    """
    m, v = (moment.values for moment in state.moments)
    same = G.dtype == m.dtype and G.dtype in FUSED_DTYPES and G.device.type in FUSED_DEVICES
    return same and all(local_tensor(tensor).is_contiguous() for tensor in (G, m, v))


def fused(
    parameters: Sequence[Tensor],
    gradients: Sequence[Tensor],
    states: Sequence[AdamState],
    group: Group,
    size: float,
) -> None:
    """Update the moments and do p -= size · m / (√v + eps) in one pass over memory, in place.

    ``parameters``, ``gradients`` and ``states`` belong together one by one; all states are at the
    same step. PyTorch's AdamW divides by √v/√(1-β₂ᵗ) + eps and multiplies by lr/(1-β₁ᵗ): with its
    eps and lr stretched accordingly, that is the update wanted here.
    """
    # A process may hold no row at all of a distributed parameter.
    keep = [i for i, gradient in enumerate(gradients) if local_tensor(gradient).numel()]
    if not keep:
        return

    def shards(tensors: Sequence[Tensor]) -> list[Tensor]:
        return [local_tensor(tensors[i]) for i in keep]

    (beta1, beta2), step = group["betas"], states[0].step
    root = math.sqrt(1.0 - beta2**step)
    steps = torch.full(
        (len(keep),), step - 1.0, dtype=torch.float32, device=gradients[0].device
    ).unbind()
    adamw(
        shards(parameters),
        shards(gradients),
        shards([state.exp_avg.values for state in states]),
        shards([state.exp_avg_sq.values for state in states]),
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


def direction(G: Tensor, state: AdamState, group: Group) -> Tensor:
    """Put the gradient ``G`` into moments that are not quantised; return N = m / (√v + eps).

    N has the shape of ``G`` and the dtype of the moments.
    """
    if fusable(G, state):
        N = torch.zeros_like(G, memory_format=torch.contiguous_format)
        fused([N], [G], [state], group, size=-1.0)
        return N
    (beta1, beta2), (m, v) = group["betas"], (moment.values for moment in state.moments)
    G = G.to(m.dtype)
    m.mul_(beta1).add_(G, alpha=1.0 - beta1)
    v.mul_(beta2).addcmul_(G, G, value=1.0 - beta2)
    return torch.div(m, v.sqrt().add_(group["eps"]))


def quantised_directions(
    G: Tensor, state: AdamState, group: Group, codecs: Codecs
) -> Iterator[tuple[slice, Tensor]]:
    """Put the gradient ``G`` into quantised moments, one chunk of entries at a time.

    Yields (entries of the flattened ``G``, their N, flat, float32). A chunk is decoded to float32,
    updated and encoded again, so that the moments never exist in full precision as a whole. N comes
    from the moments before they are rounded.
    """
    gradient = G.reshape(-1)
    for begin in range(0, len(gradient), CHUNK):
        entries = slice(begin, min(begin + CHUNK, len(gradient)))
        blocks = slice(begin // BLOCK, blocks_of(entries.stop))
        decoded = AdamState({"step": state.step})
        for opened, codec, moment in zip(decoded.moments, codecs, state.moments, strict=True):
            scales = _scales(moment)[blocks]
            opened.values = codec.decode(moment.values.view(-1)[entries], scales)
        N = direction(gradient[entries].to(torch.float32), decoded, group)
        for opened, codec, moment in zip(decoded.moments, codecs, state.moments, strict=True):
            codes, scales = codec.encode(opened.values)
            moment.values.view(-1)[entries], _scales(moment)[blocks] = codes, scales
        yield entries, N


def quantised_direction(G: Tensor, state: AdamState, group: Group, codecs: Codecs) -> Tensor:
    """Put the gradient ``G`` into quantised moments; return N in the shape and dtype of ``G``."""
    N = torch.empty(G.shape, dtype=G.dtype, device=G.device)
    for entries, part in quantised_directions(G, state, group, codecs):
        N.view(-1)[entries] = part
    return N


def quantised_update(
    p: Tensor, G: Tensor, state: AdamState, group: Group, codecs: Codecs, size: float
) -> None:
    """Put the gradient ``G`` of ``p`` into quantised moments and do p -= size · N, in chunks."""
    flat = p.detach().reshape(-1)
    for entries, N in quantised_directions(G, state, group, codecs):
        flat[entries].add_(N, alpha=-size)
    if not p.is_contiguous():
        p.copy_(flat.view(p.shape))


def _scales(moment: Moment) -> Tensor:
    scales = moment.scales
    assert scales is not None
    return scales
