"""Whether geometry predicts downstream performance beyond the loss: correlations, fits and
predictions.
"""

from __future__ import annotations

import math
from typing import Any

import pandas as pd

from lowrank.predict.crossval import PredictError
from lowrank.predict.features import LOSS, PUBLISHED_GEOMETRY, TARGET, feature_table
from lowrank.predict.selection import correlations
from lowrank.predict.study import FIGURES, SCHEMES, SELECTIONS, WITHOUT_REFERENCE
from lowrank.report.figure import Block, Figure, Missing, Section
from lowrank.report.plot.axes import number
from lowrank.report.plot.charts import XY, Series, Style
from lowrank.report.plot.forest import Forest, IntervalMark
from lowrank.report.source import ReportSource, json_value
from lowrank.report.tables import Table

KEY = ["feature_set", "selection", "scheme", "model", "target"]
SHOWN = ("loss_only", "geometry_only", "loss_plus_geometry")
P_LEGEND = (
    "p: permutation test of what geometry adds to the loss, complete runs exchanged; beside an R² lower than that of the loss alone, "
    "a small p means that geometry holds information that the fit could not use. "
)
SELECTION_LEGEND = (
    "Selection: "
    + "; ".join(f"{key.replace('_', ' ')}: {text}" for key, text in SELECTIONS.items())
    + "."
)


def build(source: ReportSource) -> Section:
    """Return the correlation table, fits beside the published ones, and predictions against
    scores.
    """
    section = Section(
        name="predictor",
        title="Predictor",
        lead="The mean downstream score of a checkpoint, predicted from its loss and its geometry. Every "
        "prediction is out of fold: made by a fit "
        "that has seen no row of the size, method, run or seed that was left out. Figures are pooled over folds.",
    )
    fits = source.query("predictor_fits").drop_duplicates(KEY, keep="last")
    try:
        section.blocks.append(correlation_table(source))
    except PredictError:
        section.blocks.append(
            Missing(
                reason="no checkpoint has a downstream score to predict",
                command="lowrank evaluate FILE",
            )
        )
    if fits.empty:
        section.blocks.append(
            Missing(reason="no predictor has been fitted", command="lowrank predict FILE")
        )
        return section
    section.blocks[:0] = [
        summary_figure(source, fits),
        *fit_tables(source, fits),
        scatter(source, fits),
    ]
    return section


def title(scheme: str) -> str:
    """Return a scheme in words."""
    return f"leave one {SCHEMES[scheme][0]} out" if scheme in SCHEMES else scheme


def summary_figure(source: ReportSource, fits: pd.DataFrame) -> Figure:
    """Return the pooled Pearson correlations with intervals, one panel per scheme, one row per
    feature set and selection.
    """
    panels = []
    for scheme in [s for s in SCHEMES if s in set(fits["scheme"])]:
        rows = []
        of_scheme = fits[(fits["scheme"] == scheme) & (fits["model"] == "linear")]
        for place, (feature_set, selection) in enumerate(
            dict.fromkeys(zip(of_scheme["feature_set"], of_scheme["selection"], strict=True))
        ):
            found = of_scheme[
                (of_scheme["feature_set"] == feature_set) & (of_scheme["selection"] == selection)
            ].iloc[0]
            rows.append((name(feature_set, selection), [pearson(found, place)]))
        panels.append(
            Forest(title=title(scheme), rows=rows, x_label="Pearson, pooled out of fold", level=0.0)
        )
    return Figure(
        name="predictor",
        title="How well the score is predicted",
        panels=panels,
        columns=2,
        table=all_fits(source, fits),
        query=source.command("predictor_fits"),
        caption="Linear regression on standardised features. Bars are 95% bootstrap intervals in which complete "
        "runs are drawn, since the rows of one run are not independent.",
        protocol=f"target {TARGET}: unweighted mean over tasks; feature {LOSS} is the validation loss",
    )


def name(feature_set: str, selection: str) -> str:
    """Return a row's name."""
    plain = feature_set.replace(WITHOUT_REFERENCE, ", no reference").replace("_", " ")
    return plain if selection == "fixed" else f"{plain}, {selection.replace('_', ' ')}"


def pearson(fit: pd.Series[Any], place: int) -> IntervalMark:
    """Return a fit's correlation with its interval, in one colour per feature set."""
    value, low, high = (
        float(fit[c]) if not pd.isna(fit[c]) else math.nan
        for c in ("pearson", "pearson_low", "pearson_high")
    )  # type: ignore[arg-type, call-overload]
    base = str(fit["feature_set"]).replace(WITHOUT_REFERENCE, "")
    slot = SHOWN.index(base) if base in SHOWN else 3
    style = Style(
        key=f"fit {place}",
        label=str(fit["feature_set"]),
        color=f"slot{slot}",
        marker=("circle", "square", "triangle", "diamond")[slot],
    )
    tip = f"{fit['feature_set']}, {fit['selection']}: {number(value, 3)} ({number(low, 3)} … {number(high, 3)}), n = {fit['n']}"
    return IntervalMark(style, value, low, high, tip)


