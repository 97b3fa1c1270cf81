"""Where text comes from: one file a source, found by its stem; outsiders use the group
``lowrank.data.sources``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lowrank.registry import Registry

if TYPE_CHECKING:
    from lowrank.data.sources.base import Source

REGISTRY: Registry[Source] = Registry(
    "data source", "lowrank.data.sources", "SOURCE", "lowrank.data.sources.base.Source"
)
names = REGISTRY.names
get = REGISTRY.get
