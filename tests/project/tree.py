"""The annotated tree of CONTRIBUTING.md: every file, with the first words of its docstring.

`python tests/project/tree.py --write` writes it anew; the tests compare it with the sources.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "CONTRIBUTING.md"
BEGIN, END = "<!-- tree: begin -->\n", "<!-- tree: end -->\n"
TOPS = ("lowrank", "cli", "sql", "migrations")
PATTERNS = {"sql": "*.sql", "migrations": "*.py"}
WIDTH = 120


def phrase(path: Path) -> str:
    """Return the first sentence of a file's docstring (of a query: of its header), shortened."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".sql":
        found = text.partition("\n")[0].removeprefix("--").removeprefix(" description:")
    else:
        found = ast.get_docstring(ast.parse(text)) or ""
    sentence = re.split(r"(?<!et al)[.](?=\s|$)", " ".join(found.split("\n\n")[0].split()))[0]
    return sentence.replace("``", "").replace("`", "").strip().removesuffix(".")


def shortened(text: str, width: int) -> str:
    """Return ``text`` up to a colon, or as many of its clauses as fit into ``width`` characters."""
    title, colon, _ = text.partition(": ")
    if colon and len(title.split()) > 1:
        text = title
    while len(text) > width and re.search(r"[,;:] ", text):
        text = re.split(r"[,;:] (?!.*[,;:] )", text)[0]
    if len(text) > width:
        text = text[: width - 1].rsplit(" ", 1)[0] + "…"
    return text


def branches(folder: Path, depth: int, pattern: str) -> Iterator[tuple[int, str, str]]:
    """Yield (depth, name, phrase) of a folder's files, then of its folders."""
    for path in sorted(folder.glob(pattern)):
        if path.name not in ("__init__.py",):
            yield depth, path.name, phrase(path)
    for inner in sorted(
        path for path in folder.iterdir() if path.is_dir() and not path.is_symlink()
    ):
        if list(inner.rglob(pattern)) and inner.name != "__pycache__":
            init = inner / "__init__.py"
            yield depth, f"{inner.name}/", phrase(init) if init.exists() else ""
            yield from branches(inner, depth + 1, pattern)


def tree() -> str:
    """Return the block that stands between the markers."""
    lines = []
    for top in TOPS:
        init = ROOT / top / "__init__.py"
        entries = [(0, f"{top}/", phrase(init) if init.exists() else "")]
        entries += branches(ROOT / top, 1, PATTERNS.get(top, "*.py"))
        for depth, name, text in entries:
            head = f"{'  ' * depth}{name}"
            lines.append(f"{head:<28} {shortened(text, WIDTH - max(28, len(head)) - 1)}".rstrip())
    return "```\n" + "\n".join(lines) + "\n```\n"


def main() -> None:
    """Write the tree into CONTRIBUTING.md, or print it."""
    if "--write" not in sys.argv[1:]:
        print(tree())
        return
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    _, _, after = rest.partition(END)
    PAGE.write_text(before + BEGIN + tree() + END + after, encoding="utf-8")


if __name__ == "__main__":
    main()
