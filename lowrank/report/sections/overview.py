"""The study at a glance: its size, its failures, and the main table."""

from __future__ import annotations

import math

import pandas as pd

from lowrank.report.figure import Note, Section
from lowrank.report.plot.axes import MINUS, number
from lowrank.report.source import ReportSource
from lowrank.report.summary import spread
from lowrank.report.tables import Table


def build(source: ReportSource) -> Section:
    """Return counts, failures and the final losses."""
    section = Section(
        name="overview", title="At a glance", lead=str(source.study.config.get("description", ""))
    )
    section.blocks += [Note(text=sentence) for sentence in findings(source)]
    section.blocks.append(final_table(source))
    section.blocks += failures(source)
    return section


def facts(source: ReportSource) -> list[tuple[str, str]]:
    """Return (number, what) pairs for the head of the page."""
    runs, status = source.runs, source.runs["status"].value_counts()
    done = int(status.get("done", 0))
    values = len(source.aggregates)
    found = [
        (
            str(runs["series"].nunique()),
            "methods" if runs["variant"].eq("").all() else "methods and variants",
        ),
        (str(len(source.scales)), "scales" if len(source.scales) != 1 else "scale"),
        (str(runs["seed"].nunique()), "seeds" if runs["seed"].nunique() != 1 else "seed"),
        (f"{done} / {len(runs)}", "runs done"),
        (str(len(source.checkpoints)), "checkpoints"),
        (f"{values:,}".replace(",", "\u2009"), "aggregate values"),
    ]
    failed = int(status.get("failed", 0))
    return (
        [*found, (str(failed), "failed run" if failed == 1 else "failed runs")] if failed else found
    )


def final_rows(source: ReportSource) -> pd.DataFrame:
    """Return the last checkpoint with a validation loss of each run that has not failed; only of
    finished runs where a cell has any.
    """
    runs = source.runs.set_index("run_id")["status"]
    rows = source.checkpoints.assign(status=source.checkpoints["run_id"].map(runs))
    rows = rows[
        (rows["validation_loss_kind"] != "absent") & ~rows["status"].isin(["failed", "cancelled"])
    ]
    if rows.empty:
        return rows
    rows = rows.loc[rows.groupby("run_id")["step"].idxmax()]
    finished = rows["status"].eq("done").groupby([rows["scale"], rows["series"]]).transform("any")
    return rows[rows["status"].eq("done") | ~finished]


def findings(source: ReportSource) -> list[str]:
    """Return the findings in a few sentences: the lowest loss at each scale, and what geometry adds
    to the loss.
    """
    final, found = final_rows(source), []
    for scale in source.scales:
        means = (
            final[final["scale"] == scale].groupby("series")["validation_loss"].mean().sort_values()
        )
        means = means[means.map(math.isfinite)]
        if len(means) > 1:
            (first, lowest), (second, next_lowest) = list(means.items())[:2]
            found.append(
                f"{scale}: {first} has the lowest validation loss ({lowest:.3f}), before {second} ({next_lowest:.3f})"
            )
    sentences = ["; ".join(found) + "."] if found else []
    fits = source.query("predictor_fits")
    fits = fits[(fits["selection"] == "fixed") & (fits["model"] == "linear")].drop_duplicates(
        ["feature_set", "scheme"], keep="last"
    )
    by_set = fits[fits["scheme"] == "lomo"].set_index("feature_set")
    if {"loss_only", "loss_plus_geometry"} <= set(by_set.index):
        alone, both = (by_set.loc[name].to_dict() for name in ("loss_only", "loss_plus_geometry"))
        values = [
            float(v)
            for v in (alone["r2"], both["r2"], both["permutation_p"])
            if v is not None and not pd.isna(v)
        ]
        if len(values) == 3:
            sentences.append(added(values[0], values[1], values[2], int(both["n"])))
    return sentences


def added(alone: float, both: float, p: float, checkpoints: int) -> str:
    """Return a sentence that states what geometry adds to the loss, with its p value where it adds
    anything.
    """
    result = (
        f"geometry raises it to {decimals(both)} (permutation p = {number(p, 2)})"
        if both > alone
        else f"with geometry beside it {decimals(both)}, so that geometry does not improve the prediction"
    )
    return (
        "Predicting the downstream scores of a method from the other methods: out-of-fold R² "
        f"{decimals(alone)} from the loss alone; {result}; {checkpoints} checkpoints."
    )


def decimals(value: float) -> str:
    """Return a number with two decimals and a real minus sign, and none before a zero."""
    return f"{value:z.2f}".replace("-", MINUS)


def final_table(source: ReportSource) -> Table:
    """Return a table of the final validation loss and perplexity of each method at each scale."""
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
                    found.mean if found.n else None,
                    found.deviation if found.n > 1 else None,
                    int(rows["step"].max()) if len(rows) else None,
                    status,
                    int(parameters.iloc[0]) if len(parameters) else None,
                )
            )
    frame = pd.DataFrame(
        lines,
        columns=[
            "scale",
            "method",
            "perplexity",
            "validation_loss",
            "standard_deviation",
            "step",
            "runs",
            "parameters",
        ],
        dtype=object,
    )
    kept = [c for c in frame.columns if c != "standard_deviation" or frame[c].notna().any()]
    headings = {
        "validation_loss": "validation loss",
        "standard_deviation": "± over seeds",
        "step": "last step",
    }
    return Table(
        name="final",
        title="Final checkpoints",
        frame=frame[kept],
        method_column="method",
        query=source.command("checkpoints"),
        headings=[headings.get(c, c) for c in kept],
        note="Validation loss in nats per token, mean over seeds with its sample standard deviation; perplexity is its exp.",
    )


def failures(source: ReportSource) -> list[Note | Table]:
    """Return the failed runs: a diverged run is a result, with its step, its last finite loss and
    the reason.
    """
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
