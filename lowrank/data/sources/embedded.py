"""The offline default: English prose from the docstrings of lowrank's scientific dependencies.

The text is derived on the user's machine from packages that are installed anyway; none of it is
distributed. It depends only on the versions of the packages and on their files.
"""

from __future__ import annotations

import json
import logging
import os
import platform
import sysconfig
from collections.abc import Iterator
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from itertools import islice
from pathlib import Path

from lowrank.data.cache import (
    Json,
    hashes,
    locked,
    read_json,
    require,
    write_atomically,
    write_json,
)
from lowrank.data.sources._prose import REVISION, Collector, docstrings
from lowrank.data.sources.base import Source
from lowrank.errors import DataError
from lowrank.hashing import content_hash

PACKAGES = {  # distribution -> top-level package
    "matplotlib": "matplotlib",
    "networkx": "networkx",
    "nltk": "nltk",
    "numpy": "numpy",
    "pandas": "pandas",
    "scikit-learn": "sklearn",
    "scipy": "scipy",
    "sqlalchemy": "sqlalchemy",
    "sympy": "sympy",
    "torch": "torch",
    "transformers": "transformers",
    "python": "",  # the standard library
}
SKIPPED = {
    "tests",
    "test",
    "testing",
    "_vendor",
    "vendor",
    "externals",
    "third_party",
    "site-packages",
    "dist-packages",
    "ensurepip",
    "lib2to3",
    "idlelib",
    "__pycache__",
}

log = logging.getLogger(__name__)


class SOURCE(Source):
    """Prose of docstrings; each docstring is one document."""

    packages = PACKAGES

    def origin(self) -> Json:
        return {"packages": self._versions, "revision": REVISION}

    @cached_property
    def _versions(self) -> dict[str, str]:
        """Public versions of the installed packages; a build tag such as ``+cpu`` does not change
        the text.
        """
        found = {}
        for name, package in self.packages.items():
            try:
                found[name] = (
                    version(name).partition("+")[0] if package else platform.python_version()
                )
            except PackageNotFoundError:
                continue
        if not found:
            raise DataError(
                "the embedded corpus finds none of its packages installed; set data.source and data.path"
            )
        return found

    def pieces(self, part: str) -> int:
        return 1

    def documents(self, part: str, piece: int, skip: int) -> Iterator[str]:
        with self._corpus.open(encoding="utf-8") as file:
            for line in islice(file, skip, None):
                yield json.loads(line)

    @cached_property
    def _corpus(self) -> Path:
        """The file of harvested documents, one JSON string per line.

        The note beside it is written last and marks it as complete.
        """
        path = self.cache / "corpora" / f"embedded-{content_hash(self.origin())[:16]}.jsonl"
        note = path.with_suffix(".json")
        if (found := read_json(note)) is None:
            with locked(path.parent):
                if (found := read_json(note)) is None:
                    log.info("collecting the embedded corpus into %s", path)
                    lines = [json.dumps(document).encode() + b"\n" for document in self._harvest()]
                    write_atomically(path, lambda file: file.writelines(lines))
                    found = {"files": hashes([path])}
                    write_json(note, found)
        require(path.parent, found["files"])
        return path

    def _harvest(self) -> Iterator[str]:
        """Yield the prose of every docstring, package by package and file by file.

        Paragraphs are not repeated.
        """
        from lowrank.progress import progress_bar

        collector = Collector()
        for name in progress_bar(
            self._versions,
            desc="collecting the embedded corpus",
            unit="package",
            disable=None,
            leave=False,
        ):
            for path in _modules(_roots(self.packages[name])):
                for text in docstrings(path.read_text(encoding="utf-8", errors="replace")):
                    if document := collector.document(text):
                        yield document


def _roots(package: str) -> list[Path]:
    """Return the folders of a package, or those of the standard library for an empty name."""
    if not package:
        return [Path(sysconfig.get_path("stdlib"))]
    spec = find_spec(package)
    return [Path(place) for place in (spec.submodule_search_locations or ())] if spec else []


def _modules(roots: list[Path]) -> list[Path]:
    """Return the Python files below ``roots``, sorted by name, without tests and vendored
    packages.
    """
    found = []
    for root in roots:
        for folder, below, files in os.walk(root):
            below[:] = sorted(set(below) - SKIPPED)
            paths = [Path(folder, file) for file in files if file.endswith(".py")]
            found += [(path.relative_to(root).as_posix(), path) for path in paths]
    return [path for _, path in sorted(found)]
