"""Spectra of the weights and of their updates."""

from __future__ import annotations

from dataclasses import replace

import pandas as pd

from lowrank.report.figure import Figure, Missing, Section
from lowrank.report.plot.charts import XY, Series
from lowrank.report.sections.further import others
from lowrank.report.source import ReportSource
from lowrank.report.tables import Table
from lowrank.report.trajectories import Quantity, seed_series, slug, trajectory_figures

SHAPES = ("effective_rank", "stable_rank", "spectral_gap", "threshold_rank")
NUMERICAL_ZERO = (
    1e-6  # of the largest singular value: what float32 weights hold below it is rounding
)
MODULES = ("q", "k", "v", "o", "gate", "up", "down")  # the order of the model; others follow
NAMES = {"w": "W at the last checkpoint", "dw": "ΔW, last minus first checkpoint"}


def build(source: ReportSource) -> Section:
    """Return trajectories of the shape metrics, then the distributions."""
    section = Section(
        name="spectra",
        title="Spectra",
        lead="Shape of the singular values of the attention and MLP matrices, mean over matrices: of the weights W and of their "
        "change ΔW since the checkpoint before. The effective rank is exp of the entropy of the normalised singular values; the "
        "stable rank ‖W‖²_F / σ₁²; the spectral gap (σ₁ − σ₂) / σ₁; the threshold rank counts those above a fixed threshold.",
    )
    weights = [Quantity(f"{shape}_w", shape.replace("_", " ") + " of W") for shape in SHAPES]
    updates = [Quantity(f"{shape}_dw", shape.replace("_", " ") + " of ΔW") for shape in SHAPES]
    norms = [
        Quantity("delta_norm", "‖ΔW‖", log=True),
        Quantity("delta_norm_relative", "‖ΔW‖ / ‖W‖", log=True),
    ]
    for name, title, quantities in (
        ("spectra_w", "Spectra of W over training", weights),
        ("spectra_dw", "Spectra of ΔW over training", updates),
        ("delta_norm", "Size of ΔW over training", norms),
    ):
        section.blocks += trajectory_figures(
            source,
            source.aggregates,
            quantities,
            name=name,
            title=title,
            caption="Mean over seeds; the band spans the seeds.",
        )
    shown = [quantity.metric for quantity in (*weights, *updates, *norms)]
    section.blocks += others(source, "spectra", shown)
    rows = source.query("spectrum_shapes")
    for matrix in ("dw", "w"):
        section.blocks += distributions(source, rows[rows["matrix"] == matrix], matrix)
    if section.empty:
        section.blocks.append(
            Missing(reason="no spectrum has been measured", command="lowrank measure FILE")
        )
    elif rows.empty:
        section.blocks.append(
            Missing(reason="no singular values have been stored", command="lowrank measure FILE")
        )
    return section


def distributions(source: ReportSource, rows: pd.DataFrame, matrix: str) -> list[Figure]:
    """Return the singular values by projection type, one figure for each protocol and scale."""
    figures = []
    for place, (way, of_way) in enumerate(source.ways(rows, "matrix")):
        for scale in source.scales:
            part = of_way[of_way["scale"] == scale]
            part = part[part["step"] == part.groupby("series")["step"].transform("max")].assign(
                index=lambda r: r["position"] + 1
            )
            largest = part.groupby(["series", "module"])["mean"].transform("max")
            drawn = part[part["mean"] > NUMERICAL_ZERO * largest]
            panels = [
                XY(
                    title=module,
                    series=series,
                    x_label="index",
                    y_label="singular value",
                    log_y=True,
                    height=200,
                )
                for module in sorted(
                    set(drawn["module"]),
                    key=lambda m: (MODULES.index(m) if m in MODULES else len(MODULES), m),
                )
                if (
                    series := without_markers(
                        seed_series(source, drawn[drawn["module"] == module], "index", "mean")
                    )
                )
            ]
            if panels:
                label = f" ({way})" if place else ""
                figures.append(
                    Figure(
                        name=f"singular_values_{matrix}_{slug(scale)}"
                        + (f"-{slug(way)}" if place else ""),
                        panels=panels,
                        title=f"Singular values by projection type, {scale}: {NAMES[matrix]}{label}",
                        legend=source.styles(part["series"]),
                        caption="Mean over layers and seeds; the band spans the seeds. A line ends where the rank does: singular "
                        "values below a millionth of the largest are rounding and are not drawn.",
                        protocol=source.describe(part),
                        query=source.command("spectrum_shapes"),
                        folded=place > 0 or matrix == "w",
                        table=table(source, part, matrix, scale),
                    )
                )
    return figures


def without_markers(series: list[Series]) -> list[Series]:
    """Return the same curves as plain lines: a spectrum has too many points to mark each."""
    return [replace(one, markers=False) for one in series]


def table(source: ReportSource, rows: pd.DataFrame, matrix: str, scale: str) -> Table:
    """Return the largest, median and smallest singular value of each method and projection type."""
    lines = []
    for (series, module), group in rows.groupby(["series", "module"], sort=False):
        means = group.groupby("position")["mean"].mean().sort_index()
        lines.append(
            (
                series,
                module,
                float(means.iloc[0]),
                float(means.iloc[len(means) // 2]),
                float(means.iloc[-1]),
                len(means),
            )
        )
    frame = pd.DataFrame(
        lines, columns=["method", "module", "largest", "median", "smallest", "count"], dtype=object
    )
    return Table(
        name=f"singular_values_{matrix}_{slug(scale)}",
        title=f"Singular values, {scale}",
        frame=frame,
        method_column="method",
        query=source.command("spectrum_shapes"),
        note="Means over layers and seeds; every value is in the store.",
    )
