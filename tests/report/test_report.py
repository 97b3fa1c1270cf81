"""The report of a synthetic study: complete, self-contained, honest about failures, and written at
once or not at all.
"""

from __future__ import annotations

import csv
import math
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from types import ModuleType
from xml.etree import ElementTree

import numpy as np
import pytest

from lowrank import files
from lowrank.errors import UsageError
from lowrank.report import write, writing
from lowrank.store import Store
from lowrank.store.records import (
    Checkpoint,
    DownstreamItem,
    DownstreamScore,
    EvaluationSet,
    MetricValue,
    Protocol,
    Run,
    Study,
)

SECTIONS = (
    "overview",
    "perplexity",
    "training",
    "landscape",
    "barriers",
    "spectra",
    "activations",
    "downstream",
    "predictor",
    "resources",
    "seeds",
    "provenance",
    "missing",
)
VOID = {"meta", "link", "path", "circle", "br", "input", "img"}


class Reader(HTMLParser):
    """Ids, section texts and references of a page, and whether its elements are closed in order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.references: list[str] = []
        self.section, self.texts = "", {}

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        if "id" in found:
            self.ids.append(str(found["id"]))
        self.references += [str(found[name]) for name in ("src", "href") if found.get(name)]
        if tag == "section":
            self.section = str(found["id"])
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        if tag in VOID:
            return
        assert self.open.pop() == tag
        if tag == "section":
            self.section = ""

    def handle_data(self, data: str) -> None:
        self.texts[self.section] = self.texts.get(self.section, "") + data


def read(folder: Path) -> Reader:
    reader = Reader()
    reader.feed((folder / "index.html").read_text(encoding="utf-8"))
    assert not reader.open
    return reader


def rows_of(folder: Path, name: str) -> list[dict[str, str]]:
    with (folder / "tables" / f"{name}.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_every_section_is_there_and_filled(written: Path) -> None:
    page = read(written)
    assert [i for i in page.ids if i in SECTIONS] == list(SECTIONS)
    assert not [i for i, n in {i: page.ids.count(i) for i in page.ids}.items() if n > 1]
    for section in SECTIONS[:-1]:
        assert "Nothing to show yet" not in page.texts[section], section
    assert "Nothing is missing" in page.texts["missing"]


def test_the_page_needs_no_network_and_its_links_lead_somewhere(written: Path) -> None:
    page = read(written)
    text = (written / "index.html").read_text(encoding="utf-8")
    assert not re.search(r"""(src|href)=["']?(https?:)?//""", text)
    assert "@import" not in text
    assert "url(" not in text
    for reference in page.references:
        if reference.startswith("#"):
            assert reference[1:] in page.ids
        elif not reference.startswith("data:"):
            assert (written / reference).is_file(), reference


def test_each_figure_names_its_query_and_protocol(written: Path) -> None:
    text = (written / "index.html").read_text(encoding="utf-8")
    figures = re.findall(r"<figure id=.*?</figure>", text, flags=re.S)
    assert len(figures) > 25
    for figure in figures:
        assert "<dt>Query</dt><dd><code>lowrank query" in figure
        assert "<dt>Protocol</dt>" in figure


