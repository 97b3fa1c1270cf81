"""Give every method the same colour, marker and dash in every figure of every report.

Methods from the literature come first, in the order in which it lists them; other methods follow in
the order in which they first appeared in the store. Adding a method therefore never changes the
look of the methods before it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from lowrank.report.plot import theme
from lowrank.report.plot.charts import Style


@dataclass(frozen=True)
class Identities:
    """Styles by (method, variant).

    The variants of a method share its colour and marker and differ in the dash.
    """

    methods: tuple[str, ...]
    variants: tuple[str, ...] = ("",)

    def style(self, method: str, variant: str = "") -> Style:
        """Return the style of the series of a method and variant."""
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
        """Return the position of a method in tables and legends."""
        return self.methods.index(method) if method in self.methods else len(self.methods)


def series_key(method: str, variant: str = "") -> str:
    """Return the name of a series: the method, followed by the variant if there is one."""
    return f"{method} · {variant}" if variant else method


def assign(published: Iterable[str], stored: Iterable[str], variants: Iterable[str]) -> Identities:
    """Return the identities of published methods, followed by the stored ones, in their given
    order.
    """
    methods = tuple(dict.fromkeys((*published, *stored)))
    return Identities(methods, tuple(dict.fromkeys(("", *sorted(variants)))))
