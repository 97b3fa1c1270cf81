"""Definitions of tasks that the harness loads: the harness's, this package's, or generated ones
over files that were fetched beforehand.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import yaml

from lowrank.data.cache import cache_folder, locked, write_bytes
from lowrank.evaluate import suites
from lowrank.evaluate.embedded import PREFIX, Embedded
from lowrank.evaluate.errors import EvaluationError
from lowrank.evaluate.suites import TaskInfo
from lowrank.hashing import content_hash

BUILDERS = {
    ".parquet": "parquet",
    ".jsonl": "json",
    ".json": "json",
    ".arrow": "arrow",
    ".csv": "csv",
}
SPLIT_NAMES = {
    "train": ("train",),
    "validation": ("validation", "valid", "val", "dev", "eval"),
    "test": ("test",),
}
# The end of the name of one shard of a split.
SHARD = re.compile(r"-\d+-of-\d+(?:-[0-9a-f]+)?$")


@dataclass(frozen=True)
class Definition:
    """The YAML files of a task (several for a group), and the origin of its data, for messages.

    ``items`` is a file of JSON lines that the documents must equal, since the library's cache of
    them has no hash.
    """

    name: str
    files: tuple[Path, ...]
    origin: str
    items: Path | None = None


@cache
def harness_tasks() -> Path:
    """Return the folder of the harness's task definitions.

    Raises :class:`EvaluationError` where the harness is not installed.
    """
    spec = find_spec("lm_eval")
    if spec is None or spec.origin is None:
        raise EvaluationError(
            "the package lm-eval is not installed; install it with: pip install lm-eval"
        )
    return Path(spec.origin).parent / "tasks"


def define(
    name: str, info: TaskInfo, data_dir: Path | None, embedded: Embedded | None
) -> Definition:
    """Return the definition of one task.

    Args:
        name: the task.
        info: its entry in the suite.
        data_dir: a folder with the data sets' files; None reads them from the hub.
        embedded: the embedded suite, where the task is one of it.

    Raises:
        EvaluationError: the harness has no such task, or ``data_dir`` lacks its file.
    """
    if embedded is not None:
        folder = embedded.folder
        return Definition(
            name, (folder / f"{PREFIX}{name}.yaml",), str(folder), folder / f"{name}.jsonl"
        )
    given = list(_installed(name, info))
    if data_dir is None:
        return Definition(name, tuple(given), info.fetch or info.url or "")
    return Definition(
        name, tuple(_local(name, info, path, data_dir) for path in given), str(data_dir / name)
    )


def _installed(name: str, info: TaskInfo) -> Iterator[Path]:
    """Yield the installed definitions of a task, from this package or the harness."""
    if info.own is not None:
        yield suites.folder() / info.own
        return
    pattern = info.members or info.include or f"{name}/{name}.yaml"
    found = sorted(path for path in harness_tasks().glob(pattern) if not path.name.startswith("_"))
    found = [
        path
        for path in found
        if info.members is None or "dataset_name:" in path.read_text(encoding="utf-8")
    ]
    if not found:
        raise EvaluationError(
            f"the task '{name}' is unknown to the installed harness (no {pattern} among its tasks); install another lm-eval"
        )
    yield from found


def _local(name: str, info: TaskInfo, definition: Path, data_dir: Path) -> Path:
    """Write a definition that reads files below ``data_dir/name`` in place of the data set.

    It includes ``definition``; returns its path in the cache folder.
    """
    subset = definition.stem if info.members else info.subset
    paths = _files(name, info, subset, data_dir)
    kind = paths[0].suffix.lower()
    builder = BUILDERS.get(kind, "text")
    arrow = cache_folder() / "downstream" / "arrow"
    files = [str(path.resolve()) for path in paths]
    arguments: dict[str, Any] = {
        "data_files": {info.split: files},
        "cache_dir": str(arrow.resolve()),
    }
    if builder == "text":
        arguments["sample_by"] = info.text
    body = {
        "include": str(definition.resolve()),
        "dataset_path": builder,
        "dataset_name": None,
        "dataset_kwargs": arguments,
    }
    # Only the scored split is needed.
    body |= {"training_split": None, "validation_split": None, "test_split": info.split}
    if info.members:
        body["task"] = f"blimp_{subset}" if name == "blimp" else f"{name}_{subset}"
    folder = cache_folder() / "downstream" / "definitions"
    target = folder / f"{name}-{content_hash(body)[:16]}.yaml"
    if not target.exists():
        with locked(folder):
            write_bytes(target, yaml.safe_dump(body, sort_keys=False).encode())
    return target


def _files(name: str, info: TaskInfo, subset: str | None, data_dir: Path) -> list[Path]:
    """Return the files of the scored split (of the subset, if any) below ``data_dir/name``.

    Raises :class:`EvaluationError` where there are none, or several data sets.
    """
    folder = data_dir / name
    known = {*BUILDERS, ".txt"}
    here = sorted(
        path for path in folder.rglob("*") if path.suffix.lower() in known and path.is_file()
    )
    if subset is not None:
        inside = [path for path in here if subset in path.relative_to(folder).parts[:-1]]
        named = [path for path in here if path.name.split(".")[0] == subset]
        here = inside or named or ([] if info.members else here)
        found = of_split(here, info.split) or named
    else:
        found = of_split(here, info.split)
    if not found:
        what = f"{info.split} split" + (f" of '{subset}'" if info.members else "")
        raise EvaluationError(
            f"the task '{name}' finds no file of its {what} below {folder}; fetch it with: {fetch_command(name, info)}"
        )
    forms = {(path.parent, SHARD.sub("", path.stem), path.suffix) for path in found}
    if len(forms) > 1:
        several = ", ".join(str(path.relative_to(folder)) for path in found[:3])
        raise EvaluationError(
            f"the task '{name}' finds several files of its {info.split} split below {folder} ({several}); leave one"
        )
    return found


def of_split(paths: Sequence[Path], split: str) -> list[Path]:
    """Return the files of a split among ``paths``, by the first of three rules that any meets.

    The split's name is the whole name but for the number of a shard
    (``validation-00000-of-00001.parquet``, ``dev.txt``), its end (``piqa_validation.parquet``), or
    the name of the folder.
    """
    words = SPLIT_NAMES[split]
    stems = {path: SHARD.sub("", path.stem.lower()) for path in paths}
    whole = [path for path in paths if stems[path] in words]
    ending = [path for path in paths if re.split(r"[-_. ]", stems[path])[-1] in words]
    return whole or ending or [path for path in paths if path.parent.name.lower() in words]


def fetch_command(name: str, info: TaskInfo) -> str:
    """Return the command that fetches a task's data into a folder for ``--data-dir DIR``."""
    if info.url is not None:
        return f"curl --create-dirs -o DIR/{name}/{info.split}.txt {info.url}"
    only = f' --include "{info.subset}/*"' if info.subset else ""
    return f"hf download --repo-type dataset {info.fetch}{only} --local-dir DIR/{name}"
