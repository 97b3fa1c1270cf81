"""The study at a glance: what there is, what failed, and the main table."""

from __future__ import annotations

import math

import pandas as pd

from lowrank.report.figure import Note, Section
from lowrank.report.source import Source
from lowrank.report.summary import spread
from lowrank.report.tables import Table


def build(source: Source) -> Section:
    """Counts, failures and the final losses."""
    section = Section(name="overview", title="At a glance", lead=str(source.study.config.get("description", "")))
    section.blocks.append(final_table(source))
    section.blocks += failures(source)
    return section


def facts(source: Source) -> list[tuple[str, str]]:
    """(number, what) pairs for the head of the page."""
    runs, status = source.runs, source.runs["status"].value_counts()
    done = int(status.get("done", 0))
    values = len(source.aggregates)
    found = [
        (str(runs["series"].nunique()), "methods" if runs["variant"].eq("").all() else "methods and variants"),
        (str(len(source.scales)), "scales" if len(source.scales) != 1 else "scale"),
        (str(runs["seed"].nunique()), "seeds" if runs["seed"].nunique() != 1 else "seed"),
        (f"{done} / {len(runs)}", "runs done"),
        (str(len(source.checkpoints)), "checkpoints"),
        (f"{values:,}".replace(",", "\u2009"), "aggregate values"),
    ]
    failed = int(status.get("failed", 0))
    return [*found, (str(failed), "failed run" if failed == 1 else "failed runs")] if failed else found


def final_rows(source: Source) -> pd.DataFrame:
    """The last checkpoint with a validation loss of each run that has not failed; where a cell has runs done, of those alone."""
    runs = source.runs.set_index("run_id")["status"]
    rows = source.checkpoints.assign(status=source.checkpoints["run_id"].map(runs))
    rows = rows[(rows["validation_loss_kind"] != "absent") & ~rows["status"].isin(["failed", "cancelled"])]
    if rows.empty:
        return rows
    rows = rows.loc[rows.groupby("run_id")["step"].idxmax()]
    finished = rows["status"].eq("done").groupby([rows["scale"], rows["series"]]).transform("any")
    return rows[rows["status"].eq("done") | ~finished]


def final_table(source: Source) -> Table:
    """Final validation loss and perplexity of each method at each scale."""
    final, runs, lines = final_rows(source), source.runs, []
    for scale in source.scales:
        for style in source.styles():
            mine = runs[(runs["scale"] == scale) & (runs["series"] == style.key)]
            if mine.empty:
                continue
            rows = final[(final["scale"] == scale) & (final["series"] == style.key)]
            found = spread(rows["validation_loss"])
            parameters = mine["parameters_total"].dropna()
            status = ", ".join(f"{n} {s}" for s, n in mine["status"].value_counts().items())
            lines.append(
                (
                    scale,
                    style.key,
                    math.exp(found.mean) if found.n else None,
                    str(found) if found.n else None,
                    int(rows["step"].max()) if len(rows) else None,
                    status,
                    int(parameters.iloc[0]) if len(parameters) else None,
                )
            )
    frame = pd.DataFrame(
        lines, columns=["scale", "method", "perplexity", "validation_loss", "step", "runs", "parameters"], dtype=object
    )
    return Table(
        name="final",
        title="Final checkpoints",
        frame=frame,
        method_column="method",
        query=source.command("checkpoints"),
        headings=["scale", "method", "perplexity", "validation loss, nats a token", "last step", "runs", "parameters"],
        note="Mean over seeds ± sample standard deviation; perplexity is exp of the mean loss.",
    )


def failures(source: Source) -> list[Note | Table]:
    """Runs that failed: a diverged run is a result, with its step, its last finite loss and the reason."""
    rows = source.runs[source.runs["status"] == "failed"]
    if rows.empty:
        return []
    columns = ["scale", "series", "seed", "failed_step", "last_finite_loss", "attempts", "error"]
    frame = rows[columns].astype(object).where(rows[columns].notna(), None)
    frame["failed_step"] = [None if pd.isna(v) else int(v) for v in rows["failed_step"]]
    diverged = int(rows["failed_step"].notna().sum())
    return [
        Note(
            text=f"{len(rows)} of {len(source.runs)} runs failed, {diverged} of them because loss or gradient "
            f"stopped being finite.",
            warning=True,
        ),
        Table(
            name="failed_runs",
            title="Failed runs",
            frame=frame,
            method_column="series",
            query=source.command("run_costs"),
            headings=["scale", "method", "seed", "step", "last finite loss", "attempts", "reason"],
        ),
    ]
