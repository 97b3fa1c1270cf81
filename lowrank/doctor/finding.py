"""What the doctor reports."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Finding:
    """One fact or problem.

    ``level`` is ``fact``, ``note`` (it can stay) or ``problem``. ``fix`` does what ``advice`` says
    and returns a sentence on what it did; None if a person has to act.
    """

    level: str
    area: str
    what: str
    advice: str = ""
    fix: Callable[[], str] | None = field(default=None, compare=False)

    def row(self) -> dict[str, Any]:
        """Return the finding as a row for the command line."""
        fixable = "--fix" if self.fix else ""
        return {
            "level": self.level,
            "area": self.area,
            "finding": self.what,
            "advice": self.advice,
            "mended_by": fixable,
        }


def readable(size: float) -> str:
    """Return a number of bytes as text for people, such as ``1.5 MiB``."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"
