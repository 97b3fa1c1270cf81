"""Record the code and the machine behind a value.

Provenance is stored with every result, but it is no part of the protocol.
"""

from __future__ import annotations

import platform
import subprocess
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from lowrank import __version__
from lowrank.hashing import spaced_hash
from lowrank.store.records import Provenance

LIBRARIES = (
    "torch",
    "accelerate",
    "transformers",
    "datasets",
    "lm-eval",
    "sqlalchemy",
    "numpy",
    "scipy",
    "scikit-learn",
    "tokenizers",
)


def current() -> Provenance:
    """Return the provenance of what this process computes now.

    The result is not cached, because the number of threads may change between calls.
    """
    import torch

    body: dict[str, Any] = {
        "lowrank_version": __version__,
        "git_commit": git_commit(),
        "library_versions": library_versions(),
        "device": device_name(),
        "threads": torch.get_num_threads(),
    }
    return Provenance(hash=spaced_hash(body), **body)


@cache
def library_versions() -> dict[str, str]:
    """Return the versions of Python and of the libraries that can change a number."""
    found = {"python": platform.python_version()}
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


@cache
def git_commit() -> str:
    """Return the commit of the checkout that this code runs from.

    A ``+`` is appended if there are uncommitted changes; an installed package has an empty commit.
    """
    here = Path(__file__).resolve().parent
    if not (here.parent / "pyproject.toml").is_file():
        return ""
    try:
        commit = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=here, capture_output=True, text=True, check=True
        ).stdout.strip()
        dirty = subprocess.run(
            ["git", "status", "--porcelain", "-uno"],
            cwd=here,
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""
    return commit + ("+" if dirty else "")


@cache
def device_name() -> str:
    """Return the name of the accelerator, or of the processor if there is none."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