def fit_tables(source: ReportSource, fits: pd.DataFrame) -> list[Block]:
    """Return an overview of the fits and the published ones; the table under the figure holds every
    figure of every fit.
    """
    return [overview_table(source, fits), *published_table(source)]


def ordered(fits: pd.DataFrame) -> pd.DataFrame:
    """Return fits by scheme, then feature set, in the order of the published study."""
    order = {s: i for i, s in enumerate(SCHEMES)}
    place = {name: i for i, name in enumerate(SHOWN)}
    sets = fits["feature_set"].str.replace(WITHOUT_REFERENCE, "").map(place).fillna(len(place))
    selections = fits["selection"].map({name: i for i, name in enumerate(SELECTIONS)})
    fits = fits.assign(order=fits["scheme"].map(order), place=sets, chosen=selections)
    return fits.sort_values(["order", "place", "feature_set", "chosen", "model"], kind="stable")


def overview_table(source: ReportSource, fits: pd.DataFrame) -> Table:
    """Return R² and ranking accuracy out of fold of linear models, one row per feature set and
    selection, for each scheme.
    """
    linear = ordered(fits[fits["model"] == "linear"])
    schemes = [s for s in SCHEMES if s in set(linear["scheme"])]
    lines = []
    for (feature_set, selection), group in linear.groupby(["feature_set", "selection"], sort=False):
        by_scheme = group.set_index("scheme")
        values = [absent(by_scheme["r2"].get(s)) for s in schemes]
        p = [absent(by_scheme["permutation_p"].get(s)) for s in schemes]
        lines.append(
            (
                name(str(feature_set), str(selection)),
                int(group["n"].iloc[0]),
                absent(group["r2_in_sample"].iloc[0]),
                *values,
                *p,
            )
        )
    columns = [
        "features",
        "rows",
        "r2_in_sample",
        *(f"r2_{s}" for s in schemes),
        *(f"p_{s}" for s in schemes),
    ]
    frame = pd.DataFrame(lines, columns=columns, dtype=object)
    kept = [c for c in columns if not c.startswith("p_") or frame[c].notna().any()]
    headings = {"features": "features", "rows": "rows", "r2_in_sample": "R² in sample"}
    headings |= {f"r2_{s}": f"R², {SCHEMES[s][0]} left out" for s in schemes} | {
        f"p_{s}": f"p, {SCHEMES[s][0]}" for s in schemes
    }
    return Table(
        name="predictor_overview",
        title="What each feature set explains",
        frame=frame[kept],
        headings=[headings[c] for c in kept],
        digits=3,
        query=source.command("predictor_fits"),
        note="R² out of fold; below 0, the mean of all scores would have been the better prediction. "
        f"{P_LEGEND}{SELECTION_LEGEND}",
    )


def all_fits(source: ReportSource, fits: pd.DataFrame) -> Table:
    """Return a table of every figure of every fit."""
    headings = {**FIGURES, "used": "feature names"}
    fits = ordered(fits).assign(
        used=lambda f: [", ".join(json_value(v).get("names", [])) for v in f["features"]]
    )
    frame = fits[list(headings)].astype(object).where(fits[list(headings)].notna(), None)
    return Table(
        name="predictor",
        title="Cross-validated fits",
        frame=frame,
        headings=list(headings.values()),
        digits=3,
        query=source.command("predictor_fits"),
        note=f"{P_LEGEND}{SELECTION_LEGEND} ranking: share of "
        "pairs of checkpoints put in the right order. without_reference: rows left out "
        "whose activations are compared with themselves.",
    )


def published_table(source: ReportSource) -> list[Table]:
    """Return the published figures, where the store has them."""
    published = pd.concat(
        [
            source.query("published", quantity=q)
            for q in ("loso_pearson", "lomo_pearson", "in_sample_r2")
        ]
    )
    if published.empty:
        return []
    wide = published.pivot_table(
        index="item", columns="quantity", values="value", sort=False
    ).reset_index()
    wide.columns = [str(c) for c in wide.columns]
    cited = f"{published['source'].iloc[0]}, table {published['source_table'].iloc[0]}"
    return [
        Table(
            name="predictor_published",
            title="Published predictor, for comparison",
            frame=wide.astype(object),
            digits=3,
            headings=[{"item": "features"}.get(c, c.replace("_", " ")) for c in wide.columns],
            note=f"Published, not ours: {cited}; 90 checkpoints, features chosen on all rows.",
            query="lowrank query published",
        )
    ]


