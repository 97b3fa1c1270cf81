"""Activations against the full-rank run: over training, and layer by layer."""

from __future__ import annotations

import pandas as pd

from lowrank.report.figure import Figure, Missing, Section
from lowrank.report.plot.axes import number
from lowrank.report.plot.charts import Heat
from lowrank.report.source import ReportSource
from lowrank.report.trajectories import Quantity, finite, slug, trajectory_figures

ORDER = ("activation_cka", "activation_l2", "activation_cosine", "activation_cka_debiased")
OPEN = 2  # metrics whose heat maps are shown unfolded


def build(source: ReportSource) -> Section:
    """Return the trajectories of the means over layers, then a heat map for each metric."""
    section = Section(
        name="activations",
        title="Activations",
        lead="Hidden states after each layer against those of full_rank at the same scale, step and seed, on a fixed set of texts. "
        "Linear CKA (centred kernel alignment) compares their geometry up to rotation and scale, 1 being the same; the L2 distance "
        "and the cosine compare them vector by vector.",
    )
    found = set(source.shown_in("activations")["metric"])
    metrics = sorted(found, key=lambda m: (ORDER.index(m) if m in ORDER else len(ORDER), m))
    quantities = [Quantity(m, label(m), log=m.endswith("_l2")) for m in metrics]
    section.blocks += trajectory_figures(
        source,
        source.aggregates,
        quantities,
        name="activations",
        title="Activation similarity over training",
        caption="Mean over layers and seeds; the band spans the seeds.",
    )
    for place, metric in enumerate(metrics):
        layers = source.query("layer_values", metric=metric)
        layers = finite(layers[layers["metric"] == metric])
        section.blocks += heat_maps(source, layers, metric, folded=place >= OPEN)
    if section.empty:
        section.blocks.append(
            Missing(reason="no activations have been compared", command="lowrank measure FILE")
        )
    return section


def label(metric: str) -> str:
    """Return a metric's name without its family."""
    names = {"cka": "CKA", "l2": "L2 distance", "cosine": "cosine", "cka_debiased": "CKA, debiased"}
    short = metric.removeprefix("activation_")
    return names.get(short, short.replace("_", " "))


def heat_maps(
    source: ReportSource, rows: pd.DataFrame, metric: str, *, folded: bool
) -> list[Figure]:
    """Return heat maps of layer by step for each method; methods of one scale share their
    colours.
    """
    figures = []
    for place, (way, part) in enumerate(source.ways(rows, "metric")):
        panels: list[Heat] = []
        counts: list[int] = []
        for scale in source.scales:
            of_scale = part[part["scale"] == scale]
            # The reference against itself is constant by definition.
            spreads = of_scale.groupby("series")["value"].agg(["min", "max"])
            shown = spreads.index[spreads["min"] < spreads["max"]]
            of_scale = of_scale[of_scale["series"].isin(shown)]
            if of_scale.empty:
                continue
            log, values = metric.endswith("_l2"), of_scale["value"]
            # A distance of 0, as of equal initial weights, has no logarithm:
            # the colours begin above it.
            limits = (float(values[values > 0].min() if log else values.min()), float(values.max()))
            styles = source.styles(shown)
            panels += [
                heat(of_scale[of_scale["series"] == s.key], f"{s.label} · {scale}", limits, log=log)
                for s in styles
            ]
            counts.append(len(styles))
        if panels:
            figures.append(
                Figure(
                    name=slug(metric).replace("-", "_")
                    + "_layers"
                    + (f"-{slug(way)}" if place else ""),
                    panels=panels,
                    rows=counts,
                    folded=folded or place > 0,
                    title=f"{label(metric)}, layer by step" + (f" ({way})" if place else ""),
                    caption="Mean over seeds; emb is the output of the embedding. Methods of one scale share the colour scale"
                    + (", which is logarithmic." if metric.endswith("_l2") else "."),
                    protocol=source.describe(part),
                    query=source.command("layer_values", metric=metric),
                )
            )
    return figures


def heat(rows: pd.DataFrame, title: str, limits: tuple[float, float], *, log: bool) -> Heat:
    """Return one method's heat map, with the deepest layer on top."""
    means = rows.groupby(["layer", "step"])["value"].mean()
    layers, steps = sorted(set(rows["layer"]), reverse=True), sorted(set(rows["step"]))
    values = [
        [float(means[(layer, step)]) if (layer, step) in means.index else None for step in steps]
        for layer in layers
    ]
    tips = [
        [f"layer {layer}, step {step}: {number(v)}" for step, v in zip(steps, line, strict=True)]
        for layer, line in zip(layers, values, strict=True)
    ]
    names = ["emb" if layer == -1 else str(layer) for layer in layers]
    return Heat(
        title=title,
        rows=names,
        columns=[str(s) for s in steps],
        values=values,
        tips=tips,
        x_label="step",
        y_label="layer",
        limits=limits,
        log=log,
        cell_height=24.0,
    )
