"""How much memory objects hold: weights, and the copies and tables that lenses keep beside them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import Tensor, nn


def footprint(*objects: Any) -> Counter[str]:
    """Bytes of the tensors and arrays in ``objects``, by type of device ('cpu', 'cuda'); what they
    share counts once.

    Looks into modules, mappings, sequences and objects of this package.
    """
    found: Counter[str] = Counter()
    seen: set[tuple[str, int]] = set()
    stack = list(objects)
    while stack:
        item = stack.pop()
        device, place, size = _own(item)
        if (device, place) in seen:
            continue
        seen.add((device, place))
        found[device] += size
        stack.extend(_inside(item))
    return +found


def _own(item: Any) -> tuple[str, int, int]:
    """Where an object's own numbers lie, and how many bytes they are."""
    if isinstance(item, Tensor):
        storage = item.untyped_storage()
        return item.device.type, storage.data_ptr() or id(item), storage.nbytes()
    return "cpu", id(item), item.nbytes if isinstance(item, np.ndarray) else 0


def _inside(item: Any) -> list[Any]:
    """The objects that one holds."""
    if isinstance(item, nn.Module):
        return [*item.parameters(), *item.buffers()]
    if isinstance(item, Mapping):
        return list(item.values())
    if isinstance(item, list | tuple | set | frozenset):
        return list(item)
    if type(item).__module__.startswith("lowrank.") and hasattr(item, "__dict__"):
        return list(vars(item).values())
    return []
