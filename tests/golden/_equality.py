"""When a number must be that of an archive bit for bit, how near it must come elsewhere, and how a
difference is said.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import platform
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import _corpus
import numpy as np
import torch

Json = dict[str, Any]
# What decides the bits of a sum on a CPU in one thread: the libraries, their build, and the
# instructions that they choose.
EXACT = (
    "torch",
    "transformers",
    "accelerate",
    "blas",
    "onednn",
    "cpu_capability",
    "cpu",
    "instructions",
    "switches",
    "threads",
)
SWITCHES = (
    "ATEN_CPU_CAPABILITY",
    "MKL_CBWR",
    "MKL_ENABLE_INSTRUCTIONS",
    "MKL_DEBUG_CPU_TYPE",
    "ONEDNN_MAX_CPU_ISA",
    "DNNL_MAX_CPU_ISA",
    "OPENBLAS_CORETYPE",
)
FAMILIES = ("sse", "ssse", "avx", "fma", "f16c", "bmi", "amx", "sve", "asimd", "bf16", "vnni")


def header(lowrank_version: str) -> Json:
    """Describe the libraries and the machine that compute now, always in one thread."""
    cpu, instructions = processor()
    return {
        "lowrank": lowrank_version,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "transformers": version("transformers"),
        "accelerate": version("accelerate"),
        "tokenizers": version("tokenizers"),
        "blas": build_line("Math Kernel Library") or build_line("BLAS_INFO"),
        "onednn": build_line("MKL-DNN"),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "cpu": cpu,
        "instructions": instructions,
        "switches": {name: os.environ[name] for name in SWITCHES if name in os.environ},
        "threads": 1,
        "corpus_sha256": hashlib.sha256(_corpus.PATH.read_bytes()).hexdigest(),
    }


def build_line(word: str) -> str:
    """Return the line of PyTorch's build notes that holds ``word``, at most 120 characters of it;
    empty where none does.
    """
    lines = (line.strip(" -") for line in torch.__config__.show().splitlines())
    return next((line[:120] for line in lines if word in line), "")


def processor() -> tuple[str, str]:
    """Return the processor (vendor, family, model, stepping, name) and its instruction sets, from
    the kernel where it tells.

    A virtual machine may hide the name; two models of one name differ in their numbers or their
    instruction sets.
    """
    found: dict[str, str] = {}
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            key, colon, value = line.partition(":")
            if colon:
                found.setdefault(key.strip(), value.strip())
    except OSError:
        return platform.processor() or platform.machine(), ""
    named = [
        found.get(key, "") for key in ("vendor_id", "cpu family", "model", "stepping", "model name")
    ]
    flags = (found.get("flags") or found.get("Features") or "").split()
    return " ".join(named).strip() or platform.machine(), " ".join(
        sorted(f for f in flags if f.startswith(FAMILIES))
    )


def is_same_machine(old: Mapping[str, Any], new: Mapping[str, Any]) -> bool:
    """Tell whether two headers promise the same bits."""
    return all(old.get(key) == new.get(key) for key in EXACT)


def first_difference(
    old: Sequence[float], new: Sequence[float], tolerance: float
) -> tuple[int, float, float] | None:
    """Find the first place where two series differ by more than ``tolerance``, relative to the old
    value; 0: in any bit.
    """
    for index, (before, now) in enumerate(zip(old, new, strict=False)):
        near = before == now or (tolerance > 0 and math.isclose(now, before, rel_tol=tolerance))
        if not near and not (math.isnan(before) and math.isnan(now)):
            return index, before, now
    return None


def series_differences(
    what: str,
    first_update: int,
    old: Mapping[str, Sequence[float]],
    new: Mapping[str, Sequence[float]],
    tolerances: Mapping[str, float],
) -> Iterator[str]:
    """Say for each series at which update it first differs by more than its relative tolerance
    (none: in any bit), and how.
    """
    for key in sorted({*old, *new}):
        before, now = old.get(key, ()), new.get(key, ())
        if len(before) != len(now):
            yield f"{what}: {key} has {len(now)} values, the archive {len(before)}"
        elif (found := first_difference(before, now, tolerances.get(key, 0.0))) is not None:
            index, a, b = found
            relative = abs(b - a) / abs(a) if a else math.inf
            yield f"{what}: {key} first differs at update {first_update + index}: {a!r} became {b!r} (relative {relative:.1e})"


def dumps(value: Json, wide: Sequence[str] = ()) -> str:
    """Write JSON with one line for each value of the objects named in ``wide`` (of two levels) and
    full float64 digits.
    """
    parts = []
    for key, body in value.items():
        if key in wide:
            lines = ",\n".join(
                f"  {json.dumps(name)}: {json.dumps(entry)}" for name, entry in body.items()
            )
            parts.append(f" {json.dumps(key)}: {{\n{lines}\n }}")
        else:
            parts.append(f" {json.dumps(key)}: " + json.dumps(body, indent=1).replace("\n", "\n "))
    return "{\n" + ",\n".join(parts) + "\n}\n"
