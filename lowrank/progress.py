"""Progress of long work on stderr: a bar, and a line while other processes finish."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar, cast, overload

from tqdm import tqdm

from lowrank import logs

T = TypeVar("T")
log = logging.getLogger(__name__)


@overload
def progress_bar(rows: Iterable[T], **options: Any) -> tqdm[T]: ...
@overload
def progress_bar(rows: None = None, **options: Any) -> tqdm[Any]: ...
def progress_bar(rows: Iterable[T] | None = None, **options: Any) -> tqdm[Any]:
    """Return tqdm's progress bar over ``rows``, which is not shown under ``-q``, whatever
    ``options`` say.
    """
    options["disable"] = logs.quiet() or options.get("disable", False)
    return tqdm(cast(Any, rows), **options)


class ProgressBar:
    """A bar that counts the items that this process does.

    ``waiting(units)`` reports how many items other processes hold.
    """

    def __init__(self, bar: tqdm[Any], waiting: Callable[[int], None]) -> None:
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
    with progress_bar(
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
    """Return a callback that reports how many items other processes hold.

    It reports on stderr (not under ``-q``) and in the log, only when the number changes, and
    nothing for 0.
    """
    reported = 0

    def report(units: int) -> None:
        nonlocal reported
        if units and units != reported:
            held = "unit is" if units == 1 else "units are"
            sentence = f"{name}: {units} {held} with other processes; waiting"
            log.info("%s", sentence, extra=logs.SHOWN)
            if not logs.quiet():
                tqdm.write(sentence, file=sys.stderr)
        reported = units

    return report
