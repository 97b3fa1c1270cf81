"""Optimizers with moments in gradient subspaces, and the parts that they are made of.

This package works without the rest of lowrank: it needs PyTorch, NumPy and SciPy, and imports
nothing of lowrank but ``lowrank.errors``. ``docs/optim.md`` shows how to use it.

* optimizers: :class:`GaLoreAdamW`, :class:`FiraAdamW`, :class:`AdamW8bit`
* projections: :func:`decompose`, :func:`project`, :func:`add_back`, :func:`kind_of`
* decompositions: :func:`leading_vectors`, :func:`exact_vectors`, :func:`fast_vectors`,
  :func:`fix_signs`
* eight-bit codes: :class:`BlockCodec`, :func:`dynamic_map`, :func:`blocks_of`
* an optimizer of one's own: :class:`ProjectedAdamW`, :class:`ProjectedMatrix`, :class:`Move`,
  :class:`ProjectedState`, :class:`Field`

A name is imported when it is first used, so that ``import lowrank.optim`` alone does not import
PyTorch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lowrank.optim.adamw8bit import AdamW8bit
    from lowrank.optim.decomposition import exact_vectors, fast_vectors
    from lowrank.optim.fira import FiraAdamW
    from lowrank.optim.galore import GaLoreAdamW
    from lowrank.optim.projected import Move, ProjectedAdamW, ProjectedMatrix
    from lowrank.optim.projection import (
        add_back,
        decompose,
        fix_signs,
        kind_of,
        leading_vectors,
        project,
    )
    from lowrank.optim.quantisation import BlockCodec, blocks_of, dynamic_map
    from lowrank.optim.state import AdamState, Field, ProjectedState

__all__ = [
    "AdamState",
    "AdamW8bit",
    "BlockCodec",
    "Field",
    "FiraAdamW",
    "GaLoreAdamW",
    "Move",
    "ProjectedAdamW",
    "ProjectedMatrix",
    "ProjectedState",
    "add_back",
    "blocks_of",
    "decompose",
    "dynamic_map",
    "exact_vectors",
    "fast_vectors",
    "fix_signs",
    "kind_of",
    "leading_vectors",
    "project",
]

_MODULES = {
    "adamw8bit": ("AdamW8bit",),
    "decomposition": ("exact_vectors", "fast_vectors"),
    "fira": ("FiraAdamW",),
    "galore": ("GaLoreAdamW",),
    "projected": ("Move", "ProjectedAdamW", "ProjectedMatrix"),
    "projection": ("add_back", "decompose", "fix_signs", "kind_of", "leading_vectors", "project"),
    "quantisation": ("BlockCodec", "blocks_of", "dynamic_map"),
    "state": ("AdamState", "Field", "ProjectedState"),
}
_HOMES = {name: module for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> Any:
    """Import the module of a public name when the name is first used."""
    if name not in _HOMES:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    value = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """List the public names beside what has been imported."""
    return sorted({*globals(), *__all__})
