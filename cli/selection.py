"""Options that select checkpoints of a study, shared by commands that work on checkpoints."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

import click

OPTIONS = (
    click.option(
        "--method",
        "methods",
        multiple=True,
        metavar="NAME",
        help="Only this method; may be repeated, like all below.",
    ),
    click.option(
        "--scale", "scales", multiple=True, metavar="NAME", help="Only checkpoints of this scale."
    ),
    click.option("--seed", "seeds", multiple=True, type=int, help="Only checkpoints of this seed."),
    click.option("--step", "steps", multiple=True, type=int, help="Only checkpoints at this step."),
    click.option(
        "--run", "runs", multiple=True, type=int, metavar="ID", help="Only checkpoints of this run."
    ),
    click.option(
        "--checkpoint",
        "checkpoints",
        multiple=True,
        type=int,
        metavar="ID",
        help="Only this checkpoint.",
    ),
)
NAMES = ("methods", "scales", "seeds", "steps", "runs", "checkpoints")


def selection_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add ``--method --scale --seed --step --run --checkpoint`` to a command.

    Their values reach it as the argument ``selection``, a :class:`lowrank.work.selection.Selection`.
    """

    @wraps(command)
    def wrapper(*arguments: Any, **options: Any) -> Any:
        from lowrank.work.selection import Selection

        selection = Selection(**{name: options.pop(name) for name in NAMES})
        return command(*arguments, selection=selection, **options)

    for option in reversed(OPTIONS):
        wrapper = option(wrapper)
    return wrapper
