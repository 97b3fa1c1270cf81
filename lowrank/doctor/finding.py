"""What the doctor finds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Finding:
    """One thing: ``level`` is fact, note (it can stay) or problem; ``mend`` does what ``advice``
    says and tells what it did.
    """

    level: str
    area: str
    what: str
    advice: str = ""
    mend: Callable[[], str] | None = field(default=None, compare=False)

    def row(self) -> dict[str, Any]:
        """The finding for people."""
        fixable = "--fix" if self.mend else ""
        return {
            "level": self.level,
            "area": self.area,
            "finding": self.what,
            "advice": self.advice,
            "mended_by": fixable,
        }


def readable(size: float) -> str:
    """A number of bytes for people."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"
