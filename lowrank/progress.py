"""What a person sees of long work on stderr: a bar, and a line while other processes finish."""

from __future__ import annotations

import logging
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
    """A bar that counts what this process does, and says when it waits for other processes."""

    def __init__(self, bar: tqdm[Any], waiting: Callable[[int], None]) -> None:
        self.bar, self.waiting = bar, waiting

    def expect(self, steps: int) -> None:
        """Expect ``steps`` more steps than those that are done."""
        self.bar.total = self.bar.n + steps

    def show(self, text: str) -> None:
        """Show beside the bar what is being done."""
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
    """Show a bar on stderr while the block runs; ``done`` of its steps were made earlier.

    ``shown`` False shows nothing; ``bar`` False shows only how many items others hold.
    """
    delay = 0.0 if total is not None else 1.0  # work that turns out to be done shows no bar
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
    """Return a callback that logs how many items other processes hold.

    It logs only when the number changes, and nothing for 0.
    """
    reported = 0

    def report(units: int) -> None:
        nonlocal reported
        if units and units != reported:
            held = "unit is" if units == 1 else "units are"
            log.warning("%s: %d %s with other processes; waiting", name, units, held)
        reported = units

    return report
