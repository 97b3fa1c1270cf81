"""The memory that objects hold: weights, and the copies and tables that lenses derive from them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import Tensor, nn


def footprint(*objects: Any) -> Counter[str]:
    """Return the bytes of the tensors and arrays in ``objects``, by type of device ('cpu', 'cuda').

    Memory that several of them share counts once. Modules, mappings, sequences and objects of this
    package are searched.
    """
    found: Counter[str] = Counter()
    seen: set[tuple[str, int]] = set()
    stack = list(objects)
    while stack:
        item = stack.pop()
        device, place, size = _memory_of(item)
        if (device, place) in seen:
            continue
        seen.add((device, place))
        found[device] += size
        stack.extend(_members(item))
    return +found


def _memory_of(item: Any) -> tuple[str, int, int]:
    """Return the device, the address and the bytes of an object, without what it refers to."""
    if isinstance(item, Tensor):
        storage = item.untyped_storage()
        return item.device.type, storage.data_ptr() or id(item), storage.nbytes()
    return "cpu", id(item), item.nbytes if isinstance(item, np.ndarray) else 0


def _members(item: Any) -> list[Any]:
    """Return the objects that ``item`` refers to."""
    if isinstance(item, nn.Module):
        return [*item.parameters(), *item.buffers()]
    if isinstance(item, Mapping):
        return list(item.values())
    if isinstance(item, list | tuple | set | frozenset):
        return list(item)
    if type(item).__module__.startswith("lowrank.") and hasattr(item, "__dict__"):
        return list(vars(item).values())
    return []
