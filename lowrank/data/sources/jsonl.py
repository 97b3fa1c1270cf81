"""JSON lines, plain or compressed with gzip: one document per line, in ``data.text_field``."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator
from pathlib import Path

from lowrank.data.sources._files import LocalFiles
from lowrank.errors import DataError


class SOURCE(LocalFiles):
    """Documents of JSON-lines files."""

    suffixes = (".jsonl", ".json", ".jsonl.gz", ".json.gz", ".ndjson")

    def texts(self, path: Path) -> Iterator[str]:
        with (
            gzip.open(path, "rt", encoding="utf-8")
            if path.suffix == ".gz"
            else path.open(encoding="utf-8") as file
        ):
            try:
                for number, line in enumerate(file, start=1):
                    if line.strip():
                        yield self.field(
                            self._record(line, path, number), f"line {number} of {path}"
                        )
            except (EOFError, zlib.error) as error:
                raise DataError(f"{path} is cut off or damaged ({error}); copy it again") from error

    @staticmethod
    def _record(line: str, path: Path, number: int) -> object:
        try:
            return json.loads(line)
        except ValueError as error:
            raise DataError(
                f"line {number} of {path} is not JSON ({error}); the format is one object per line"
            ) from error
