"""The house keeps its shape: dependencies run one way, packages are listed, importing is light,
names stay unbranched.
"""

from __future__ import annotations

import ast
import graphlib
import importlib
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from lowrank.moved import MOVED

ROOT = Path(__file__).parents[2]
SOURCES = sorted([*(ROOT / "lowrank").rglob("*.py"), *(ROOT / "cli").rglob("*.py")])
# What each part imports, itself apart: exactly this. An edge that is new, or gone, is written here.
IMPORTS: dict[str, set[str]] = {
    "": {"moved", "store"},
    "checkpoint": {"errors", "files", "methods", "models"},
    "config": {"errors", "hashing", "methods", "presets", "settings", "strict_yaml"},
    "data": {"config", "errors", "files", "hashing", "progress", "registry", "store"},
    "doctor": {"checkpoint", "config", "errors", "evaluate", "files", "logs", "measure", "store"},
    "errors": set(),
    "estimate": {"config", "data", "errors", "loss", "methods", "models", "train"},
    "evaluate": {
        "checkpoint",
        "config",
        "data",
        "errors",
        "hashing",
        "provenance",
        "settings",
        "store",
        "work",
    },
    "export": {"checkpoint", "errors"},
    "files": {"hashing"},
    "foreign": {"checkpoint", "config", "data", "errors", "hashing", "methods", "models", "store"},
    "geometry": {"loss", "seeds"},
    "hashing": set(),
    "layers": {"errors", "optim"},
    "logs": set(),
    "loss": set(),
    "measure": {
        "checkpoint",
        "config",
        "data",
        "errors",
        "export",
        "geometry",
        "hashing",
        "layers",
        "methods",
        "metrics",
        "provenance",
        "store",
        "work",
    },
    "measurements": {"positions"},
    "methods": {"errors", "layers", "optim", "registry", "schedule", "settings"},
    "metrics": {"errors", "geometry", "loss", "measurements", "positions", "registry", "settings"},
    "models": {"config", "layers", "methods", "seeds", "settings"},
    "moved": set(),
    "optim": {"errors"},
    "positions": set(),
    "predict": {"errors", "hashing", "metrics", "progress", "store"},
    "presets": {"strict_yaml"},
    "progress": {"logs"},
    "provenance": {"hashing", "store"},
    "registry": {"errors"},
    "report": {"errors", "files", "metrics", "predict", "progress", "store"},
    "schedule": set(),
    "seeds": set(),
    "settings": set(),
    "statistics": {"errors"},
    "store": {"errors", "hashing", "logs", "positions", "progress"},
    "strict_yaml": {"errors"},
    "study": {
        "config",
        "errors",
        "evaluate",
        "logs",
        "measure",
        "methods",
        "predict",
        "progress",
        "report",
        "store",
        "train",
        "work",
    },
    "train": {
        "checkpoint",
        "config",
        "data",
        "errors",
        "loss",
        "methods",
        "models",
        "provenance",
        "store",
        "work",
    },
    "work": {"checkpoint", "errors", "logs", "progress", "store"},
}
# The entry point of ``accelerate launch -m lowrank.train`` hands over to the command line.
CONTRACT = {
    "lowrank": ["open"],
    "lowrank.checkpoint": [
        "file_entry",
        "forget_unfinished",
        "sealed",
        "sync",
        "unsealed",
        "write_folder",
    ],
    "lowrank.config.resolve": ["content_hash"],
    "lowrank.config.schema": ["Config", "Training", "younger", "weightless"],
    "lowrank.data.cache": ["content_key", "write_atomically"],
    "lowrank.methods": ["get", "names"],
    "lowrank.methods.base": ["Draw", "Method", "TARGETS", "plain_path", "targets"],
    "lowrank.methods.cola": ["CoLALinear"],
    "lowrank.methods.fira": ["FiraAdamW"],
    "lowrank.methods.galore": ["GaLoreAdamW"],
    "lowrank.methods.relora": ["ReLoRALinear"],
    "lowrank.methods.sltrain": ["SLTrainLinear"],
    "lowrank.metrics.activations": ["compare"],
    "lowrank.metrics.base": [
        "AGGREGATE_LAYER",
        "ALL_MODULES",
        "Batch",
        "EMBEDDING_LAYER",
        "Estimate",
        "Lens",
        "Spreader",
        "Value",
    ],
    "lowrank.metrics.interpolation": ["barrier", "barrier_excess"],
    "lowrank.metrics.landscape": ["direction_variance", "sharpness"],
    "lowrank.metrics.spectra": ["singular_value_metrics"],
    "lowrank.models": ["build", "named_draws"],
    "lowrank.optim": ["AdamW8bit", "BlockCodec", "FiraAdamW", "GaLoreAdamW", "decompose"],
    "lowrank.predict": ["cross_validate"],
    "lowrank.schedule": ["cosine", "cosine_restarts"],
    "lowrank.study": ["Plan", "register", "run_study"],
}
HANDS_OVER = {ROOT / "lowrank" / "train" / "__main__.py"}


