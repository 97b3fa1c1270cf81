"""The rows behind a report: named queries of ``sql/`` with bound parameters, as frames, each run
once.
"""

from __future__ import annotations

import json
from collections.abc import Hashable, Iterable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import pandas as pd

from lowrank import metrics
from lowrank.errors import UsageError
from lowrank.report.identity import Identities, assign, series_key
from lowrank.report.plot.charts import Style
from lowrank.store import Store, queries, results
from lowrank.store.records import Run, Study
from lowrank.store.rows import NON_FINITE


@dataclass
class ReportSource:
    """One study of a store. Frames with a method have a column ``series`` (method and variant)."""

    store: Store
    name: str
    frames: dict[tuple[str, tuple[tuple[str, Any], ...]], pd.DataFrame] = field(
        default_factory=dict
    )

    def query(self, query: str, **params: Any) -> pd.DataFrame:
        """Return the rows of a named query; the study's name is bound automatically where the query
        has that parameter.
        """
        key = (query, tuple(sorted(params.items())))
        if key not in self.frames:
            named = queries.get(query)
            if any(parameter.name == "study" for parameter in named.parameters):
                params = {"study": self.name, **params}
            columns, rows = named.run(self.store, params)
            self.frames[key] = self.current(restore(pd.DataFrame(rows, columns=columns)))
        return self.frames[key]

    def current(self, frame: pd.DataFrame) -> pd.DataFrame:
        """Return the rows without runs that a newer run of the same method, variant, scale and seed
        has superseded, at either end of a pair.
        """
        for column in {"run_id", "reference_run_id"} & set(frame.columns):
            frame = frame[~frame[column].isin(self.superseded)]
        return frame.reset_index(drop=True)

    @cached_property
    def superseded(self) -> frozenset[int]:
        """The study's runs that are not in ``current_run_view``: the study file has changed their
        recipe since.
        """
        kept = results.current_runs(self.store, self.study.id)
        return frozenset(
            {run.id or 0 for run in self.store.find(Run, study_id=self.study.id)} - kept
        )

    def command(self, query: str, **params: Any) -> str:
        """Return the command that prints the rows of :meth:`query`."""
        given = {"study": self.name, **params}
        return " ".join([f"lowrank query {query}", *(f"--param {k}={v}" for k, v in given.items())])

    @cached_property
    def study(self) -> Study:
        """The study's row; UsageError where the store has none of that name."""
        found = self.store.first(Study, name=self.name)
        if found is None:
            known = ", ".join(s.name for s in self.store.find(Study)) or "none"
            raise UsageError(
                f"the store {self.store.url_masked} has no study '{self.name}' (it has: {known}); run it first: "
                f"lowrank study run FILE"
            )
        return found

    @cached_property
    def preset(self) -> str:
        """The study's preset: the protocol that its main figures show."""
        return str(self.study.config.get("preset", "exact"))

    @cached_property
    def identities(self) -> Identities:
        """The colour and marker of each method."""
        published = self.query("published", quantity="validation_perplexity")["method"]
        runs = self.runs
        return assign(published, runs.sort_values("run_id")["method"], runs["variant"])

    @property
    def runs(self) -> pd.DataFrame:
        """All runs of the study."""
        return self.query("run_costs")

    @property
    def checkpoints(self) -> pd.DataFrame:
        """All checkpoints with their validation loss."""
        return self.query("checkpoints")

    @property
    def aggregates(self) -> pd.DataFrame:
        """All metrics aggregated over layers and modules."""
        return self.query("aggregates")

    def shown_in(self, section: str) -> pd.DataFrame:
        """Return aggregates of the metrics of one checkpoint whose declaration names this
        chapter.
        """
        rows = self.aggregates
        return rows[declared(rows, "section").eq(section) & ~of_pairs(rows)]

    @cached_property
    def scales(self) -> list[str]:
        """Scales from small to large, by the parameters of their runs."""
        sizes = (
            self.runs.assign(size=pd.to_numeric(self.runs["parameters_total"]))
            .groupby("scale")["size"]
            .max()
        )
        return sorted(
            (str(s) for s in sizes.index),
            key=lambda s: (not sizes[s] > 0, sizes[s] if sizes[s] > 0 else 0, s),
        )

    @cached_property
    def recipes(self) -> list[tuple[str, str]]:
        """(method, variant) pairs in the order of their identities."""
        pairs = {
            (str(m), str(v)) for m, v in zip(self.runs["method"], self.runs["variant"], strict=True)
        }
        return sorted(pairs, key=lambda pair: (self.identities.rank(pair[0]), pair[0], pair[1]))

    @cached_property
    def baseline(self) -> str:
        """The series that others are compared with: the first of the literature's methods that the
        study has.
        """
        return series_key(*self.recipes[0]) if self.recipes else ""

    def styles(self, series: Iterable[str] | None = None) -> list[Style]:
        """Return the styles of the study's series in their order; only of those in ``series``, if
        given.
        """
        wanted = None if series is None else set(series)
        found = [self.identities.style(m, v) for m, v in self.recipes]
        return [s for s in found if wanted is None or s.key in wanted]

    def ways(self, frame: pd.DataFrame, key: str) -> list[tuple[str, pd.DataFrame]]:
        """Return (protocol name, rows) for each protocol of the frame's values, the study's main
        one first.

        Of several protocols of one name only the newest is shown for each value of ``key`` (metric,
        curve, task): the older ones belong to earlier versions of the study file.
        """
        latest = frame.groupby(["protocol", key])["protocol_id"].transform("max")
        parts = {
            str(name): part
            for name, part in frame[frame["protocol_id"] == latest].groupby("protocol", sort=True)
        }
        return sorted(
            parts.items(),
            key=lambda pair: (
                pair[0] != self.preset,
                not pair[0].startswith(self.preset + "/"),
                pair[0],
            ),
        )

    def describe(self, frame: pd.DataFrame) -> str:
        """Return the protocols of the frame's rows in one line."""
        rows = self.query("protocols")
        rows = rows[rows["protocol_id"].isin(set(frame["protocol_id"]))]
        return "; ".join(described(row) for row in rows.to_dict("records"))


