"""Where the numbers come from: versions, machines, protocols, evaluation sets and hashes."""

from __future__ import annotations

import pandas as pd

from lowrank.report.figure import Note, Section
from lowrank.report.source import ReportSource, json_value
from lowrank.report.tables import Table


def build(source: ReportSource) -> Section:
    """Return everything that is needed to judge whether two reports may be compared."""
    section = Section(
        name="provenance",
        title="Provenance",
        lead="What made these numbers. Two values are comparable where their protocol hashes agree.",
    )
    section.blocks.append(
        Note(
            text=f"Study {source.name}, configuration {source.study.config_hash[:12]}, preset {source.preset}."
        )
    )
    section.blocks += [machines(source), protocols(source), evaluation_sets(source), runs(source)]
    section.blocks = [b for b in section.blocks if not (isinstance(b, Table) and b.frame.empty)]
    return section


def machines(source: ReportSource) -> Table:
    """Return a table of code, libraries and devices, and what was computed with them."""
    rows, lines = source.query("provenance"), []
    for _, group in rows.groupby("hash", sort=False):
        row = group.iloc[0]
        versions = ", ".join(
            f"{k} {v}" for k, v in sorted(json_value(row["library_versions"]).items())
        )
        counts = zip(group["what"], group["number"], strict=True)
        made = ", ".join(
            f"{number} {what.replace('_', ' ')}{'s' if number != 1 else ''}"
            for what, number in counts
        )
        lines.append(
            (
                row["lowrank_version"],
                str(row["git_commit"])[:10],
                row["device"],
                int(row["threads"]),
                versions,
                made,
            )
        )
    columns = ["lowrank", "commit", "device", "threads", "libraries", "made"]
    return Table(
        name="provenance",
        title="Code and machines",
        frame=pd.DataFrame(lines, columns=columns, dtype=object),
        query=source.command("provenance"),
    )


def protocols(source: ReportSource) -> Table:
    """Return a table of every protocol behind a value."""
    rows, lines = source.query("protocols"), []
    rows["evaluation_set"] = (
        rows["evaluation_set"].astype(object).where(rows["evaluation_set"].notna(), None)
    )
    for row in rows.to_dict("records"):
        parameters = ", ".join(f"{k}={v}" for k, v in sorted(json_value(row["parameters"]).items()))
        lines.append(
            (
                row["lens"],
                row["name"],
                int(row["metric_revision"]),
                row["space"],
                row["normalization"],
                integer_or_none(row["direction_seed"]),
                row["precision"],
                row["evaluation_set"],
                parameters,
                str(row["parameters_hash"])[:12],
            )
        )
    columns = [
        "lens",
        "protocol",
        "revision",
        "space",
        "normalization",
        "direction_seed",
        "precision",
        "evaluation_set",
        "parameters",
        "hash",
    ]
    return Table(
        name="protocols",
        title="Protocols",
        frame=pd.DataFrame(lines, columns=columns, dtype=object),
        query=source.command("protocols"),
    )


def integer_or_none(value: object) -> int | None:
    """Return a value of an integer column as an integer, None where it is missing (nan in a
    frame).
    """
    return None if value is None or pd.isna(value) else int(value)  # type: ignore[call-overload, arg-type]


def evaluation_sets(source: ReportSource) -> Table:
    """Return a table of the evaluation sets of the validation losses and the metrics."""
    rows = source.query("evaluation_sets")
    columns = ["name", "split", "seed", "examples", "tokens", "max_length", "packing"]
    frame = rows[columns].astype(object)
    for column in ("dataset_fingerprint", "tokenizer_hash", "sha256"):
        frame[column] = [str(v)[:12] for v in rows[column]]
    frame["packing"] = [bool(v) for v in frame["packing"]]
    return Table(
        name="evaluation_sets",
        title="Evaluation sets",
        frame=frame,
        query=source.command("evaluation_sets"),
    )


def runs(source: ReportSource) -> Table:
    """Return a table of every run with its hashes."""
    rows = source.runs
    columns = [
        "scale",
        "series",
        "seed",
        "kind",
        "status",
        "total_steps",
        "base_learning_rate",
        "effective_learning_rate",
        "precision",
        "world_size",
        "attempts",
    ]
    frame = rows[columns].astype(object).where(rows[columns].notna(), None)
    for column in ("config_hash", "init_hash", "dataset_fingerprint", "tokenizer_hash"):
        frame[column] = [str(v)[:8] for v in rows[column]]
    headings = [
        "scale",
        "method",
        "seed",
        "kind",
        "status",
        "steps",
        "learning rate",
        "effective",
        "precision",
        "processes",
        "attempts",
        "recipe",
        "start",
        "data",
        "tokenizer",
    ]
    return Table(
        name="runs",
        title="Runs",
        frame=frame,
        headings=headings,
        method_column="series",
        query=source.command("run_costs"),
        note="recipe, start, data and tokenizer are the first digits of their hashes; equal starts are equal "
        "effective weights at step 0.",
    )
