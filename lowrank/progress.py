"""What long work tells people, on stderr."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
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
    """Give a progress bar of tqdm over ``rows``, which is not shown under ``-q``, whatever
    ``options`` say.
    """
    options["disable"] = logs.quiet() or options.get("disable", False)
    return tqdm(cast(Any, rows), **options)


def waiting(what: str) -> Callable[[int], None]:
    """Give a function that is told how many units others are doing; it says so once for each
    number.
    """
    told = 0

    def tell(units: int) -> None:
        nonlocal told
        if units and units != told:
            who = "unit is" if units == 1 else "units are"
            log.warning("%s: %d %s with other processes; waiting", what, units, who)
        told = units

    return tell