def described(row: dict[Hashable, Any]) -> str:
    """Return one protocol in words."""
    parts = [f"{row['name']} (revision {row['metric_revision']})"]
    parts += [f"{row['space']} weights"] if row["space"] else []
    parts += [f"{row['normalization']} normalisation"] if row["normalization"] else []
    # A lens that needs no text has no evaluation set.
    if row["evaluation_sha256"] and not pd.isna(row["evaluation_sha256"]):
        parts.append(
            f"{int(row['examples'])} rows of {row['evaluation_set']} ({str(row['evaluation_sha256'])[:8]})"
        )
    seed = row["direction_seed"]
    parts += [f"direction seed {int(seed)}"] if seed is not None and not pd.isna(seed) else []
    parts += [row["precision"]] if row["precision"] else []
    return f"{row['lens']}: " + ", ".join(parts) + f", protocol {str(row['parameters_hash'])[:8]}"


def declared(rows: pd.DataFrame, fact: str) -> pd.Series[Any]:
    """Return a field of :class:`~lowrank.metrics.base.MetricInfo`, as declared for each row's
    metric.
    """
    names = rows["metric"].astype(object)
    return names.map({name: getattr(metrics.about(name), fact) for name in set(names)})


def of_pairs(rows: pd.DataFrame) -> pd.Series[bool]:
    """Return whether each row's metric belongs to a pair of runs and to neither of the two."""
    return declared(rows, "role").eq("pair")


def restore(frame: pd.DataFrame) -> pd.DataFrame:
    """Restore infinities where the store keeps value and kind apart (absent stays nan), and name
    the series.
    """
    for kind in [c for c in frame.columns if c.endswith("_kind")]:
        value = kind.removesuffix("_kind")
        if value in frame.columns:
            numbers = pd.to_numeric(frame[value], errors="coerce").astype(float)
            frame[value] = numbers.where(~frame[kind].isin(NON_FINITE), frame[kind].map(NON_FINITE))
    if {"method", "variant"} <= set(frame.columns):
        names = [
            series_key(str(m or ""), str(v or ""))
            for m, v in zip(frame["method"], frame["variant"], strict=True)
        ]
        frame["series"] = pd.Series(names, index=frame.index, dtype=object)
    return frame


def json_value(value: Any) -> dict[str, Any]:
    """Return a JSON column as a mapping; SQLite gives its text, PostgreSQL the value."""
    found = json.loads(value) if isinstance(value, str) else value
    return found if isinstance(found, dict) else {}
