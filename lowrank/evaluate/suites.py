"""Suites of downstream tasks: their tasks, categories and metrics, read from ``tasks/*.yaml``."""

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
"""Stored for every task in addition to its metrics; see :mod:`lowrank.evaluate.scores`."""


class TaskInfo(Config):
    """One task of a suite; the fields after ``metrics`` locate its definition and its data."""

    category: str
    primary: str  # the metric that represents the task
    metrics: Names  # metrics that the harness computes
    include: str | None = None  # path of a definition in the harness's folder of tasks
    members: str | None = None  # pattern of all definitions there, for a group
    own: str | None = None  # file name of a definition in this package
    split: str = "test"  # the split that is scored
    fetch: str | None = None  # data set to download
    subset: str | None = None  # configuration of the data set
    url: str | None = None  # of a single file, where there is no data set to download
    text: str = "line"  # what one item of a .txt file is: a line or a paragraph

    @property
    def all_metrics(self) -> tuple[str, ...]:
        """All metrics that are stored."""
        return (*self.metrics, *EXTRA_METRICS)


class Suite(Config):
    """A named set of tasks."""

    name: str
    description: str
    items: str = Field(pattern="^(all|final|none)$")
    tasks: dict[str, TaskInfo]


def folder() -> Path:
    """Return the folder of the suites and of the task definitions of this package."""
    return Path(str(resources.files("lowrank.evaluate.tasks")))


def names() -> list[str]:
    """Return the names of the suites, sorted."""
    return sorted(
        path.stem
        for path in folder().glob("*.yaml")
        if "\ntasks:" in path.read_text(encoding="utf-8")
    )


@cache
def get(name: str) -> Suite:
    """Return the suite ``name``; raise :class:`UnknownNameError` where there is none."""
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
    """Return those of ``wanted`` that no suite has."""
    known = {task for suite in suites for task in suite.tasks}
    return [task for task in wanted if task not in known]
