"""Local files: a file, a glob or a folder becomes a sorted list; errors name the file."""

from __future__ import annotations

import glob
from abc import abstractmethod
from collections.abc import Iterator
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar

from lowrank.data.cache import Json
from lowrank.data.sources.base import Source
from lowrank.errors import DataError


class LocalFiles(Source):
    """Base class of the local sources: each file is one piece.

    In a folder, files that end in one of ``suffixes`` are read.
    """

    suffixes: ClassVar[tuple[str, ...]]

    @cached_property
    def files(self) -> list[Path]:
        """The files sorted by name, so that their order does not depend on the file system."""
        path = self.config.path
        if not path:
            raise DataError(
                f"the source '{self.config.source}' needs data.path: a file, a folder or a glob such as 'texts/*.txt'"
            )
        root = Path(path).expanduser()
        if root.is_dir():
            shown = (
                p
                for p in root.rglob("*")
                if not any(part.startswith(".") for part in p.relative_to(root).parts)
            )
            found = [p for p in shown if p.name.lower().endswith(self.suffixes)]
            missing = f"the folder '{path}' of data.path holds no file that ends in {' or '.join(self.suffixes)}"
        else:
            found = (
                [root] if root.exists() else [Path(p) for p in glob.glob(str(root), recursive=True)]
            )
            missing = f"data.path '{path}' names no file; give an existing file, folder or glob"
        found = sorted(p for p in found if p.is_file())
        if not found:
            raise DataError(missing)
        return found

    def origin(self) -> Json:
        return {}

    def stamp(self) -> Json:
        stats = [(str(p.resolve()), p.stat()) for p in self.files]
        return {
            "files": [(name, s.st_size, s.st_mtime_ns) for name, s in stats],
            "text_field": self.config.text_field,
        }

    def pieces(self, part: str) -> int:
        return len(self.files)

    def documents(self, part: str, piece: int, skip: int) -> Iterator[str]:
        path = self.files[piece]
        try:
            yield from islice(self.texts(path), skip, None)
        except UnicodeDecodeError as error:
            raise DataError(
                f"{path} is not UTF-8 text ({error.reason} at byte {error.start}); convert it first"
            ) from error
        except OSError as error:
            raise DataError(f"cannot read {path}: {error.strerror or error}") from error

    @abstractmethod
    def texts(self, path: Path) -> Iterator[str]:
        """Yield the documents of one file."""

    def field(self, record: Any, where: str) -> str:
        """Return the text of a record; raise :class:`DataError` if it has none."""
        name = self.config.text_field
        if not isinstance(record, dict) or name not in record:
            have = (
                ", ".join(map(str, record))
                if isinstance(record, dict)
                else f"a {type(record).__name__}"
            )
            raise DataError(
                f"{where} has no field '{name}' (it has {have or 'none'}); set data.text_field"
            )
        text = record[name]
        if text is None:
            return ""
        if not isinstance(text, str):
            raise DataError(
                f"the field '{name}' of {where} is a {type(text).__name__}, not text; set data.text_field"
            )
        return text


class ColumnFiles(LocalFiles):
    """Base class of the columnar formats, which pyarrow reads batch by batch."""

    def texts(self, path: Path) -> Iterator[str]:
        import pyarrow as pa

        try:
            for batch in self.record_batches(path):
                if self.config.text_field not in batch.schema.names:
                    self.field(dict.fromkeys(batch.schema.names), str(path))
                for text in batch.column(self.config.text_field).to_pylist():
                    yield self.field({self.config.text_field: text}, str(path))
        except pa.ArrowException as error:
            raise DataError(
                f"{path} is not a readable {self.config.source} file: {str(error).splitlines()[0]}"
            ) from error

    @abstractmethod
    def record_batches(self, path: Path) -> Iterator[Any]:
        """Yield the record batches of one file."""
