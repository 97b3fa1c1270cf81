"""The result of ``lowrank.open``: a store for reading, whose answers are pandas data frames."""

from __future__ import annotations

import os
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from lowrank.store import queries
from lowrank.store.api import Store
from lowrank.store.rows import NON_FINITE
from lowrank.store.schema import KIND_SUFFIX

if TYPE_CHECKING:
    import pandas as pd


class View:
    """A read-only view of a store, for notebooks::

        view = lowrank.open("outputs/demo/lowrank.db")
        view.query("perplexity", study="demo")
        view.sql("SELECT method, count(*) FROM run GROUP BY method")

    Where an answer has the columns ``x`` and ``x_kind``, infinities are put back into ``x``; nan
    and missing values are both nan there, and ``x_kind`` tells them apart.
    """

    def __init__(self, store: Store) -> None:
        self._store = store

    def queries(self) -> pd.DataFrame:
        """Return the named queries: name, description, parameters."""
        import pandas as pd

        return pd.DataFrame(queries.listing())

    def query(self, name: str, **params: Any) -> pd.DataFrame:
        """Return the answer of a named query; :meth:`queries` lists them with their parameters."""
        return frame(*queries.get(name).run(self._store, params))

    def sql(self, text: str, **params: Any) -> pd.DataFrame:
        """Return the answer of one SELECT, in which ``:name`` stands for the parameter ``name``."""
        return frame(*self._store.select(text, params))

    def close(self) -> None:
        """Close the connections."""
        self._store.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"lowrank.open({self._store.url_masked!r})"


def frame(columns: list[str], rows: list[tuple[Any, ...]]) -> pd.DataFrame:
    """Return rows as a data frame, with infinities restored from the columns of kinds; see
    :class:`View`.
    """
    import pandas as pd

    found = pd.DataFrame(rows, columns=columns)
    for kind in [
        name for name in columns if name.endswith(KIND_SUFFIX) and columns.count(name) == 1
    ]:
        value = kind.removesuffix(KIND_SUFFIX)
        if columns.count(value) == 1:
            restored = found[kind].map(NON_FINITE)
            found[value] = found[value].astype(float).where(restored.isna(), restored)
    return found


def open_view(url: str | os.PathLike[str]) -> View:
    """Return a view of the store at a SQLAlchemy URL or in an SQLite file."""
    return View(Store.open(url, read_only=True))
