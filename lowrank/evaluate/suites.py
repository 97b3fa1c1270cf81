"""Suites of downstream tasks: which tasks, in which category, with which metrics. Data in
``tasks/*.yaml``.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from importlib import resources
from pathlib import Path

import yaml
from pydantic import Field

from lowrank.errors import UnknownNameError
from lowrank.settings import Config, Names

EXTRA_METRICS = ("margin", "bits_per_byte")
"""Stored for every task beside its own metrics; see :mod:`lowrank.evaluate.scores`."""


class TaskInfo(Config):
    """One task of a suite; the fields after ``metrics`` say where its definition
    and its data are.
    """

    category: str
    primary: str  # the metric that stands for the task
    metrics: Names  # that the harness computes
    include: str | None = None  # a definition in the harness's own folder of tasks
    members: str | None = None  # a group: all definitions there that match
    own: str | None = None  # a definition beside the suite
    split: str = "test"  # the one that is scored
    fetch: str | None = None  # data set to download
    subset: str | None = None  # its configuration
    url: str | None = None  # of the data set's own file, where there is no data set to download
    text: str = "line"  # what one item of a .txt file of it is: a line or a paragraph

    @property
    def all_metrics(self) -> tuple[str, ...]:
        """Every metric that is stored."""
        return (*self.metrics, *EXTRA_METRICS)


class Suite(Config):
    """A named set of tasks."""

    name: str
    description: str
    items: str = Field(pattern="^(all|final|none)$")
    tasks: dict[str, TaskInfo]


def folder() -> Path:
    """The folder of the suites and of lowrank's own task definitions."""
    return Path(str(resources.files("lowrank.evaluate.tasks")))


def names() -> list[str]:
    """Names of the suites."""
    return sorted(
        path.stem
        for path in folder().glob("*.yaml")
        if "\ntasks:" in path.read_text(encoding="utf-8")
    )


@cache
def get(name: str) -> Suite:
    """The suite ``name``; raises :class:`UnknownNameError`."""
    if name not in names():
        raise UnknownNameError("downstream suite", name, names())
    body = yaml.safe_load((folder() / f"{name}.yaml").read_text(encoding="utf-8"))
    return Suite.model_validate({"name": name, **body})


def columns() -> dict[str, str]:
    """Give the columns of wide tables that every task of the suites has, by themselves: the larger
    suite's first.
    """
    suites = sorted(map(get, names()), key=lambda suite: (-len(suite.tasks), suite.name))
    found = [f"score_{task}" for suite in suites for task in sorted(suite.tasks)]
    return dict(zip(found, found, strict=True))


def unknown_tasks(wanted: Sequence[str], suites: Sequence[Suite]) -> list[str]:
    """Those of ``wanted`` that no suite has."""
    known = {task for suite in suites for task in suite.tasks}
    return [task for task in wanted if task not in known]
