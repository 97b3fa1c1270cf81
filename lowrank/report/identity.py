"""One look for each method in every figure of every report.

The order is a fact of the data: methods of the literature in the order in which it lists them, then
the others as they first appeared in the store. A seventh method takes the eighth slot's neighbour
without moving the six.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from lowrank.report.plot import theme
from lowrank.report.plot.charts import Style


@dataclass(frozen=True)
class Identities:
    """Styles by (method, variant); a variant of a method shares colour and marker and takes another
    dash.
    """

    methods: tuple[str, ...]
    variants: tuple[str, ...] = ("",)

    def style(self, method: str, variant: str = "") -> Style:
        """The style of a method's series."""
        place = self.methods.index(method) if method in self.methods else len(self.methods)
        around, slot = divmod(place, theme.SLOTS)
        dash = (self.variants.index(variant) if variant in self.variants else 0) + around
        return Style(
            key=series_key(method, variant),
            label=series_key(method, variant),
            color=f"slot{slot}",
            marker=theme.MARKERS[(slot + 3 * around) % theme.SLOTS],
            dash=theme.DASHES[dash % len(theme.DASHES)],
        )

    def rank(self, method: str) -> int:
        """Place of a method in tables and legends."""
        return self.methods.index(method) if method in self.methods else len(self.methods)


def series_key(method: str, variant: str = "") -> str:
    """The name of a series: the method and, where the study has several recipes of
    it, the variant.
    """
    return f"{method} · {variant}" if variant else method


def assign(published: Iterable[str], stored: Iterable[str], variants: Iterable[str]) -> Identities:
    """Identities from the methods of the literature and those of the store, each in its order of
    appearance.
    """
    methods = tuple(dict.fromkeys((*published, *stored)))
    return Identities(methods, tuple(dict.fromkeys(("", *sorted(variants)))))
