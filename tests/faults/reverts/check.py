"""Bring known faults back one by one, each in a copy of the checkout, and see its test fail."""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parents[2]
MAPPED = ("cli", "sql", "migrations")  # folders that are packages below lowrank
LIMIT = 600.0  # seconds for one test
ONLY_IMPORTS = re.compile(r"^(ERROR|E +)(.*ImportError|.*ModuleNotFoundError|.*SyntaxError)", re.M)


@dataclass(frozen=True)
class Revert:
    """A patch that brings a fault back, and the test that has to notice."""

    name: str
    fault: str
    test: str
    path: Path


def reverts() -> list[Revert]:
    """Return all patches by name; a patch without its two lines is an error."""
    found = []
    for path in sorted(HERE.glob("*.patch")):
        head = path.read_text(encoding="utf-8").partition("\ndiff --git")[0]
        fields = dict(re.findall(r"^(Fault|Test): (.+)$", head, re.M))
        if fields.keys() != {"Fault", "Test"}:
            raise SystemExit(f"{path.name}: the patch needs a line 'Fault: …' and a line 'Test: …'")
        found.append(Revert(path.stem, fields["Fault"], fields["Test"], path))
    return found


def copy_of_checkout(folder: Path) -> Path:
    """Copy the files that git knows or does not ignore; lowrank is importable from the copy."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "-co", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=True,
    )
    for name in listed.stdout.decode().split("\0"):
        source = ROOT / name
        if name and source.is_file():
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, target)
    for name in MAPPED:
        (folder / "lowrank" / name).symlink_to(Path("..") / name)
    return folder


def applies(revert: Revert, folder: Path, *, check: bool = False) -> str:
    """Apply a patch in ``folder``, or only check that it applies; return git's complaint."""
    command = ["git", "apply", *(["--check"] if check else []), str(revert.path)]
    # The folder may lie within another checkout, whose git would look for files elsewhere.
    environment = {**os.environ, "GIT_CEILING_DIRECTORIES": str(folder.parent)}
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, env=environment)
    return done.stderr.strip() if done.returncode else ""


def verdict(revert: Revert, folder: Path) -> str:
    """Return '' where the test fails in the patched copy as it must, else what is wrong."""
    complaint = applies(revert, folder)
    if complaint:
        return f"the patch does not apply: {complaint.splitlines()[0]}"
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", revert.test],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=LIMIT,
    )
    if done.returncode == 0:
        return "the test passes though the fault is back"
    if done.returncode != 1 or ONLY_IMPORTS.search(done.stdout) or " failed" not in done.stdout:
        return f"the test did not run: {done.stdout.strip().splitlines()[-1:]}"
    return ""


def main() -> int:
    """Check the named reverts, or all of them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help="only these")
    names = parser.parse_args().names
    found = reverts()
    unknown = sorted(set(names) - {revert.name for revert in found})
    if unknown:
        parser.error(f"no revert is called '{unknown[0]}'")
    wrong = 0
    for revert in found:
        if names and revert.name not in names:
            continue
        with tempfile.TemporaryDirectory(prefix="revert-") as folder:
            odd = verdict(revert, copy_of_checkout(Path(folder)))
        wrong += bool(odd)
        print(f"{'WRONG' if odd else 'seen '}  {revert.name}: {odd or revert.fault}", flush=True)
    print(f"{wrong} of {len(names or found)} are not noticed by their tests")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
