"""Permutation alignment of two plain LLaMA networks by matching weights (Git Re-Basin,
arXiv:2209.04836, section 3.2).

Symmetries used: (1) the channels of the residual stream, one permutation for the whole network,
which is a symmetry once the norm gains are folded into the next layers; (2) whole attention heads
of a block, so that the rotary position encoding inside a head is untouched; (3) the units of a
block's MLP. Not used: rotations of the residual stream, of the value-output pair of a head, and of
the rotary pairs (arXiv:2506.22712).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

Weights = dict[str, Tensor]
MAX_SWEEPS = 50
BLOCK = "model.layers.{}."
INTO_ATTENTION = ("self_attn.q_proj.weight", "self_attn.k_proj.weight", "self_attn.v_proj.weight")
INTO_MLP = ("mlp.gate_proj.weight", "mlp.up_proj.weight")
OUT_OF_ATTENTION, OUT_OF_MLP = "self_attn.o_proj.weight", "mlp.down_proj.weight"
EMBEDDING, HEAD, FINAL_NORM = "model.embed_tokens.weight", "lm_head.weight", "model.norm.weight"


def blocks(weights: Mapping[str, Tensor]) -> int:
    """Return the number of transformer blocks."""
    return 1 + max(int(name.split(".")[2]) for name in weights if name.startswith("model.layers."))


def fold_gains(weights: Mapping[str, Tensor]) -> Weights:
    """Return weights of the same function in which all norm gains are 1.

    Each gain multiplies the columns of the layers that read its norm.
    """
    folded = {name: tensor.clone() for name, tensor in weights.items()}

    def fold(norm: str, readers: list[str]) -> None:
        for reader in readers:
            folded[reader] *= weights[norm]
        folded[norm].fill_(1.0)

    for i in range(blocks(weights)):
        block = BLOCK.format(i)
        fold(f"{block}input_layernorm.weight", [block + name for name in INTO_ATTENTION])
        fold(f"{block}post_attention_layernorm.weight", [block + name for name in INTO_MLP])
    fold(FINAL_NORM, [HEAD])
    return folded


@dataclass
class Permutations:
    """Permutations (new index → old index) of residual channels, and of each block's heads and MLP
    units.
    """

    residual: Tensor
    heads: list[Tensor]
    units: list[Tensor]


def align(reference: Mapping[str, Tensor], weights: Mapping[str, Tensor], heads: int) -> Weights:
    """Return ``weights``, permuted to lie as near to ``reference`` as coordinate descent finds.

    Both must have folded gains (:func:`fold_gains`). The function of the network does not change.
    ``heads`` is the number of attention heads; heads are not permuted if there are fewer key-value
    heads than query heads.
    """
    return permute(weights, match(reference, weights, heads), heads)


def match(
    reference: Mapping[str, Tensor], weights: Mapping[str, Tensor], heads: int
) -> Permutations:
    """Return permutations that maximise Σ⟨reference, permuted weights⟩ by coordinate descent.

    It stops when no single permutation increases the sum further, or after ``MAX_SWEEPS``.
    """
    A = {name: tensor.detach().cpu().double() for name, tensor in reference.items()}
    B = {name: tensor.detach().cpu().double() for name, tensor in weights.items()}
    count = blocks(A)
    found = Permutations(
        torch.arange(A[EMBEDDING].shape[1]),
        [torch.arange(heads)] * count,
        [torch.arange(A[BLOCK.format(i) + OUT_OF_MLP].shape[1]) for i in range(count)],
    )
    grouped = (
        A[BLOCK.format(0) + INTO_ATTENTION[1]].shape[0]
        != A[BLOCK.format(0) + INTO_ATTENTION[0]].shape[0]
    )
    for _ in range(MAX_SWEEPS):
        changed = _improve_residual(A, B, found, heads)
        for i in range(count):
            changed |= _improve_units(A, B, found, i)
            if not grouped:
                changed |= _improve_heads(A, B, found, i, heads)
        if not changed:
            break
    return found


def permute(weights: Mapping[str, Tensor], by: Permutations, heads: int) -> Weights:
    """Return the weights with channels, heads and MLP units permuted.

    Gains must be folded, or all equal.
    """
    out = {name: tensor.clone() for name, tensor in weights.items()}
    residual = by.residual.to(out[EMBEDDING].device)
    out[EMBEDDING], out[HEAD] = out[EMBEDDING][:, residual], out[HEAD][:, residual]
    for i in range(blocks(weights)):
        block = BLOCK.format(i)
        units = by.units[i].to(residual.device)
        for name in INTO_MLP:
            out[block + name] = out[block + name][units][:, residual]
        out[block + OUT_OF_MLP] = out[block + OUT_OF_MLP][residual][:, units]
        for name in INTO_ATTENTION:
            out[block + name] = out[block + name][:, residual]
            if not torch.equal(by.heads[i], torch.arange(heads)):
                out[block + name] = out[block + name][
                    rows_of_heads(by.heads[i], len(out[block + name])).to(residual.device)
                ]
        wide = rows_of_heads(by.heads[i], out[block + OUT_OF_ATTENTION].shape[1]).to(
            residual.device
        )
        out[block + OUT_OF_ATTENTION] = out[block + OUT_OF_ATTENTION][residual][:, wide]
    return {name: tensor.contiguous() for name, tensor in out.items()}


def rows_of_heads(heads: Tensor, rows: int) -> Tensor:
    """Return the indices of the rows of all heads, heads in the given order."""
    return torch.arange(rows).view(len(heads), -1)[heads].flatten()


def _improve_residual(A: Weights, B: Weights, found: Permutations, heads: int) -> bool:
    """Set the best residual permutation for the present heads and units; return if it changed."""
    kept, found.residual = found.residual, torch.arange(len(found.residual))
    B = permute(B, found, heads)
    gain = A[EMBEDDING].T @ B[EMBEDDING] + A[HEAD].T @ B[HEAD]
    for i in range(blocks(A)):
        block = BLOCK.format(i)
        for name in INTO_ATTENTION + INTO_MLP:
            gain += A[block + name].T @ B[block + name]
        for name in (OUT_OF_ATTENTION, OUT_OF_MLP):
            gain += A[block + name] @ B[block + name].T
    found.residual, changed = _assign(gain, kept)
    return changed


def _improve_units(A: Weights, B: Weights, found: Permutations, i: int) -> bool:
    """Set the best order of a block's MLP units for the present channels; return if it changed."""
    block, residual = BLOCK.format(i), found.residual
    gain = A[block + OUT_OF_MLP].T @ B[block + OUT_OF_MLP][residual]
    for name in INTO_MLP:
        gain += A[block + name] @ B[block + name][:, residual].T
    found.units[i], changed = _assign(gain, found.units[i])
    return changed


def _improve_heads(A: Weights, B: Weights, found: Permutations, i: int, heads: int) -> bool:
    """Set the best order of a block's heads for the present channels; return if it changed."""
    block, residual = BLOCK.format(i), found.residual
    pairs = [(A[block + name], B[block + name][:, residual]) for name in INTO_ATTENTION]
    pairs.append((A[block + OUT_OF_ATTENTION].T, B[block + OUT_OF_ATTENTION][residual].T))
    gain = sum(a.reshape(heads, -1) @ b.reshape(heads, -1).T for a, b in pairs)
    assert isinstance(gain, Tensor)
    found.heads[i], changed = _assign(gain, found.heads[i])
    return changed


def _assign(gain: Tensor, present: Tensor) -> tuple[Tensor, bool]:
    """Return the assignment (row → column) of the largest total gain, and whether it is new.

    The present assignment is kept if it is as good.
    """
    table = gain.numpy()
    columns = linear_sum_assignment(table, maximize=True)[1]
    rows = np.arange(len(columns))
    better = (
        table[rows, columns].sum() > table[rows, present.numpy()].sum() + 1e-9 * np.abs(table).max()
    )
    return (torch.from_numpy(columns), True) if better else (present, False)
