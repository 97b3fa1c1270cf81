"""How many singular values the target layers of a method have, from shapes alone."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from functools import lru_cache
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from lowrank import methods
from lowrank.layers import TARGETS
from lowrank.methods.base import create
from lowrank.metrics.base import place

Lengths = tuple[tuple[str, int, int], ...]
"""(projection type, number of singular values of W, of all its factors together)."""


def spectrum_lengths(
    method: str, settings: Mapping[str, Any] | None, shape: Mapping[str, Any]
) -> Lengths:
    """Return the lengths of ``method`` on one block of a LLaMA of ``shape``; all blocks are alike.

    ``settings`` None are the method's defaults.
    """
    return _lengths(
        method, json.dumps(settings or {}, sort_keys=True), json.dumps(dict(shape), sort_keys=True)
    )


@lru_cache(maxsize=256)
def _lengths(method: str, settings: str, shape: str) -> Lengths:
    fields = json.loads(shape)
    sides = target_sides(fields)
    dense = {name.removesuffix("_proj"): min(side) for name, side in sides.items()}
    if not methods.get(method).custom_architecture:
        return tuple((module, length, length) for module, length in dense.items())
    block, made = _block(sides, fields), create(method, json.loads(settings))
    with torch.device("meta"):
        made.attach(block)
    pooled: Counter[str] = Counter()
    for path, factor in made.factors(block).items():
        pooled[place(path.rpartition(".")[0])[1]] += min(factor.shape)
    return tuple((module, length, pooled[module]) for module, length in dense.items())


def target_sides(shape: Mapping[str, Any]) -> dict[str, tuple[int, int]]:
    """Return (out, in) of the seven target layers of a block, by name."""
    hidden, wide, heads = (
        int(shape[name]) for name in ("hidden_size", "intermediate_size", "num_attention_heads")
    )
    head = int(shape.get("head_dim") or hidden // heads)
    query, key = head * heads, head * int(shape.get("num_key_value_heads") or heads)
    sides = [
        (query, hidden),
        (key, hidden),
        (key, hidden),
        (hidden, query),
        (wide, hidden),
        (wide, hidden),
        (hidden, wide),
    ]
    return dict(zip(TARGETS, sides, strict=True))


def _block(sides: Mapping[str, tuple[int, int]], shape: Mapping[str, Any]) -> nn.Module:
    """Return a LLaMA of one block on the meta device, as far as methods read it."""
    body, layer = nn.Module(), nn.Module()
    layer.self_attn, layer.mlp = nn.Module(), nn.Module()
    for name, (out, into) in sides.items():
        owner = layer.self_attn if name in TARGETS[:4] else layer.mlp
        setattr(owner, name, nn.Linear(into, out, bias=False, device="meta"))
    body.layers, body.config = nn.ModuleList([layer]), SimpleNamespace(**shape)  # type: ignore[assignment]
    return body
