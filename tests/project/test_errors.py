"""The tree of error classes that ``lowrank.errors`` draws is the tree of the code."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import lowrank.errors

ROOT = Path(__file__).parents[2]
LINE = re.compile(r"^( {4,})(\w+Error)\b(.*)$")
Facts = tuple[tuple[str, ...], str, int]
"""(bases, module, exit status) of an error class."""


def drawn() -> dict[str, Facts]:
    """Return the facts of every class that the docstring draws."""
    found: dict[str, Facts] = {}
    path: list[str] = []
    for line in (lowrank.errors.__doc__ or "").splitlines():
        if match := LINE.match(line):
            indent, name, rest = match.groups()
            path[len(indent) // 4 - 1 :] = [name]
            module = re.search(r"lowrank(?:\.\w+)+", rest)
            status = re.search(r"exit status (\d+)", rest)
            parents = [path[-2] if path[:-1] else "Exception"]
            found[name] = (
                (*parents, *re.findall(r"also an? (\w+)", rest)),
                module[0] if module else "lowrank.errors",
                int(status[1]) if status else 1,
            )
    return found


def declared_status(node: ast.ClassDef) -> int | None:
    """Return the ``exit_status`` that a class body sets, None if it inherits one."""
    for line in node.body:
        if isinstance(line, ast.Assign) and ast.unparse(line.targets[0]) == "exit_status":
            return int(ast.unparse(line.value))
    return None


def defined() -> dict[str, Facts]:
    """Return the facts of every class in the sources that derives from LowrankError."""
    found: dict[str, tuple[tuple[str, ...], str, int | None]] = {}
    for path in (*(ROOT / "lowrank").rglob("*.py"), *(ROOT / "cli").rglob("*.py")):
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef) and node.bases:
                bases = (ast.unparse(base).rpartition(".")[2] for base in node.bases)
                found[node.name] = (tuple(bases), module, declared_status(node))

    def lineage(name: str) -> list[str]:
        return [name, *lineage(found[name][0][0])] if name in found else []

    def status(name: str) -> int:
        return next(s for s in (found[a][2] for a in lineage(name)) if s is not None)

    return {
        name: (bases, module, status(name))
        for name, (bases, module, _) in found.items()
        if "LowrankError" in lineage(name)
    }


def test_the_drawn_tree_of_errors_is_the_tree_of_the_code() -> None:
    assert drawn() == defined()
    assert len(drawn()) > 12
