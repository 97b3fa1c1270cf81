"""The training methods: one file each, registered under its stem.

Other packages register a method in the entry-point group ``lowrank.methods``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lowrank.registry import Registry

if TYPE_CHECKING:
    from lowrank.methods.base import Method

REGISTRY: Registry[Method] = Registry(
    "method", "lowrank.methods", "METHOD", "lowrank.methods.base.Method"
)
names = REGISTRY.names
get = REGISTRY.get
