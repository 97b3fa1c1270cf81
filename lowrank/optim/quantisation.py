"""Block-wise dynamic quantisation to eight bits per entry (arXiv:2110.02861).

A tensor is cut, in memory order, into blocks of :data:`BLOCK` entries. Each block is divided by its
largest magnitude, which stays in float32 as the block's scale, and every entry is replaced by the
nearest of 256 values between -1 and 1 (signed: first moments) or 0 and 1 (unsigned: second
moments). The values lie densely where magnitudes are small, over seven decades.

Code 0 is the value zero in both maps, so zeroing or masking codes zeroes or masks the entries.
"""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lowrank.errors import ConfigError

BLOCK = 256
SMALLEST = 4096  # entries below which a tensor keeps its precision: there is nothing to save
DECADES = 7
STATE_BITS = (32, 8)


@cache
def dynamic_map(signed: bool) -> tuple[float, ...]:
    """Return the 256 values in ascending order (arXiv:2110.02861, section 1.3 and appendix F).

    The decade 10⁻ᵉ, e = 6 … 0, is cut linearly into 2⁶⁻ᵉ cells for each sign, twice as many where
    there is no sign; a value is the middle of its cell of (0.1, 1). Zero and one come on top.
    """
    values = [0.0, 1.0]
    for e in range(DECADES):
        cells = 2 ** (DECADES - 1 - e) * (1 if signed else 2)
        width = 0.9 / cells
        values += [
            sign * 10.0**-e * (0.1 + width * (k + 0.5))
            for k in range(cells)
            for sign in ((-1, 1) if signed else (1,))
        ]
    return tuple(sorted(values))


class BlockCodec:
    """Encode tensors as eight-bit codes with a scale per block, and decode them.

    ``signed`` chooses the map: true for values of both signs, false for values of at least 0.
    ``device`` is where the tables lie and the encoded tensors have to be.
    """

    def __init__(self, signed: bool, device: torch.device | str = "cpu") -> None:
        values = dynamic_map(signed)
        self.signed, self.zero = signed, values.index(0.0)
        ascending = torch.tensor(values, dtype=torch.float64)
        boundaries = torch.cat([(ascending[1:] + ascending[:-1]) / 2, torch.tensor([math.inf])]).to(
            torch.float32
        )
        self.boundaries, self.below = boundaries.to(device), _cells_below(boundaries).to(device)
        self.values = ascending.roll(-self.zero).to(device, torch.float32)  # by code

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Quantise ``x``, of any shape and floating-point dtype.

        Returns (codes, scales): codes are uint8 in the shape of ``x``, scales (blocks,) are the
        largest magnitudes of the blocks in float32.

        An unsigned value above zero never becomes zero, which deviates from the paper: a vanished
        second moment would make its entry's next step up to 1/eps long (the zero-point problem,
        arXiv:2309.01507, section 4.1).
        """
        shape, x = x.shape, x.reshape(-1).to(torch.float32)
        blocks = F.pad(x, (0, -len(x) % BLOCK)).view(-1, BLOCK)
        scales = blocks.abs().amax(dim=1)
        relative = blocks.div(scales.clamp(min=torch.finfo(torch.float32).tiny).unsqueeze(1)).view(
            -1
        )
        index = self.below.index_select(0, (relative.view(torch.int32) >> 16).bitwise_and_(0xFFFF))
        index.add_(relative > self.boundaries.index_select(0, index)).sub_(self.zero)
        if not self.signed:
            index = torch.maximum(index, (relative > 0).to(torch.int32))
        return index.bitwise_and_(0xFF).to(torch.uint8)[: len(x)].view(shape), scales

    def decode(self, codes: Tensor, scales: Tensor) -> Tensor:
        """Return the float32 tensor that ``codes`` and ``scales`` of :meth:`encode` stand for.

        It has the shape of ``codes``.
        """
        values = self.values.index_select(0, codes.reshape(-1).to(torch.int32))
        padded = F.pad(values, (0, -len(values) % BLOCK)).view(-1, BLOCK) * scales.unsqueeze(1)
        return padded.view(-1)[: len(values)].view(codes.shape)


def _cells_below(boundaries: Tensor) -> Tensor:
    """Count, by the upper 16 bits of a float32, the ``boundaries`` below all numbers that begin so.

    Returns (65536,), int32. Numbers that share these bits have one boundary between them at most
    (there are seven bits of mantissa, and the closest boundaries are 0.7% of a decade apart), so
    one comparison more finds the nearest value, in a tenth of the time of a binary search.
    """
    first = torch.arange(2**16, dtype=torch.int32) << 16
    ends = torch.stack([first, first | 0xFFFF]).view(torch.float32).nan_to_num(nan=1.0)
    return torch.bucketize(ends.amin(dim=0).clamp(-1.0, 1.0), boundaries, out_int32=True)


def blocks_of(elements: int) -> int:
    """Return the number of blocks, and so of scales, of a tensor of ``elements`` entries."""
    return -(-elements // BLOCK)


def moment_bytes(elements: int, itemsize: int, bits: int) -> int:
    """Return the bytes of one stored moment of ``elements`` entries.

    ``itemsize`` is that of its dtype where it is not quantised: with 32 ``bits``, or below 4096
    entries.
    """
    return (
        elements + 4 * blocks_of(elements)
        if bits == 8 and elements >= SMALLEST
        else elements * itemsize
    )


def check_bits(bits: Any) -> None:
    """Raise :class:`ConfigError` unless ``bits`` is 32 or 8."""
    if bits not in STATE_BITS:
        raise ConfigError(
            f"state_bits is {bits}; choose 32 (the precision of the weights) or 8 (quantised in blocks)"
        )
