"""From a task of a suite to a definition that the harness loads: its own, ours, or one over files
fetched beforehand.
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
SHARD = re.compile(
    r"-\d+-of-\d+(?:-[0-9a-f]+)?$"
)  # what follows the name of a split in one part of it


@dataclass(frozen=True)
class Definition:
    """The YAML files of a task (several for a group), and where its data come from, for messages.

    ``items``: JSON lines that the documents must equal, since what the library caches of them has
    no hash of its own.
    """

    name: str
    files: tuple[Path, ...]
    origin: str
    items: Path | None = None


@cache
def harness_tasks() -> Path:
    """The folder of the harness's own definitions."""
    spec = find_spec("lm_eval")
    if spec is None or spec.origin is None:
        raise EvaluationError(
            "the package lm-eval is not installed; install it with: pip install lm-eval"
        )
    return Path(spec.origin).parent / "tasks"


def define(
    name: str, info: TaskInfo, data_dir: Path | None, embedded: Embedded | None
) -> Definition:
    """The definition of one task.

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
    """Definitions as installed: ours or the harness's."""
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
    """A definition that includes ``definition`` and reads files below ``data_dir/name`` instead of
    its data set.
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
    body |= {
        "training_split": None,
        "validation_split": None,
        "test_split": info.split,
    }  # nothing but the scored split is needed
    if info.members:
        body["task"] = f"blimp_{subset}" if name == "blimp" else f"{name}_{subset}"
    folder = cache_folder() / "downstream" / "definitions"
    target = folder / f"{name}-{content_hash(body)[:16]}.yaml"
    if not target.exists():
        with locked(folder):
            write_bytes(target, yaml.safe_dump(body, sort_keys=False).encode())
    return target


def _files(name: str, info: TaskInfo, subset: str | None, data_dir: Path) -> list[Path]:
    """The files of the scored split: those below a folder of the subset, if there is one, that bear
    the split's name.
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
    """The files of a split among ``paths``, by the first of these that any has: the split's name as
    the whole name, shards apart (``validation-00000-of-00001.parquet``, ``dev.txt``), as its end
    (``piqa_validation.parquet``), as that of the folder.
    """
    words = SPLIT_NAMES[split]
    stems = {path: SHARD.sub("", path.stem.lower()) for path in paths}
    whole = [path for path in paths if stems[path] in words]
    ending = [path for path in paths if re.split(r"[-_. ]", stems[path])[-1] in words]
    return whole or ending or [path for path in paths if path.parent.name.lower() in words]


def fetch_command(name: str, info: TaskInfo) -> str:
    """The command that brings a task's data into a folder for ``--data-dir DIR``."""
    if info.url is not None:
        return f"curl --create-dirs -o DIR/{name}/{info.split}.txt {info.url}"
    only = f' --include "{info.subset}/*"' if info.subset else ""
    return f"hf download --repo-type dataset {info.fetch}{only} --local-dir DIR/{name}"