def part(path: Path) -> str:
    """``lowrank/methods/galore.py`` -> ``methods``; the package's own file -> ````."""
    relative = path.relative_to(ROOT)
    if relative.parts[0] == "cli":
        return "cli"
    name = relative.parts[1].removesuffix(".py")
    return "cli" if name == "__main__" else "" if name == "__init__" else name


def imports(path: Path) -> Iterator[str]:
    """Parts of lowrank that a file imports at run time, wherever in it."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    unseen = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if id(node) in unseen:
            continue
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names = (
                [f"{node.module}.{alias.name}" for alias in node.names]
                if node.module == "lowrank"
                else [node.module]
            )
        yield from (
            name.split(".")[1]
            for name in names
            if name.startswith("lowrank.") and name != "lowrank.__version__"
        )


def edges() -> dict[str, set[str]]:
    """Return what each part imports, read from the sources."""
    found: dict[str, set[str]] = {}
    for path in SOURCES:
        if path not in HANDS_OVER:
            found.setdefault(part(path), set()).update(set(imports(path)) - {part(path)})
    return found


def test_the_parts_import_what_is_written_and_nothing_else() -> None:
    found = edges()
    del found["cli"]  # the top: it may import anything
    for name in sorted(found.keys() | IMPORTS.keys()):
        assert found.get(name, set()) == IMPORTS.get(name, set()), f"what '{name}' imports"


def test_the_parts_form_no_circle() -> None:
    order = list(graphlib.TopologicalSorter(edges()).static_order())
    assert order[-1] == "cli", "nobody imports the command line"


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_nothing_branches_on_a_methods_name(path: Path) -> None:
    if part(path) == "methods":
        return
    names = {file.stem for file in (ROOT / "lowrank" / "methods").glob("*.py")} - {
        "__init__",
        "base",
    }
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Compare | ast.MatchValue):
            words = {
                leaf.value
                for leaf in ast.walk(node)
                if isinstance(leaf, ast.Constant) and isinstance(leaf.value, str)
            }
            # The reference of the activation lens is full_rank by the metric's definition, not by a
            # branch on a method.
            assert not words & (names - {"full_rank"}), (
                f"line {node.lineno if isinstance(node, ast.Compare) else 0}"
            )


ENGINE = re.compile(
    r"Claims?$|^lease|patien|^retry$|^with_retry$|^WorkUnit$|tqdm|^progress$|ProgressBar|waiting"
)
OPTIONS = {"retry_failed", "progress", "disable_tqdm"}


@pytest.mark.parametrize("name", ["measure", "evaluate", "train"])
def test_the_engine_of_missing_work_is_written_once(name: str) -> None:
    """Claims, leases, retries, failure rows and progress belong to lowrank/work alone."""
    for path in (ROOT / "lowrank" / name).glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            match node:
                case ast.Import() | ast.ImportFrom():
                    used = [alias.name for alias in node.names]
                    used += (getattr(node, "module", None) or "").split(".")
                case ast.Call():
                    used = [ast.unparse(node.func).rpartition(".")[2]]
                case ast.Attribute():
                    used = [node.attr] if isinstance(node.ctx, ast.Load) else []
                case _:
                    continue
            odd = [u for u in used if ENGINE.search(u) and u not in OPTIONS]
            assert not odd, f"{path.relative_to(ROOT)}:{getattr(node, 'lineno', 0)}: {odd}"


# Class names that may be defined in several modules, and why.
SHARED_NAMES = {
    "EvaluationSet": "the set of data/batch is stored as the record of this name",
    "Study": "the section of a study file is stored in the record of this name",
    "SOURCE": "each module of data/sources holds the class that it registers under this name",
}
# Each record of the first has a table of its name in the second.
MIRRORED = {"lowrank/store/records.py", "lowrank/store/schema.py"}


def test_no_class_name_is_defined_in_two_modules() -> None:
    found: dict[str, set[str]] = {}
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef):
                found.setdefault(node.name, set()).add(path.relative_to(ROOT).as_posix())
    shared = {name: modules for name, modules in found.items() if len(modules) > 1}
    shared = {name: modules for name, modules in shared.items() if modules != MIRRORED}
    odd = {name: sorted(modules) for name, modules in shared.items() if name not in SHARED_NAMES}
    assert not odd, "rename the less public one"
    assert shared.keys() == SHARED_NAMES.keys(), "an exception that is not needed any more"


def test_every_package_and_data_file_is_listed_for_the_wheel() -> None:
    tools = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    mapped = {
        "cli": "lowrank.cli",
        "sql": "lowrank.sql",
        "migrations": "lowrank.migrations",
        "lowrank": "lowrank",
    }
    found = {
        ".".join([mapped[top], *file.parent.relative_to(ROOT / top).parts])
        for top in mapped
        for file in (ROOT / top).rglob("__init__.py")
    }
    assert found == set(tools["packages"])
    for top, package in mapped.items():
        for file in (ROOT / top).rglob("*"):
            if file.is_file() and file.suffix not in (".py", ".pyc"):
                owner = ".".join([package, *file.parent.relative_to(ROOT / top).parts])
                patterns = tools["package-data"].get(owner, [])
                assert any(file.match(pattern) for pattern in patterns), (
                    f"{file.relative_to(ROOT)} is in no wheel"
                )


def test_importing_lowrank_is_light() -> None:
    code = (
        "import sys, lowrank, lowrank.methods, lowrank.metrics; lowrank.methods.names(); "
        "print([m for m in ('torch', 'transformers', 'pandas', 'sqlalchemy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_no_file_reads_the_workplace() -> None:
    """The project speaks of itself alone: no path of one machine, nothing beside the checkout."""
    # A path, not a part of one such as lowrank/work/.
    word = re.compile(r"\.\./sha" + r"red|(?<![\w.])/wo" + r"rk/|(?<![\w.])/ro" + r"ot/")
    for path in ROOT.rglob("*"):
        inside = path.relative_to(ROOT).parts
        if (
            path.is_file()
            and path.suffix in (".py", ".md", ".yaml", ".toml", ".sql", ".ini", ".txt", "")
            and not {".git", ".venv", "outputs"} & set(inside)
        ):
            if any(p.startswith(".") and p != ".ci" for p in inside[:-1]):
                continue
            text = path.read_text(encoding="utf-8", errors="ignore")
            assert not word.search(text), path


# A statement of SQL, as people write one: words in capitals at its start, or a query within a text.
STATEMENT = re.compile(
    r"^\s*(SELECT|INSERT INTO|UPDATE|DELETE FROM|WITH)\s|\bSELECT\s.*\sFROM\s", re.DOTALL
)
MAY_HOLD_SQL = {ROOT / "cli" / "query.py", *(ROOT / "lowrank" / "store").rglob("*.py")}


def texts(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Yield line and value of every string in a file; an f-string is one, with "?" for values."""
    inside = {
        id(leaf)
        for node in ast.walk(tree)
        if isinstance(node, ast.JoinedStr)
        for leaf in node.values
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            parts = (p.value if isinstance(p, ast.Constant) else "?" for p in node.values)
            yield node.lineno, "".join(map(str, parts))
        elif (
            isinstance(node, ast.Constant)
            and isinstance(node.value, str)
            and id(node) not in inside
        ):
            yield node.lineno, node.value


@pytest.mark.parametrize(
    "text",
    [
        '"SELECT run_id FROM current_run_view WHERE study_id = :study"',
        'f"SELECT {pair}, metric FROM metric_value {where}"',
        '"SELECT checkpoint_id, task, metric"',
        '"checkpoint_id IN (SELECT c.id FROM checkpoint c)"',
        '"""\n    UPDATE run SET status = :status"""',
        '"DELETE FROM run"',
    ],
)
def test_a_statement_is_seen(text: str) -> None:
    assert [line for line, found in texts(ast.parse(text)) if STATEMENT.search(found)]


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_statements_of_sql_stand_in_the_store_alone(path: Path) -> None:
    found = list(texts(ast.parse(path.read_text(encoding="utf-8"))))
    lines = [line for line, text in found if STATEMENT.search(text)]
    assert lines == [] or path in MAY_HOLD_SQL, f"put them into lowrank/store/results.py: {lines}"


def test_names_of_the_contract_are_where_they_were() -> None:
    """Names that moved to public rooms can be imported from where outsiders know them."""
    for module, names in CONTRACT.items():
        found = importlib.import_module(module)
        assert [name for name in names if not hasattr(found, name)] == [], module


@pytest.mark.parametrize("old", sorted(MOVED))
def test_old_import_paths_give_the_modules_of_today(
    old: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, old, raising=False)
    with pytest.warns(DeprecationWarning, match=f"^{old} has moved; import {MOVED[old]} instead$"):
        module = importlib.import_module(old)
    assert module is importlib.import_module(MOVED[old])
    assert module.__spec__ is not None
    assert module.__spec__.name == MOVED[old]
