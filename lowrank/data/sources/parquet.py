"""Parquet files: one document per row, in the column ``data.text_field``."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lowrank.data.sources._files import ColumnFiles


class SOURCE(ColumnFiles):
    """Documents of Parquet files."""

    suffixes = (".parquet",)

    def record_batches(self, path: Path) -> Iterator[Any]:
        import pyarrow.parquet as pq

        with pq.ParquetFile(path) as file:
            have = file.schema_arrow.names
            wanted = [self.config.text_field] if self.config.text_field in have else None
            yield from file.iter_batches(columns=wanted)
