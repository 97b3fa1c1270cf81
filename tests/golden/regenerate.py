"""Compare today's code with the golden archives, and with ``--write`` replace the archives.

``python tests/golden/regenerate.py [TARGET ...] [--write]`` prints one line per difference, the
archived value first; the exit status is 1 where there are any. A target is a module of this folder
that defines ``ARCHIVE`` (what it is called), ``current()`` (today's values), ``archived()`` (those
of the archive; None where there is none), ``differences(old, new)`` (one sentence each) and
``write(new)``.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

HERE = Path(__file__).resolve().parent
TARGETS = ("losses", "saved", "lenses", "hashes", "stores")


def load(name: str) -> ModuleType:
    """Import a module of this folder by its path; the second call returns the same module."""
    key = f"lowrank_golden_{name}"
    if key in sys.modules:
        return sys.modules[key]
    path = HERE / f"{name}.py"
    spec = importlib.util.spec_from_file_location(key, path)
    if spec is None or spec.loader is None or not path.is_file():
        raise ImportError(f"{path} is missing; targets are {', '.join(available())}")
    module = importlib.util.module_from_spec(spec)
    sys.modules[key] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[key]
        raise
    return module


def available() -> list[str]:
    """List the targets whose module is there."""
    return [name for name in TARGETS if (HERE / f"{name}.py").is_file()]


def compare(module: ModuleType) -> tuple[Any, Iterator[str]]:
    """Compute today's values of a target; return them and their differences from the archive."""
    new, old = module.current(), module.archived()
    if old is None:
        return new, iter([f"the archive '{module.ARCHIVE}' does not exist yet"])
    return new, module.differences(old, new)


def regenerate(names: Sequence[str], write: bool) -> int:
    """Print the differences of each target, replace its archive where ``write``; return how many
    there were.
    """
    total = 0
    for name in names:
        module = load(name)
        new, found = compare(module)
        count = 0
        for sentence in found:
            count += 1
            print(f"{module.ARCHIVE}: {sentence}", flush=True)
        if write:
            module.write(new)
        print(
            f"{module.ARCHIVE}: {count or 'no'} difference{'' if count == 1 else 's'}{', written' if write else ''}",
            flush=True,
        )
        total += count
    return total


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status."""
    if importlib.util.find_spec("lowrank") is None:
        sys.path.insert(0, str(HERE.parent.parent))
    parser = argparse.ArgumentParser(description="Compare today's code with the golden archives.")
    parser.add_argument(
        "targets", nargs="*", metavar="TARGET", help=f"{', '.join(TARGETS)}; without one, all"
    )
    parser.add_argument(
        "--write", action="store_true", help="replace the archives by today's values"
    )
    options = parser.parse_args(arguments)
    unknown = sorted(set(options.targets) - set(available()))
    if unknown:
        parser.error(f"no target '{unknown[0]}'; targets are {', '.join(available())}")
    return 1 if regenerate(options.targets or available(), options.write) else 0


if __name__ == "__main__":
    raise SystemExit(main())
