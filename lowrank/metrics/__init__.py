"""The metric lenses: one family, one file, found by its stem; outsiders use the entry-point group
``lowrank.metrics``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lowrank.registry import Registry

if TYPE_CHECKING:
    from lowrank.metrics.base import Lens

REGISTRY: Registry[Lens] = Registry(
    "metric lens", "lowrank.metrics", "LENS", "lowrank.metrics.base.Lens"
)
names = REGISTRY.names
get = REGISTRY.get
