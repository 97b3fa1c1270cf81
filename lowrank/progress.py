"""Progress of long work on stderr: a bar, and a line while other processes finish."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tqdm import tqdm


class ProgressBar:
    """A bar that counts the items that this process does.

    ``waiting(units)`` reports how many items other processes hold.
    """

    def __init__(self, bar: tqdm, waiting: Callable[[int], None]) -> None:
        self.bar, self.waiting = bar, waiting

    def expect(self, steps: int) -> None:
        """Set the bar's total to ``steps`` more than are done."""
        self.bar.total = self.bar.n + steps

    def show(self, text: str) -> None:
        """Show ``text`` beside the bar."""
        self.bar.set_postfix_str(text, refresh=False)

    def advance(self) -> None:
        """Count one step as done."""
        self.bar.update()


@contextmanager
def progress(
    name: str,
    unit: str,
    *,
    shown: bool = True,
    bar: bool = True,
    total: int | None = None,
    done: int = 0,
) -> Iterator[ProgressBar]:
    """Show a bar on stderr while the block runs.

    ``unit`` is the bar's unit, ``total`` its length where it is known, and ``done`` the number of
    its steps that were made earlier. ``shown`` False shows nothing; ``bar`` False shows only how
    many items other processes hold.
    """
    # Work of unknown length that ends at once shows no bar.
    delay = 0.0 if total is not None else 1.0
    with tqdm(
        desc=name,
        unit=unit,
        disable=not (shown and bar),
        total=total,
        initial=done,
        mininterval=0.1 if total is not None else 1.0,
        delay=delay,
    ) as shown_bar:
        yield ProgressBar(shown_bar, waiting(name) if shown else lambda units: None)


def waiting(name: str) -> Callable[[int], None]:
    """Return a callback that reports on stderr how many items other processes hold.

    It prints only when the number changes, and nothing for 0.
    """
    reported = 0

    def report(units: int) -> None:
        nonlocal reported
        if units and units != reported:
            held = "1 unit is" if units == 1 else f"{units} units are"
            tqdm.write(f"{name}: {held} with other processes; waiting", file=sys.stderr)
        reported = units

    return report