def test_every_figure_and_table_is_a_file(written: Path) -> None:
    text = (written / "index.html").read_text(encoding="utf-8")
    names = re.findall(r'<figure id="figure-([^"]+)"', text)
    for name in names:
        root = ElementTree.parse(written / "figures" / f"{name}.svg").getroot()
        assert root.tag.endswith("svg")
        assert (written / "figures" / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        printed = (written / "figures" / f"{name}.pdf").read_bytes()
        assert printed.startswith(b"%PDF")
        assert b"CreationDate" not in printed
        # A point for each pixel of the SVG.
        box = re.search(rb"/MediaBox \[ 0 0 ([\d.]+) ([\d.]+) \]", printed)
        assert box is not None
        size = [float(root.attrib[side]) for side in ("width", "height")]
        assert [float(side) for side in box.groups()] == pytest.approx(size, abs=0.51)
        for kind in ("svg", "png", "pdf"):
            assert f'<a href="figures/{name}.{kind}">' in text
    assert {p.stem for p in (written / "figures").iterdir()} == set(names)
    tables = {p.stem for p in (written / "tables").glob("*.csv")}
    assert tables == {p.stem for p in (written / "tables").glob("*.md")}


def test_tables_hold_the_stored_numbers(written: Path, filled: Path) -> None:
    with Store.open(filled, read_only=True) as store:
        runs = {r.id: r for r in store.find(Run, status="done")}
        finals = [c for c in store.find(Checkpoint, kind="final") if c.run_id in runs]
    for row in rows_of(written, "perplexity"):
        losses = [
            c.validation_loss
            for c in finals
            if (runs[c.run_id].scale, runs[c.run_id].method) == (row["scale"], row["method"])
        ]
        assert float(row["ours"]) == pytest.approx(
            np.mean([math.exp(x) for x in losses]), rel=1e-12
        )
        assert int(row["seeds"]) == len(losses)
        if len(losses) > 1:
            assert float(row["deviation"]) == pytest.approx(
                np.std([math.exp(x) for x in losses], ddof=1)
            )


def test_a_diverged_run_is_counted_shown_and_not_averaged(written: Path) -> None:
    page = read(written)
    assert "1 of 12 runs failed, 1 of them because" in page.texts["overview"]
    (failed,) = rows_of(written, "failed_runs")
    assert (failed["series"], failed["failed_step"], failed["last_finite_loss"]) == (
        "relora",
        "141",
        "9.37",
    )
    ours = {(r["scale"], r["method"]): r for r in rows_of(written, "final")}
    assert ours["micro", "relora"]["runs"] == "1 done, 1 failed"
    assert ours["micro", "relora"]["step"] == "300"


def test_scales_go_from_small_to_large(written: Path) -> None:
    assert list(dict.fromkeys(r["scale"] for r in rows_of(written, "final"))) == ["nano", "micro"]


def test_absent_values_state_the_reason(written: Path) -> None:
    assert (
        "cola: no direction variance, sharpness random; the method has no dense equivalent"
        in read(written).texts["landscape"]
    )


def test_published_values_carry_their_source(written: Path) -> None:
    page = read(written)
    assert "Published, not ours: arXiv:2605.13652, table 1" in page.texts["perplexity"]
    assert "Published, not ours: arXiv:2605.13652, table 2" in page.texts["predictor"]


def test_published_scales_are_compared(
    factory: ModuleType, sqlite_store_url: str, tmp_path: Path
) -> None:
    with Store.open(sqlite_store_url) as store:
        spec = factory.Synthetic(
            scales={"60m": 512},
            methods=("full_rank", "galore"),
            seeds=(0,),
            steps=(0, 300),
            lenses=frozenset(),
            failed=None,
        )
        factory.fill(store, spec)
        write(store, "demo", tmp_path / "out", progress=False)
    row = rows_of(tmp_path / "out", "perplexity")[0]
    assert float(row["published"]) == 34.12
    assert float(row["difference"]) == pytest.approx(float(row["ours"]) - 34.12)
    assert row["source"] == "arXiv:2605.13652, table 1"


def test_an_empty_study_names_what_would_fill_each_section(
    factory: ModuleType, sqlite_store_url: str, tmp_path: Path
) -> None:
    with Store.open(sqlite_store_url) as store:
        store.add(Study(name="empty", config={"name": "empty", "preset": "exact"}, config_hash="0"))
        write(store, "empty", tmp_path / "out", progress=False)
        spec = factory.Synthetic(
            methods=("full_rank",), seeds=(0,), steps=(0, 300), lenses=frozenset(), failed=None
        )
        factory.fill(store, spec)
        write(store, "demo", tmp_path / "some", progress=False)
    for folder, sections in (
        ("out", ("training", "landscape", "downstream")),
        ("some", ("landscape", "barriers", "spectra", "activations", "downstream")),
    ):
        page = read(tmp_path / folder)
        for section in sections:
            assert "To fill it: lowrank" in page.texts[section], section
        for command in ("lowrank measure FILE", "lowrank evaluate FILE", "lowrank predict FILE"):
            assert command in page.texts["missing"]


def test_text_of_a_study_file_is_escaped(
    factory: ModuleType, sqlite_store_url: str, tmp_path: Path
) -> None:
    with Store.open(sqlite_store_url) as store:
        built = factory.fill(
            store,
            factory.Synthetic(
                methods=("full_rank", "<b>x"),
                seeds=(0,),
                steps=(0, 300),
                lenses=frozenset({"spectra"}),
                failed=None,
            ),
        )
        store.put(
            Study(
                name="demo",
                config={**built.study.config, "description": "<script>alert(1)</script>"},
                config_hash="1",
            )
        )
        write(store, "demo", tmp_path / "out", progress=False)
    text = (tmp_path / "out" / "index.html").read_text(encoding="utf-8")
    assert "<script>alert" not in text
    assert "<b>x" not in text
    read(tmp_path / "out")


def test_two_studies_are_compared_with_intervals(
    factory: ModuleType, sqlite_store_url: str, tmp_path: Path
) -> None:
    common = {
        "steps": (0, 300),
        "lenses": frozenset({"spectra", "downstream"}),
        "failed": None,
        "layers": 1,
        "singular_values": 2,
    }
    with Store.open(sqlite_store_url) as store:
        factory.fill(store, factory.Synthetic(methods=("full_rank", "galore", "fira"), **common))
        factory.fill(
            store,
            factory.Synthetic(
                methods=("full_rank", "galore"), name="better", shift=-0.25, **common
            ),
        )
        write(store, "demo", tmp_path / "out", against=(store, "better"), progress=False)
    table = rows_of(tmp_path / "out", "comparison")
    assert {"validation loss", "effective_rank_w", "score: cloze"} <= {r["quantity"] for r in table}
    rows = [r for r in table if r["quantity"] == "validation loss"]
    assert {r["method"] for r in rows} == {"full_rank", "galore"}
    for row in rows:
        assert float(row["low"]) <= float(row["difference"]) <= float(row["high"])
        assert float(row["difference"]) == pytest.approx(0.25, abs=1e-9)
    assert "comparison" in read(tmp_path / "out").ids


def test_one_seed_is_compared_by_stored_errors_and_other_protocols_are_reported(
    factory: ModuleType, sqlite_store_url: str, tmp_path: Path
) -> None:
    common = {
        "steps": (0, 300),
        "failed": None,
        "layers": 1,
        "singular_values": 2,
        "seeds": (0,),
        "scales": {"nano": 64},
    }
    with Store.open(sqlite_store_url) as store:
        factory.fill(
            store,
            factory.Synthetic(
                methods=("galore",), lenses=frozenset({"spectra", "downstream"}), **common
            ),
        )
        other = factory.Synthetic(
            methods=("galore",), lenses=frozenset({"downstream"}), name="better", **common
        )
        built = factory.fill(store, other)
        changed = store.add(Protocol(name="exact", lens="spectra", metric_revision=2))
        checkpoint = built.checkpoints["galore", "nano", 0, 300].id
        store.add(
            MetricValue(
                checkpoint_id=checkpoint, protocol_id=changed.id, metric="stable_rank_w", value=3.0
            )
        )
        write(store, "demo", tmp_path / "out", against=(store, "better"), progress=False)
        scores = store.find(DownstreamScore, metric="acc", task="cloze")
    table = {row["quantity"]: row for row in rows_of(tmp_path / "out", "comparison")}
    (error,) = [
        float(score.standard_error or 0) for score in scores if score.checkpoint_id == checkpoint
    ]  # both have this score
    reach = 1.96 * math.sqrt(2) * error
    row = table["score: cloze"]
    assert row["interval"] == "stored errors"
    assert float(row["high"]) - float(row["low"]) == pytest.approx(2 * reach, rel=1e-3)
    assert (table["validation loss"]["low"], table["validation loss"]["interval"]) == ("", "")
    assert (table["stable_rank_w"]["same_protocol"], row["same_protocol"]) == ("False", "True")
    assert (
        "stable_rank_w"
        in read(tmp_path / "out").texts["comparison"].split("different protocols:")[1].split(".")[0]
    )


def test_paired_differences_are_those_of_the_items(written: Path, filled: Path) -> None:
    """Against numpy on the single items: the difference of each task over seeds, and its error over
    items.
    """
    rows = rows_of(written, "downstream_against")
    assert {row["series"] for row in rows} == {"cola", "relora"}
    with Store.open(filled, read_only=True) as store:
        runs = {run.id: run for run in store.find(Run)}
        names = {
            c.id: (runs[c.run_id].method, runs[c.run_id].scale, runs[c.run_id].seed)
            for c in store.find(Checkpoint)
        }
        values: dict[tuple[str, str, int], dict[str, float]] = {}
        for item in store.find(DownstreamItem, task="cloze"):
            values.setdefault(names[item.checkpoint_id], {})[item.item] = item.value
    checked = [row for row in rows if row["task"] == "cloze"]
    assert len(checked) == 4
    for row in checked:
        seeds = [
            seed
            for method, scale, seed in values
            if (method, scale) == (row["series"], row["scale"])
        ]
        items = sorted(values["full_rank", row["scale"], 0])
        table = np.array(
            [
                [
                    values[row["series"], row["scale"], s][i]
                    - values["full_rank", row["scale"], s][i]
                    for i in items
                ]
                for s in seeds
            ]
        )
        assert (int(row["seeds"]), float(row["difference"])) == (
            len(seeds),
            pytest.approx(table.mean()),
        )
        by_item = table.mean(axis=0)
        assert float(row["items_error"] or 0) == pytest.approx(
            by_item.std(ddof=1) / math.sqrt(len(items)), abs=1e-9
        )


def test_provenance_lists_every_evaluation_set_and_shows_no_nan(
    written: Path, filled: Path
) -> None:
    with Store.open(filled, read_only=True) as store:
        sets = {row.id: row.name for row in store.find(EvaluationSet)}
        used = {p.evaluation_set_id for p in store.find(Protocol)} | {
            c.evaluation_set_id for c in store.find(Checkpoint)
        }
    assert {row["name"] for row in rows_of(written, "evaluation_sets")} == {
        sets[i] for i in used if i is not None
    }
    assert {row["evaluation_set"] for row in rows_of(written, "protocols")} <= {"", *sets.values()}


def test_the_lines_between_checkpoints_are_drawn(written: Path) -> None:
    page = read(written).texts["barriers"]
    assert "Loss from checkpoint to checkpoint" in page
    assert "Loss from full_rank to the other methods" in page
    assert (written / "figures" / "ccbh_lines.svg").exists()
    assert (written / "figures" / "imbh_lines.svg").exists()


def test_a_newer_run_of_the_same_name_takes_the_older_ones_place(
    factory: ModuleType, sqlite_store_url: str, tmp_path: Path
) -> None:
    with Store.open(sqlite_store_url) as store:
        small = {
            "methods": ("full_rank",),
            "scales": {"nano": 64},
            "seeds": (0,),
            "steps": (0, 300),
            "lenses": frozenset(),
            "failed": None,
        }
        built = factory.fill(store, factory.Synthetic(**small))
        old = built.runs["full_rank", "nano", 0]
        fields = {
            f: getattr(old, f)
            for f in (
                "study_id",
                "method",
                "scale",
                "seed",
                "data_seed",
                "init_seed",
                "provenance_id",
            )
        }
        new = store.add(Run(**fields, config_hash="another recipe", status="done", total_steps=300))
        store.add(
            Checkpoint(
                run_id=new.id or 0,
                step=300,
                kind="final",
                tokens_seen=1,
                path="x",
                sha256="y",
                bytes=1,
                validation_loss=1.5,
            )
        )
        write(store, "demo", tmp_path / "out", progress=False)
    (row,) = rows_of(tmp_path / "out", "perplexity")
    assert (float(row["ours"]), row["seeds"]) == (pytest.approx(math.exp(1.5)), "1")


def test_scales_with_one_seed_are_named(
    factory: ModuleType, sqlite_store_url: str, tmp_path: Path
) -> None:
    common = {
        "methods": ("full_rank", "galore"),
        "steps": (0, 300),
        "lenses": frozenset(),
        "failed": None,
    }
    with Store.open(sqlite_store_url) as store:
        factory.fill(store, factory.Synthetic(scales={"micro": 128}, seeds=(0,), **common))
        write(store, "demo", tmp_path / "one", progress=False)
        factory.fill(store, factory.Synthetic(scales={"nano": 64}, seeds=(0, 1), **common))
        write(store, "demo", tmp_path / "two", progress=False)
    assert "no scale has two seeds" in read(tmp_path / "one").texts["seeds"]
    assert "one seed: micro" in read(tmp_path / "two").texts["seeds"]
    assert {row["scale"] for row in rows_of(tmp_path / "two", "seeds")} == {"nano"}


def test_unknown_studies_and_folders_with_other_files_are_refused(
    filled: Path, tmp_path: Path
) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("years of work")
    with Store.open(filled, read_only=True) as store:
        with pytest.raises(UsageError, match="no study 'dmeo'"):
            write(store, "dmeo", tmp_path / "out", progress=False)
        with pytest.raises(UsageError, match="holds other files"):
            write(store, "demo", tmp_path / "mine", progress=False)
    assert [p.name for p in tmp_path.iterdir()] == ["mine"]
    assert (tmp_path / "mine" / "thesis.tex").read_text() == "years of work"


@pytest.mark.parametrize("atomic", [True, False])
def test_an_interrupted_report_keeps_the_old_one(
    factory: ModuleType,
    sqlite_store_url: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    atomic: bool,
) -> None:
    out = tmp_path / "report"
    if not atomic:
        monkeypatch.setattr(files, "swapped", lambda first, second: False)
    with Store.open(sqlite_store_url) as store:
        spec = factory.Synthetic(
            methods=("full_rank",), seeds=(0,), steps=(0, 300), lenses=frozenset(), failed=None
        )
        factory.fill(store, spec)
        first = write(store, "demo", out, progress=False).read_text(encoding="utf-8")
        with monkeypatch.context() as broken:
            broken.setattr(writing, "png", lambda sheet: (_ for _ in ()).throw(KeyboardInterrupt))
            with pytest.raises(KeyboardInterrupt):
                write(store, "demo", out, progress=False)
        assert (out / "index.html").read_text(encoding="utf-8") == first
        factory.fill(
            store,
            factory.Synthetic(
                methods=("full_rank", "galore"),
                seeds=(0,),
                steps=(0, 300),
                lenses=frozenset(),
                failed=None,
            ),
        )
        second = write(store, "demo", out, progress=False).read_text(encoding="utf-8")
    assert "galore" in second
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith((".", "report"))] == ["report"]


def test_the_same_rows_make_the_same_report(
    factory: ModuleType, sqlite_store_url: str, tmp_path: Path
) -> None:
    with Store.open(sqlite_store_url) as store:
        spec = factory.Synthetic(
            methods=("full_rank", "relora"),
            steps=(0, 150, 300),
            lenses=frozenset({"interpolation"}),
        )
        factory.fill(store, spec)
        for name in ("first", "again"):
            write(store, "demo", tmp_path / name, progress=False)
    files = sorted(p for p in (tmp_path / "first").rglob("*") if p.is_file())
    assert len(files) > 20
    for path in files:
        assert (
            tmp_path / "again" / path.relative_to(tmp_path / "first")
        ).read_bytes() == path.read_bytes(), path.name


def test_reports_do_not_import_torch() -> None:
    code = "import sys, lowrank.report; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
