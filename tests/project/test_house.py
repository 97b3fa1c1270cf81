"""The house keeps its shape: dependencies run one way, packages are listed, importing is light,
names stay unbranched.
"""

from __future__ import annotations

import ast
import graphlib
import importlib
import json
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
    "checkpoint": {"errors", "methods", "models"},
    "config": {"errors", "methods", "presets", "settings", "strict_yaml"},
    "data": {"config", "errors", "registry", "store"},
    "doctor": {"checkpoint", "config", "errors", "evaluate", "measure", "store"},
    "errors": set(),
    "estimate": {"config", "data", "errors", "loss", "methods", "models", "train"},
    "evaluate": {
        "checkpoint",
        "config",
        "data",
        "errors",
        "provenance",
        "settings",
        "store",
        "work",
    },
    "export": {"checkpoint", "errors"},
    "foreign": {"checkpoint", "config", "data", "errors", "methods", "models", "store"},
    "geometry": {"loss"},
    "layers": {"errors", "optim"},
    "loss": set(),
    "measure": {
        "checkpoint",
        "config",
        "data",
        "errors",
        "export",
        "geometry",
        "layers",
        "methods",
        "metrics",
        "provenance",
        "store",
        "work",
    },
    "methods": {"errors", "layers", "optim", "registry", "schedule", "settings"},
    "metrics": {"errors", "geometry", "loss", "registry", "settings"},
    "models": {"config", "layers", "methods", "settings"},
    "moved": set(),
    "optim": {"errors"},
    "predict": {"errors", "store"},
    "presets": {"strict_yaml"},
    "progress": set(),
    "provenance": {"store"},
    "registry": {"errors"},
    "report": {"errors", "predict", "store"},
    "schedule": set(),
    "settings": set(),
    "statistics": {"errors"},
    "store": {"errors"},
    "strict_yaml": {"errors"},
    "study": {
        "config",
        "errors",
        "evaluate",
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
    "work": {"checkpoint", "errors", "progress", "store"},
}
# The entry point of ``accelerate launch -m lowrank.train`` hands over to the command line.
CONTRACT = {
    "lowrank": ["open"],
    "lowrank.config.schema": ["Config", "Training", "younger", "weightless"],
    "lowrank.methods": ["get", "names"],
    "lowrank.methods.base": ["Draw", "Method", "TARGETS", "plain_path", "targets"],
    "lowrank.methods.cola": ["CoLALinear"],
    "lowrank.methods.fira": ["FiraAdamW"],
    "lowrank.methods.galore": ["GaLoreAdamW"],
    "lowrank.methods.relora": ["ReLoRALinear"],
    "lowrank.methods.sltrain": ["SLTrainLinear"],
    "lowrank.metrics.activations": ["compare"],
    "lowrank.metrics.base": ["Batch", "Estimate", "Lens", "Spreader", "Value"],
    "lowrank.metrics.interpolation": ["barrier", "barrier_excess"],
    "lowrank.metrics.landscape": ["direction_variance", "sharpness"],
    "lowrank.metrics.spectra": ["singular_value_metrics"],
    "lowrank.models": ["build"],
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
    r"Claims?$|^lease|patien|^retry$|^WorkUnit$|tqdm|^progress$|ProgressBar|waiting"
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
    words = ("../sha" + "red", "/wo" + "rk/", "/ro" + "ot/")
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
            assert not [word for word in words if word in text], path


def test_names_of_the_contract_are_where_they_were() -> None:
    """Names that moved to public rooms can be imported from where outsiders know them."""
    for module, names in CONTRACT.items():
        found = importlib.import_module(module)
        assert [name for name in names if not hasattr(found, name)] == [], module


def test_old_import_paths_give_the_modules_of_today() -> None:
    code = (
        "import importlib, json, sys, warnings\n"
        "for old, new in json.load(sys.stdin).items():\n"
        "    with warnings.catch_warnings(record=True) as caught:\n"
        "        warnings.simplefilter('always')\n"
        "        module = importlib.import_module(old)\n"
        "    assert module is importlib.import_module(new), old\n"
        "    assert module.__spec__.name == new, old\n"
        "    print(*(w.message for w in caught if w.category is DeprecationWarning), sep='\\n')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        input=json.dumps(MOVED),
        capture_output=True,
        text=True,
        check=True,
    )
    for old, new in MOVED.items():
        assert f"{old} has moved; import {new} instead" in done.stdout
