"""Plain UTF-8 text; blank lines, or ``data.separator``, separate the documents of a file."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from lowrank.data.cache import Json
from lowrank.data.sources._files import LocalFiles

_BLOCK = 1 << 22


class SOURCE(LocalFiles):
    """Documents of text files."""

    suffixes = (".txt", ".text", ".md")

    def stamp(self) -> Json:
        return {**super().stamp(), "separator": self.config.separator}

    def texts(self, path: Path) -> Iterator[str]:
        boundary = re.compile(
            r"\n[ \t]*\n\s*" if self.config.separator is None else re.escape(self.config.separator)
        )
        rest = ""
        with path.open(encoding="utf-8-sig") as file:
            while block := file.read(_BLOCK):
                *whole, rest = boundary.split(
                    rest + block
                )  # the last part may continue in the next block
                yield from (document.strip() for document in whole)
        yield from (document.strip() for document in boundary.split(rest))
