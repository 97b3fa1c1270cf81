"""The house keeps its shape: dependencies run one way, packages are listed, importing is light,
names stay unbranched.
"""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = sorted([*(ROOT / "lowrank").rglob("*.py"), *(ROOT / "cli").rglob("*.py")])
# A part may import the parts named here (and itself). Whatever is not named is refused.
GROUND = {"errors", "registry", "schedule", "loss", "strict_yaml", "progress"}
MAY_IMPORT = {
    "errors": set(),
    "registry": {"errors"},
    "strict_yaml": {"errors"},
    "schedule": set(),
    "loss": set(),
    "progress": set(),
    "store": {"errors", "presets", "migrations", "sql"},
    "presets": {"strict_yaml"},
    "config": GROUND | {"presets", "methods"},
    "provenance": {"store"},
    "data": GROUND | {"config", "store"},
    "methods": GROUND | {"config", "models"},
    "models": GROUND | {"config", "methods"},
    "checkpoint": GROUND | {"methods", "models"},
    "foreign": GROUND | {"config", "checkpoint", "methods", "models", "data", "store"},
    "export": GROUND | {"checkpoint", "methods"},
    "metrics": GROUND | {"config", "methods", "checkpoint", "data", "store", "export", "models"},
    "train": GROUND
    | {"config", "data", "methods", "models", "checkpoint", "store", "provenance", "cli"},
    "measure": GROUND
    | {
        "config",
        "data",
        "methods",
        "models",
        "checkpoint",
        "store",
        "provenance",
        "metrics",
        "export",
    },
    "evaluate": GROUND
    | {"config", "data", "methods", "models", "checkpoint", "store", "provenance", "export"},
    "estimate": GROUND | {"config", "data", "methods", "models", "train"},
    "predict": GROUND | {"config", "store", "provenance"},
    "report": GROUND
    | {"config", "store", "predict", "provenance", "presets", "methods", "metrics"},
    "frames": {"store", "errors"},
    "doctor": GROUND | {"config", "store", "checkpoint", "measure", "evaluate"},
    "launch": GROUND | {"config", "store", "study", "measure", "evaluate"},
    "study": GROUND
    | {"config", "store", "methods", "train", "measure", "evaluate", "predict", "report", "launch"},
    "": {"store", "frames"},
}


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


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_dependencies_run_one_way(path: Path) -> None:
    here = part(path)
    if here == "cli":
        return
    assert here in MAY_IMPORT, f"say in {Path(__file__).name} what '{here}' may import"
    assert set(imports(path)) - {here} <= MAY_IMPORT[here]


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
