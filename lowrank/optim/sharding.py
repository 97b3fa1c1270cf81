"""Matrices that are spread over processes (``torch.distributed.fsdp.fully_shard``): what is where,
and what travels.

FSDP2 cuts a matrix W (m, n) and its gradient by rows. A decomposition needs the whole gradient, so
each refresh gathers it once. Between refreshes:

===== ============================ ==============================
====================================== kind  basis                        moments
what travels in an update ===== ============================ ==============================
====================================== right Q (rank, n), everywhere      (m, rank), by rows like W
nothing left  Q (m, rank), by rows like W  (rank, n), by columns          R is summed and scattered,
N is gathered full  P by rows, Q everywhere      (rank, rank), everywhere       R is summed =====
============================ ============================== ======================================

Every function here leaves ordinary tensors alone.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, Placement, Replicate, Shard, distribute_tensor

from lowrank.errors import ConfigError


def local(tensor: Tensor) -> Tensor:
    """This process's part of ``tensor``, sharing its memory (outside autograd)."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole(tensor: Tensor) -> Tensor:
    """All of ``tensor`` on every process; all of them have to call."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def beside(value: Tensor, p: Tensor) -> Tensor:
    """A tensor that every process has, on the device and in the layout of ``p`` of
    the same shape.
    """
    value = value.to(p.device)
    return (
        distribute_tensor(value, p.device_mesh, p.placements) if isinstance(p, DTensor) else value
    )


def check_layout(name: str, p: Tensor) -> None:
    """Raise unless ``p`` is whole or cut by rows."""
    if isinstance(p, DTensor) and not all(
        placement in (Shard(0), Replicate()) for placement in p.placements
    ):
        raise ConfigError(
            f"{name} is laid out as {p.placements}; only matrices cut by rows (fully_shard) are projected"
        )


def placements(key: str, kind: str | None, p: DTensor) -> tuple[Placement, ...]:
    """Where the state ``key`` of parameter ``p`` lives; ``kind`` is None for a parameter that is
    not projected.
    """
    by_rows: dict[str | None, set[str]] = {
        None: {"exp_avg", "exp_avg_sq"},
        "right": {"exp_avg", "exp_avg_sq"},
        "left": {"basis"},
        "full": {"basis"},
    }
    if key in by_rows[kind]:
        return p.placements
    if kind == "left" and key in ("exp_avg", "exp_avg_sq"):
        return columns(p.placements)
    return tuple(Replicate() for _ in p.placements)


def columns(by_rows: Sequence[Placement]) -> tuple[Placement, ...]:
    """The placements that cut columns where ``by_rows`` cuts rows."""
    return tuple(Shard(1) if placement == Shard(0) else Replicate() for placement in by_rows)


def fit(value: Tensor, key: str, kind: str | None, p: Tensor) -> Tensor:
    """A loaded state on the device and in the layout of its parameter; its dtype stays."""
    if not isinstance(p, DTensor):
        return whole(value).detach().clone().to(p.device)
    if isinstance(value, DTensor) or value.dim() != p.dim():
        return value.detach().clone().to(p.device)
    return distribute_tensor(value.detach().to(p.device), p.device_mesh, placements(key, kind, p))


def spread(bases: Sequence[Tensor], kind: str, p: Tensor) -> tuple[Tensor, ...]:
    """Bases that every process has found, laid out beside ``p``; the first process's decide."""
    if not isinstance(p, DTensor):
        return tuple(bases)
    layouts = (placements(key, kind, p) for key in ("basis", "basis_2"))
    return tuple(
        distribute_tensor(basis, p.device_mesh, layout)
        for basis, layout in zip(bases, layouts, strict=False)
    )


def settle(R: Tensor, kind: str, p: Tensor) -> Tensor:
    """A projected gradient laid out as its moments; partial sums of left
    projections are added up.
    """
    if not isinstance(R, DTensor) or not isinstance(p, DTensor):
        return R
    laid_out = R.redistribute(placements=placements("exp_avg", kind, p))
    mine = (
        laid_out.to_local().contiguous()
    )  # columns cut from a matrix are not, and fused Adam walks through memory
    return DTensor.from_local(
        mine,
        laid_out.device_mesh,
        laid_out.placements,
        run_check=False,
        shape=laid_out.shape,
        stride=laid_out.stride(),
    )


def norms(M: Tensor, dim: int) -> Tensor:
    """Euclidean norms of ``M`` along ``dim``, that dimension kept; those of columns are on every
    process.
    """
    found: Tensor = torch.linalg.vector_norm(M, dim=dim, keepdim=True)
    if isinstance(found, DTensor) and dim == 0:
        return found.redistribute(placements=[Replicate()] * len(found.placements))
    return found
