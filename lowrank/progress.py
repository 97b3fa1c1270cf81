"""What long work tells people, on stderr."""

from __future__ import annotations

import sys
from collections.abc import Callable

from tqdm import tqdm


def waiting(what: str) -> Callable[[int], None]:
    """A function that is told how many units others are doing; it says so once for each number."""
    told = 0

    def tell(units: int) -> None:
        nonlocal told
        if units and units != told:
            one = units == 1
            tqdm.write(
                f"{what}: {units} {'unit is' if one else 'units are'} with other processes; waiting",
                file=sys.stderr,
            )
        told = units

    return tell
