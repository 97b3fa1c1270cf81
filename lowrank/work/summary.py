"""What a process did of a stage's missing work."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class WorkSummary:
    """Counts of what this process did, and a sentence for everything that it left undone.

    ``units`` counts the items that it did and ``rows`` the new rows. ``failed`` has the items that
    failed now, ``left_alone`` those that failed earlier and were not tried again, ``blocked`` those
    that cannot be done yet. ``notes`` are results worth a sentence, such as a diverged run.
    """

    units: int = 0
    rows: int = 0
    failed: list[str] = field(default_factory=list)
    left_alone: list[str] = field(default_factory=list)
    blocked: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def complete(self) -> bool:
        """Whether nothing that was asked for is missing."""
        return not (self.failed or self.blocked or self.left_alone)