def scatter(source: ReportSource, fits: pd.DataFrame) -> Figure:
    """Return predicted against stored scores for the three sets of the study, by method."""
    rows = source.query("predictions")
    schemes = [s for s in SCHEMES if s in set(fits["scheme"])][:2]
    chosen = fits[
        fits["scheme"].isin(schemes)
        & (fits["model"] == "linear")
        & (fits["selection"] == "fixed")
        & fits["feature_set"].isin(SHOWN)
    ]
    panels = []
    for scheme in schemes:
        for feature_set in SHOWN:
            ids = chosen[(chosen["scheme"] == scheme) & (chosen["feature_set"] == feature_set)][
                "fit_id"
            ]
            part = rows[rows["fit_id"].isin(ids)]
            if len(part):
                panels.append(
                    XY(
                        title=f"{feature_set.replace('_', ' ')} · {title(scheme)}",
                        series=points(source, part),
                        x_label="stored score",
                        y_label="predicted, out of fold",
                        diagonal=True,
                        height=280,
                    )
                )
    frame = rows[rows["fit_id"].isin(chosen["fit_id"])][
        ["scheme", "feature_set", "row_label", "fold", "target", "predicted"]
    ].astype(object)
    return Figure(
        name="predictions",
        title="Predicted and stored scores",
        panels=panels,
        legend=source.styles(rows["series"]),
        columns=3,
        query=source.command("predictions"),
        caption="One marker per checkpoint; on the dashed line the prediction is exact.",
        protocol="linear regression, the features of the set",
        table=Table(
            name="predictions",
            title="Predictions",
            frame=frame,
            query=source.command("predictions"),
        ),
    )


def points(source: ReportSource, rows: pd.DataFrame) -> list[Series]:
    """Return one series per method, without lines."""
    found = []
    for style in source.styles(rows["series"]):
        part = rows[rows["series"] == style.key]
        tips = [
            f"{label}: stored {number(t)}, predicted {number(p)}"
            for label, t, p in zip(
                part["row_label"], part["target"], part["predicted"], strict=True
            )
        ]
        found.append(
            Series(
                style=style,
                x=[float(v) for v in part["target"]],
                y=[float(v) for v in part["predicted"]],
                tips=tips,
                line=False,
            )
        )
    return found


def correlation_table(source: ReportSource) -> Table:
    """Return the correlation of each feature with the score at each scale and pooled, whether its
    signs agree, and its published rank.
    """
    table = feature_table(source.store, source.name, source.preset)
    rows = table.complete([])
    if rows.frame.empty:
        raise PredictError("no checkpoint has all downstream scores")
    lines = []
    for feature in table.features:
        part = rows.complete([feature])
        if len(part.frame) > 2:
            found = correlations(
                part.frame[[feature]], part.frame[TARGET].to_numpy(dtype=float), part.frame["scale"]
            ).iloc[0]
            lines.append(
                (
                    feature,
                    *(absent(found.get(s)) for s in source.scales),
                    absent(found["pooled"]),
                    bool(found["consistent"]),
                    len(part.frame),
                    known(source, feature),
                )
            )
    lines.sort(key=lambda line: -abs(float(line[len(source.scales) + 1] or 0.0)))
    frame = pd.DataFrame(
        lines,
        columns=["feature", *source.scales, "pooled", "consistent", "rows", "published"],
        dtype=object,
    )
    note = f"Pearson correlation with {TARGET} over checkpoints after step 0. Published: mean |r| of the features chosen there."
    return Table(
        name="correlations",
        title="Correlation with the downstream score",
        frame=frame,
        digits=3,
        query=source.command("feature_values"),
        note=note,
        headings=["feature", *source.scales, "pooled", "one sign", "rows", "published |r|"],
    )


def absent(value: object) -> float | None:
    """Return a correlation, None where it does not exist."""
    return None if value is None or pd.isna(value) else float(value)  # type: ignore[call-overload, arg-type]


def known(source: ReportSource, feature: str) -> float | None:
    """Return the published |r| of a feature."""
    if feature not in PUBLISHED_GEOMETRY:
        return None
    rows = source.query("published", quantity="")
    rows = rows[rows["quantity"].str.startswith("abs_correlation") & rows["item"].eq(feature)]
    return float(rows["value"].iloc[0]) if len(rows) else None
