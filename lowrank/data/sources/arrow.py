"""Arrow IPC files and streams, as ``datasets`` saves them.

Each row is a document, in the column ``data.text_field``.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lowrank.data.sources._files import ColumnFiles


class SOURCE(ColumnFiles):
    """Documents of Arrow files."""

    suffixes = (".arrow", ".feather")

    def record_batches(self, path: Path) -> Iterator[Any]:
        import pyarrow as pa

        with pa.memory_map(str(path)) as file:
            try:
                reader = pa.ipc.open_file(file)
            except pa.ArrowInvalid:
                file.seek(0)
                yield from pa.ipc.open_stream(file)
                return
            for number in range(reader.num_record_batches):
                yield reader.get_batch(number)
