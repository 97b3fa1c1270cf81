"""Documents say what is: commands parse, study files load, links lead somewhere, settings are
named.
"""

from __future__ import annotations

import importlib.util
import re
import shlex
from pathlib import Path

import click
import pytest

from lowrank.cli.main import cli
from lowrank.cli.train import train_command
from lowrank.config import Training, load_study, resolve_runs

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
NAMES = [page.relative_to(ROOT).as_posix() for page in PAGES]


def blocks(page: Path, language: str) -> list[str]:
    """The fenced blocks of one language."""
    return re.findall(
        rf"^```{language}\n(.*?)^```",
        page.read_text(encoding="utf-8"),
        flags=re.DOTALL | re.MULTILINE,
    )


def commands(page: Path) -> list[list[str]]:
    """The words of every lowrank command in the page's shell blocks."""
    found = []
    for block in blocks(page, "(?:bash|sh|console)"):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line.removeprefix("$ "), comments=True)
            while words and re.fullmatch(r"\w+=.*", words[0]):
                words = words[1:]
            if words[:1] == ["lowrank"]:
                found.append(words[1:])
            elif "lowrank.train" in words:
                found.append(words[words.index("lowrank.train") :])
    return found


def parse(words: list[str]) -> None:
    """Parse a command line without running it."""
    words = [word for word in words if word not in ("|", "…")]
    if words and words[0] == "lowrank.train":
        train_command.make_context("lowrank.train", words[1:])
        return
    command: click.Command = cli
    while isinstance(command, click.Group):
        context = command.make_context(command.name, words)
        name, inner, words = command.resolve_command(
            context, [*context._protected_args, *context.args]
        )
        assert inner is not None, name
        command = inner
    command.make_context(command.name, words)


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_commands_parse(page: Path) -> None:
    for words in commands(page):
        words = words[: words.index("|")] if "|" in words else words
        if "--help" not in words:
            parse(words)


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_study_files_load(page: Path, tmp_path: Path) -> None:
    for index, block in enumerate(blocks(page, "yaml")):
        if block.startswith("name:") and "methods:" in block:
            path = tmp_path / f"{index}.yaml"
            path.write_text(block)
            assert resolve_runs(load_study(path), str(path))


@pytest.mark.parametrize(
    "study", sorted((ROOT / "studies").glob("*.yaml")), ids=lambda path: path.stem
)
def test_shipped_studies_load(study: Path) -> None:
    from lowrank.measure.plan import resolve_metrics

    loaded = load_study(study)
    assert loaded.name == study.stem
    assert resolve_runs(loaded, str(study))
    resolve_metrics(loaded)


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
        if not re.match(r"https?:|mailto:", target):
            assert (page.parent / target).exists(), target


def test_every_key_of_training_is_documented() -> None:
    text = (ROOT / "docs" / "training.md").read_text(encoding="utf-8")
    assert [key for key in Training.model_fields if f"`{key}`" not in text] == [
        "evaluation_batch_size"
    ]


def test_the_notebook_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lowrank.store import Store, records

    monkeypatch.chdir(tmp_path)
    with Store.open("outputs/demo/lowrank.db", create=True) as store:
        study = store.add(records.Study(name="demo", config={}, config_hash="x"))
        run = store.add(
            records.Run(
                study_id=study.id or 0,
                config_hash="r",
                method="galore",
                scale="nano",
                seed=0,
                data_seed=0,
                init_seed=0,
            )
        )
        protocol = store.add(records.Protocol(name="exact", lens="spectra", metric_revision=1))
        for step in (0, 10):
            saved = store.add(
                records.Checkpoint(
                    run_id=run.id or 0,
                    step=step,
                    kind="training",
                    tokens_seen=0,
                    path=f"c{step}",
                    sha256=str(step),
                    bytes=1,
                )
            )
            store.add(
                records.MetricValue(
                    checkpoint_id=saved.id or 0,
                    protocol_id=protocol.id or 0,
                    metric="stable_rank_w",
                    value=1.0 + step,
                )
            )
    (code,) = blocks(ROOT / "README.md", "python")
    names: dict[str, object] = {}
    monkeypatch.setenv("MPLBACKEND", "agg")
    exec(code, names)
    assert list(names["frame"]["value"]) == [1.0, 11.0]  # type: ignore[index]


def test_the_tree_of_contributing_names_every_file() -> None:
    spec = importlib.util.spec_from_file_location("tree", Path(__file__).with_name("tree.py"))
    assert spec is not None
    assert spec.loader is not None
    tree = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tree)
    written = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    assert f"{tree.BEGIN}{tree.tree()}{tree.END}" in written, (
        "write it anew: python tests/project/tree.py --write"
    )
