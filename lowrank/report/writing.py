"""From a study in a store to a folder with the report, which appears all at once or not at all."""

from __future__ import annotations

import ctypes
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from tqdm import tqdm

from lowrank import __version__
from lowrank.errors import LowrankError, UsageError
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
from lowrank.report.source import Source
from lowrank.store import Store

MARKER = ".lowrank-report"
CHAPTERS: tuple[Callable[[Source], Section | None], ...] = (
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
    """Write the report of a study into the folder ``out``; the path of its index.html.

    ``out`` then holds index.html (self-contained), tables/ (CSV and Markdown of every table) and
    figures/ (SVG, PNG and PDF of every figure). It replaces a report that stands there, in one
    step; a folder with anything else in it is refused. ``against`` adds a comparison with another
    study, given by its store and name.

    Raises UsageError for a study that the store does not have.
    """
    out = Path(out).absolute()
    check_target(out)
    source = Source(store, study_name)
    sections = build(source, Source(*against) if against else None, progress)
    try:
        _write(out, lambda folder: fill(folder, source, sections, progress))
    except OSError as error:
        mend = "free the disk, mend the permissions, or name another folder: lowrank report FILE --out DIR"
        raise LowrankError(
            f"the report cannot be written to {out} ({error.strerror or error}); {mend}"
        ) from error
    return out / "index.html"


def _write(out: Path, fill: Callable[[Path], None]) -> None:
    """Put a folder that ``fill`` fills into the place of ``out``, in one step."""
    out.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f".{out.name}-", suffix=".tmp", dir=out.parent))
    try:
        fill(folder)
        folder.chmod(0o755)
        exchange(folder, out)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def build(source: Source, other: Source | None, progress: bool) -> list[Section]:
    """All chapters, and last what would fill the empty ones."""
    found = []
    for chapter in tqdm(
        CHAPTERS, desc="report", unit="chapter", disable=None if progress else True
    ):
        section = chapter(source)
        if section is not None:
            found.append(section)
    if other is not None:
        found.insert(1, comparison.build(source, other))
    return [*found, remaining(source, found)]


def remaining(source: Source, sections: list[Section]) -> Section:
    """What is missing, with the commands that would change it."""
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


def fill(folder: Path, source: Source, sections: list[Section], progress: bool) -> None:
    """Page, tables and pictures."""
    for name in ("tables", "figures"):
        (folder / name).mkdir()
    tables, figures = page.tables(sections), page.figures(sections)
    twice = [name for name, n in Counter([*(f.name for f in figures)]).items() if n > 1]
    if twice:
        raise LowrankError(f"two figures of the report are called '{twice[0]}'")
    for table in tables:
        (folder / "tables" / f"{table.name}.csv").write_text(table.csv(), encoding="utf-8")
        (folder / "tables" / f"{table.name}.md").write_text(table.markdown(), encoding="utf-8")
    for figure in tqdm(figures, desc="pictures", unit="figure", disable=None if progress else True):
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
    """Only a folder that is new, empty or a report may be replaced."""
    if out.is_symlink() or (out.exists() and not out.is_dir()):
        raise UsageError(f"{out} is not a folder; give another one with --out")
    if out.is_dir() and any(out.iterdir()) and not (out / MARKER).exists():
        raise UsageError(
            f"the folder {out} holds other files, which a report would replace; give another one with --out"
        )


def exchange(new: Path, out: Path) -> None:
    """Put ``new`` in the place of ``out``; what stood there is at ``new`` afterwards.

    Where Linux can swap two names in one step it does, so that a report stands there at every
    moment. Elsewhere the old one is moved aside first.
    """
    if not out.exists():
        os.replace(new, out)
    elif not swapped(new, out):
        aside = new.with_name(new.name + "-old")
        os.replace(out, aside)
        os.replace(new, out)
        os.replace(aside, new)


def swapped(first: Path, second: Path) -> bool:
    """Whether the system exchanged the two names at once (renameat2 with RENAME_EXCHANGE)."""
    call = getattr(ctypes.CDLL(None), "renameat2", None)
    current_folder, exchange_flag = -100, 2
    return (
        call is not None
        and call(
            current_folder, os.fsencode(first), current_folder, os.fsencode(second), exchange_flag
        )
        == 0
    )
