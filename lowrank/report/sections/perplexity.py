"""Perplexity of the final checkpoints beside the published values."""

from __future__ import annotations

import math
from dataclasses import replace

import pandas as pd

from lowrank.report.figure import Block, Figure, Missing, Note, Section
from lowrank.report.plot.forest import Forest, IntervalMark
from lowrank.report.sections.overview import final_rows
from lowrank.report.source import ReportSource
from lowrank.report.summary import spread
from lowrank.report.tables import Table


def build(source: ReportSource) -> Section:
    """Return our perplexities, the published ones and their difference, as a table and as a
    figure.
    """
    section = Section(
        name="perplexity",
        title="Perplexity",
        lead="exp of the validation loss of the last checkpoint. Published values stand where scale and method "
        "are those of a publication; "
        "they were measured on C4 with its own tokenizer, so a difference is meaningful only for runs on the same data.",
    )
    final = final_rows(source)
    if final.empty:
        section.blocks.append(
            Missing(
                reason="no checkpoint has a validation loss",
                command="lowrank study run FILE --only train",
            )
        )
        return section
    published = source.query("published", quantity="validation_perplexity")
    table, drawn = perplexity_table(source, final, published), figure(source, final)
    if "published" in table.frame.columns:
        section.blocks += [drawn, table]
    else:
        section.blocks += [replace(drawn, table=table), *for_orientation(published)]
    return section


def figure(source: ReportSource, final: pd.DataFrame) -> Figure:
    """Return one panel for each scale: a row for each method, with its seeds' mean and range."""
    panels = []
    for scale in source.scales:
        rows = []
        for style in source.styles():
            values = final[(final["scale"] == scale) & (final["series"] == style.key)][
                "validation_loss"
            ].map(perplexity)
            found = spread(values)
            if found.n:
                tip = f"{style.label} at {scale}: {found} ({found.n} seeds)"
                rows.append(
                    (style.label, [IntervalMark(style, found.mean, found.low, found.high, tip)])
                )
        if rows:
            panels.append(Forest(title=scale, rows=rows, x_label="validation perplexity"))
    return Figure(
        name="perplexity",
        title="Final validation perplexity",
        panels=panels,
        caption="Mean over seeds; bars span the seeds. Lower is better.",
        protocol=evaluation(source),
        query=source.command("checkpoints"),
    )


def perplexity_table(source: ReportSource, final: pd.DataFrame, published: pd.DataFrame) -> Table:
    """Return a table of our values and the published ones; without columns for those where none has
    one of these scales.
    """
    lines = []
    for scale in source.scales:
        for style in source.styles():
            method, _, variant = style.key.partition(" · ")
            values = final[(final["scale"] == scale) & (final["series"] == style.key)][
                "validation_loss"
            ].map(perplexity)
            found, known = (
                spread(values),
                published[(published["scale"] == scale) & (published["method"] == method)],
            )
            theirs = float(known["value"].iloc[0]) if len(known) and not variant else None
            if not found.n and theirs is None:
                continue
            ours = found.mean if found.n else None
            difference = ours - theirs if ours is not None and theirs is not None else None
            cited = (
                f"{known['source'].iloc[0]}, table {known['source_table'].iloc[0]}"
                if theirs is not None
                else None
            )
            lines.append(
                (
                    scale,
                    style.key,
                    ours,
                    found.deviation if found.n > 1 else None,
                    found.n,
                    theirs,
                    difference,
                    cited,
                )
            )
    columns = {
        "scale": "scale",
        "method": "method",
        "ours": "ours",
        "deviation": "± over seeds",
        "seeds": "seeds",
    }
    literature = {"published": "published", "difference": "ours − published", "source": "source"}
    frame = pd.DataFrame(lines, columns=[*columns, *literature], dtype=object)
    compared = bool(frame["published"].notna().any())
    headings = {**columns, **(literature if compared else {})}
    return Table(
        name="perplexity",
        title="Perplexity, ours and published" if compared else "Final perplexity",
        frame=frame[list(headings)],
        method_column="method",
        query=source.command("perplexity"),
        headings=list(headings.values()),
    )


def for_orientation(published: pd.DataFrame) -> list[Block]:
    """Return a note that states why there is nothing to compare with, and the published table."""
    scales = ", ".join(sorted(set(published["scale"]), key=lambda s: (len(s), s)))
    text = f"No scale of this study is a published one ({scales or 'none loaded'}), so there is nothing to compare with."
    return [Note(text=text), *reference(published)]


def reference(published: pd.DataFrame) -> list[Block]:
    """Return the published table, for orientation."""
    if published.empty:
        return []
    wide = published.pivot_table(
        index="method", columns="scale", values="value", sort=False
    ).reset_index()
    source = ", ".join(
        dict.fromkeys(
            f"{s}, table {t}"
            for s, t in zip(published["source"], published["source_table"], strict=True)
        )
    )
    wide.columns = [str(c) for c in wide.columns]
    return [
        Table(
            name="perplexity_published",
            title="Published perplexity, for orientation",
            frame=wide.astype(object),
            method_column="method",
            query="lowrank query published --param quantity=validation_perplexity",
            note=f"Published, not ours: {source}.",
        )
    ]


def evaluation(source: ReportSource) -> str:
    """Return a description of the evaluation sets of the validation losses."""
    rows = source.query("evaluation_sets")
    rows = rows[rows["checkpoints"] > 0]
    sets = [
        f"{row.name_} ({row.split}, {row.tokens} tokens, {str(row.sha256)[:8]})"
        for row in rows.rename(columns={"name": "name_"}).itertuples()
    ]
    tokens = sorted({int(t) for t in source.checkpoints["validation_tokens"] if t})
    scored = " or ".join(f"{t:,}".replace(",", "\u2009") for t in tokens)
    return (
        "validation loss"
        + (f" over {scored} tokens" if scored else "")
        + (f"; evaluation sets: {', '.join(sets)}" if sets else "")
    )


def perplexity(loss: float) -> float:
    """Return exp of a loss, infinite where it overflows."""
    return math.exp(loss) if loss < 700 else math.inf
