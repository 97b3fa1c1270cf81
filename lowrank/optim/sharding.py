"""Matrices that are distributed over processes by ``torch.distributed.fsdp.fully_shard``.

FSDP2 cuts a matrix W (m, n) and its gradient by rows. A decomposition needs the full gradient, so
each refresh gathers it once. Between refreshes:

===== ============================ ============================== ==============================
kind  basis                        moments                        communication of an update
===== ============================ ============================== ==============================
right Q (rank, n), replicated      (m, rank), by rows like W      none
left  Q (m, rank), by rows like W  (rank, n), by columns          R is reduce-scattered, N is
                                                                  gathered
full  P by rows, Q replicated      (rank, rank), replicated       R is all-reduced
===== ============================ ============================== ==============================

Every function here returns ordinary tensors as they are.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, Placement, Replicate, Shard, distribute_tensor

from lowrank.errors import ConfigError
from lowrank.optim.state import Layout


def local_tensor(tensor: Tensor) -> Tensor:
    """Return this process's shard of ``tensor``, sharing its memory (outside autograd)."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def full_tensor(tensor: Tensor) -> Tensor:
    """Return all of ``tensor`` on every process. Every process has to call this."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def like(value: Tensor, p: Tensor) -> Tensor:
    """Move ``value``, which every process has, to the device and the layout of ``p``.

    Both have the same shape.
    """
    value = value.to(p.device)
    return (
        distribute_tensor(value, p.device_mesh, p.placements) if isinstance(p, DTensor) else value
    )


def check_layout(name: str, p: Tensor) -> None:
    """Raise :class:`ConfigError` unless ``p``, called ``name``, is whole or cut by rows."""
    if isinstance(p, DTensor) and not all(
        placement in (Shard(0), Replicate()) for placement in p.placements
    ):
        raise ConfigError(
            f"{name} is laid out as {p.placements}; only matrices cut by rows (fully_shard) are projected"
        )


def placements(layout: Layout, kind: str | None, p: DTensor) -> tuple[Placement, ...]:
    """Return where a matrix of the state of ``p`` lives.

    ``layout`` is that of the state's field. ``kind`` is the kind of projection: ``right``,
    ``left``, ``full``, or None for a parameter that is not projected.
    """
    if layout == "moment" and kind in (None, "right"):
        return p.placements
    if layout == "moment" and kind == "left":
        return columns(p.placements)
    if layout == "basis" and kind in ("left", "full"):
        return p.placements
    return tuple(Replicate() for _ in p.placements)


def columns(by_rows: Sequence[Placement]) -> tuple[Placement, ...]:
    """Return the placements that cut columns where ``by_rows`` cuts rows."""
    return tuple(Shard(1) if placement == Shard(0) else Replicate() for placement in by_rows)


def reshard(value: Tensor, layout: Layout, kind: str | None, p: Tensor) -> Tensor:
    """Copy a loaded tensor of the state of ``p`` to the device of ``p`` and into its layout.

    The dtype stays. ``layout`` and ``kind`` are as in :func:`placements`.
    """
    if not isinstance(p, DTensor):
        return full_tensor(value).detach().clone().to(p.device)
    if isinstance(value, DTensor) or value.dim() != p.dim():
        return value.detach().clone().to(p.device)
    where = placements(layout, kind, p)
    return distribute_tensor(value.detach().to(p.device), p.device_mesh, where)


def distribute(bases: Sequence[Tensor], kind: str, p: Tensor) -> tuple[Tensor, ...]:
    """Lay out the bases of ``p`` that every process has computed; those of the first process count.

    ``bases`` are one matrix, or two for the kind ``full``.
    """
    if not isinstance(p, DTensor):
        return tuple(bases)
    layouts: tuple[Layout, ...] = ("basis", "replicated")
    return tuple(
        distribute_tensor(basis, p.device_mesh, placements(layout, kind, p))
        for basis, layout in zip(bases, layouts, strict=False)
    )


def reduce_scatter(R: Tensor, kind: str, p: Tensor) -> Tensor:
    """Lay a projected gradient ``R`` of ``p`` out as its moments.

    The partial sums of a left or two-sided projection are added up over the processes.
    """
    if not isinstance(R, DTensor) or not isinstance(p, DTensor):
        return R
    laid_out = R.redistribute(placements=placements("moment", kind, p))
    # Columns that are cut from a matrix are not contiguous, which fused Adam needs.
    shard = laid_out.to_local().contiguous()
    return DTensor.from_local(
        shard,
        laid_out.device_mesh,
        laid_out.placements,
        run_check=False,
        shape=laid_out.shape,
        stride=laid_out.stride(),
    )


def norms(M: Tensor, dim: int) -> Tensor:
    """Return the Euclidean norms of ``M`` (m, n) along ``dim``, which is kept with size 1.

    Norms of columns are replicated on every process.
    """
    found: Tensor = torch.linalg.vector_norm(M, dim=dim, keepdim=True)
    if isinstance(found, DTensor) and dim == 0:
        return found.redistribute(placements=[Replicate()] * len(found.placements))
    return found
