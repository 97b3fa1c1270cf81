"""The metric families (lenses): one file each, registered under its stem.

Other packages register a lens in the entry-point group ``lowrank.metrics``.
"""

from __future__ import annotations

import re
import sys
from dataclasses import replace
from functools import lru_cache
from typing import TYPE_CHECKING

from lowrank.errors import LowrankError
from lowrank.registry import Registry

if TYPE_CHECKING:
    from lowrank.metrics.base import Lens, MetricInfo

REGISTRY: Registry[Lens] = Registry(
    "metric lens", "lowrank.metrics", "LENS", "lowrank.metrics.base.Lens"
)
names = REGISTRY.names
get = REGISTRY.get


def declared() -> dict[str, MetricInfo]:
    """Return every registered metric by name.

    Lenses are ordered by position and name, the metrics of each as declared. Raises
    :class:`LowrankError` if two lenses declare a metric or a feature of the same name.
    """
    return dict(_declared(tuple(sys.path)))


def about(metric: str) -> MetricInfo:
    """Return the declaration of a metric.

    Metrics that differ only in their last number share one declaration: ``sharpness_pca_3`` has
    that of ``sharpness_pca_1``. A metric that no installed lens declares has the defaults.
    """
    from lowrank.metrics.base import MetricInfo

    known = declared()
    if metric in known:
        return known[metric]
    family = _family(metric)
    relative = next((info for name, info in known.items() if _family(name) == family), None)
    if relative is None or family == metric:
        return MetricInfo(metric, "", "", "", "")
    return replace(relative, name=metric, definition="", column="")


def _family(metric: str) -> str:
    return re.sub(r"\d+$", "", metric)


@lru_cache(maxsize=8)
def _declared(path: tuple[str, ...]) -> dict[str, MetricInfo]:
    """Return the metrics by name; entry points are found on ``path``, so a new path asks again."""
    lenses = sorted((get(name).position, name) for name in names())
    found: dict[str, MetricInfo] = {}
    owners: dict[str, str] = {}
    for _, name in lenses:
        for info in get(name).metrics:
            for word in {info.name, info.feature}:
                other = owners.setdefault(word, name)
                if other != name or info.name in found:
                    raise LowrankError(
                        f"the lenses '{other}' and '{name}' both declare the metric '{word}'; rename one"
                    )
            found[info.name] = info
    return found
