"""Training curves: batch loss, validation loss, learning rate and gradient norm."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from lowrank.report.figure import Figure, Missing, Section
from lowrank.report.plot.charts import XY, Series
from lowrank.report.sections.perplexity import evaluation
from lowrank.report.source import ReportSource
from lowrank.report.tables import Table
from lowrank.report.trajectories import finite, seed_series

POINTS = 240  # a longer curve is drawn as the means of this many bins
SMOOTHING = 0.9  # of the exponential average behind the batch loss


def build(source: ReportSource) -> Section:
    """Return the curves of the loss, then of learning rate and gradient norm."""
    section = Section(name="training", title="Training curves")
    log = source.query("training_curve")
    losses = finite(source.checkpoints, "validation_loss")
    if log.empty and losses.empty:
        section.blocks.append(
            Missing(
                reason="no run has logged a training step",
                command="lowrank study run FILE --only train",
            )
        )
        return section
    if len(losses):
        section.blocks.append(validation_figure(source, losses))
    if len(log):
        section.blocks.append(loss_figure(source, log))
        section.blocks.append(drive_figure(source, log))
    return section


def validation_figure(source: ReportSource, rows: pd.DataFrame) -> Figure:
    """Return a figure of the validation loss of every checkpoint."""
    panels = []
    for scale in source.scales:
        series = seed_series(source, rows[rows["scale"] == scale], "step", "validation_loss")
        if series:
            panels.append(
                XY(
                    title=scale,
                    series=series,
                    x_label="step",
                    y_label="validation loss, nats per token",
                )
            )
    columns = [
        "scale",
        "series",
        "seed",
        "step",
        "tokens_seen",
        "validation_loss",
        "validation_tokens",
    ]
    table = Table(
        name="validation_loss",
        title="Validation loss",
        frame=rows[columns].astype(object),
        method_column="series",
        headings=[
            "scale",
            "method",
            "seed",
            "step",
            "tokens seen",
            "validation loss",
            "tokens scored",
        ],
        query=source.command("checkpoints"),
    )
    return Figure(
        name="validation_loss",
        title="Validation loss",
        panels=panels,
        legend=source.styles(rows["series"]),
        table=table,
        caption="Mean over seeds; the band spans the seeds.",
        protocol=evaluation(source),
        query=source.command("checkpoints"),
    )


def loss_figure(source: ReportSource, log: pd.DataFrame) -> Figure:
    """Return a figure of the loss of the training batches, smoothed, one line per method."""
    panels = [
        XY(title=scale, series=series, x_label="step", y_label="training loss, nats per token")
        for scale in source.scales
        if (series := curve(source, log[log["scale"] == scale], "loss", smooth=True))
    ]
    return Figure(
        name="training_loss",
        title="Training loss",
        panels=panels,
        legend=source.styles(log["series"]),
        query=source.command("training_curve"),
        caption=f"Loss of each update's batch, exponential average (factor {SMOOTHING} per step), mean over "
        f"seeds; the band spans the seeds.",
        protocol="recorded during training",
        table=log_table(source, log),
    )


def drive_figure(source: ReportSource, log: pd.DataFrame) -> Figure:
    """Return a figure of learning rate and gradient norm."""
    panels = []
    for column, label in (("learning_rate", "learning rate"), ("gradient_norm", "gradient norm")):
        for scale in source.scales:
            series = curve(source, log[log["scale"] == scale], column)
            if series:
                panels.append(
                    XY(
                        title=f"{label} · {scale}",
                        series=series,
                        x_label="step",
                        y_label=label,
                        log_y=column == "gradient_norm",
                    )
                )
    return Figure(
        name="training_drive",
        title="Learning rate and gradient norm",
        panels=panels,
        legend=source.styles(log["series"]),
        folded=True,
        protocol="recorded during training; the gradient norm is that before clipping",
        query=source.command("training_curve"),
    )


def curve(
    source: ReportSource, log: pd.DataFrame, column: str, *, smooth: bool = False
) -> list[Series]:
    """Return one series per method, thinned to :data:`POINTS`."""
    rows = finite(log.assign(shown=log[column].astype(float)), "shown").copy()
    if rows.empty:
        return []
    if smooth:
        rows["shown"] = rows.sort_values("step").groupby("run_id")["shown"].transform(averaged)
    span = max(1, int(rows["step"].max()) // POINTS)
    if span > 1:
        rows["step"] = (rows["step"] // span) * span + span // 2
        rows = rows.groupby(["series", "seed", "step"])["shown"].mean().reset_index()
    return seed_series(source, rows, "step", "shown")


def averaged(values: pd.Series[float]) -> pd.Series[float]:
    """Return the exponential average without the bias of its start."""
    return values.ewm(alpha=1 - SMOOTHING, adjust=True).mean()


def log_table(source: ReportSource, log: pd.DataFrame) -> Table:
    """Return the loss at about twenty steps of every run."""
    steps: Sequence[int] = sorted(set(log["step"]))
    kept = {steps[round(i)] for i in np.linspace(0, len(steps) - 1, min(20, len(steps)))}
    columns = ["scale", "series", "seed", "step", "loss", "learning_rate", "gradient_norm"]
    return Table(
        name="training_loss",
        title="Training log, thinned",
        frame=log[log["step"].isin(kept)][columns].astype(object),
        method_column="series",
        headings=["scale", "method", "seed", "step", "loss", "learning rate", "gradient norm"],
        query=source.command("training_curve"),
        note="Every logged step is in the store.",
    )
