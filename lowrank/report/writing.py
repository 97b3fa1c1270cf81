"""Write the report of a study into a folder, atomically."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from lowrank import __version__
from lowrank.errors import LowrankError, UsageError
from lowrank.files import atomic_folder
from lowrank.progress import progress_bar
from lowrank.report import page
from lowrank.report.figure import Missing, Note, Section
from lowrank.report.plot.raster import draw, pdf, png
from lowrank.report.plot.scene import standalone
from lowrank.report.sections import (
    activations,
    barriers,
    comparison,
    downstream,
    further,
    landscape,
    overview,
    perplexity,
    predictor,
    provenance,
    resources,
    seeds,
    spectra,
    training,
)
from lowrank.report.source import ReportSource
from lowrank.store import Store

MARKER = ".lowrank-report"
log = logging.getLogger(__name__)
CHAPTERS: tuple[Callable[[ReportSource], Section | None], ...] = (
    overview.build,
    perplexity.build,
    training.build,
    landscape.build,
    barriers.build,
    spectra.build,
    activations.build,
    further.build,
    downstream.build,
    predictor.build,
    resources.build,
    seeds.build,
    provenance.build,
)


def write(
    store: Store,
    study_name: str,
    out: Path,
    *,
    against: tuple[Store, str] | None = None,
    progress: bool = True,
) -> Path:
    """Write the report of a study into the folder ``out``; return the path of its ``index.html``.

    ``out`` then holds ``index.html`` (self-contained), ``tables/`` (CSV and Markdown of every
    table) and ``figures/`` (SVG, PNG and PDF of every figure). It replaces an existing report in
    one step; a folder with any other content is refused. ``against`` adds a comparison with another
    study, given by its store and name.

    Raises UsageError for a study that the store does not have, and LowrankError if ``out`` cannot
    be written.
    """
    out = Path(out).absolute()
    check_target(out)
    log.info("writing the report of '%s' to %s", study_name, out)
    source = ReportSource(store, study_name)
    sections = build(source, ReportSource(*against) if against else None, progress)
    try:
        with atomic_folder(out, replace=True) as folder:
            fill(folder, source, sections, progress)
    except OSError as error:
        fix = "free the disk, fix the permissions, or name another folder: lowrank report FILE --out DIR"
        raise LowrankError(
            f"the report cannot be written to {out} ({error.strerror or error}); {fix}"
        ) from error
    log.info("the report of '%s' is written: %d sections", study_name, len(sections))
    return out / "index.html"


def build(source: ReportSource, other: ReportSource | None, progress: bool) -> list[Section]:
    """Return all chapters, followed by a section on what would fill the empty ones."""
    found = []
    for chapter in progress_bar(
        CHAPTERS, desc="report", unit="chapter", disable=None if progress else True
    ):
        section = chapter(source)
        if section is not None:
            found.append(section)
    if other is not None:
        found.insert(1, comparison.build(source, other))
    return [*found, remaining(source, found)]


def remaining(source: ReportSource, sections: list[Section]) -> Section:
    """Return the section that lists what is missing, with the commands that would change this."""
    section = Section(
        name="missing",
        title="What would fill the empty sections",
        lead="FILE is the study file. Each command does what is still missing and nothing twice.",
    )
    unfinished = source.runs[~source.runs["status"].isin(["done", "failed"])]
    if len(unfinished):
        section.blocks.append(
            Missing(reason=f"{len(unfinished)} runs are not done", command="lowrank study run FILE")
        )
    for part in sections:
        section.blocks += [
            Missing(reason=f"{part.title}: {item.reason}", command=item.command)
            for item in part.missing
        ]
    if not section.blocks:
        section.blocks.append(Note(text="Nothing is missing."))
    return section


def fill(folder: Path, source: ReportSource, sections: list[Section], progress: bool) -> None:
    """Write page, tables and figures into ``folder``."""
    for name in ("tables", "figures"):
        (folder / name).mkdir()
    tables, figures = page.tables(sections), page.figures(sections)
    twice = [name for name, n in Counter([*(f.name for f in figures)]).items() if n > 1]
    if twice:
        raise LowrankError(f"two figures of the report are called '{twice[0]}'")
    for table in tables:
        (folder / "tables" / f"{table.name}.csv").write_text(table.csv(), encoding="utf-8")
        (folder / "tables" / f"{table.name}.md").write_text(table.markdown(), encoding="utf-8")
    for figure in progress_bar(
        figures, desc="pictures", unit="figure", disable=None if progress else True
    ):
        sheet = figure.sheet()
        (folder / "figures" / f"{figure.name}.svg").write_text(standalone(sheet), encoding="utf-8")
        drawn = draw(sheet)
        (folder / "figures" / f"{figure.name}.png").write_bytes(png(drawn))
        (folder / "figures" / f"{figure.name}.pdf").write_bytes(pdf(drawn))
    text = page.html(
        title=source.name,
        lead=str(source.study.config.get("description", "")),
        facts=overview.facts(source),
        styles=source.styles(),
        sections=sections,
        footer=f"Written by lowrank {__version__} from {source.store.url_masked}. Every number is a row of that store.",
    )
    (folder / "index.html").write_text(text, encoding="utf-8")
    (folder / MARKER).write_text(f"lowrank {__version__}\n", encoding="utf-8")


def check_target(out: Path) -> None:
    """Raise UsageError unless ``out`` is new, empty or a report."""
    if out.is_symlink() or (out.exists() and not out.is_dir()):
        raise UsageError(f"{out} is not a folder; give another one with --out")
    if out.is_dir() and any(out.iterdir()) and not (out / MARKER).exists():
        raise UsageError(
            f"the folder {out} holds other files, which a report would replace; give another one with --out"
        )
