"""Sources of text: one file per source, registered under its stem.

Third parties register sources in the entry-point group ``lowrank.data.sources``.
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
