"""Losses and gradient norms of the first updates of every method, at every precision, with every
saver of memory.

The training loop itself computes them, on one thread of the CPU, over a few thousand parameters.
The recipe lets 20 updates meet refreshes of subspaces, merges of adapters, warm-up, clipping,
accumulation and, at 8 bits, moments large enough to be quantised.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import _equality
import _rooms
from _equality import Json

ARCHIVE = "losses"
PATH = Path(__file__).resolve().with_name("losses.json")
AGAIN = "python tests/golden/regenerate.py losses --write"
UPDATES = 20
# The rank times the longer side is more than the 4096 entries from which moments are quantised; its
# last block is not full.
SHAPE = {
    "hidden_size": 32,
    "intermediate_size": 173,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "rank": 24,
}
SETTINGS = {"rank": 24, "update_proj_gap": 3, "merge_every": 4, "restart_warmup": 1, "dropout": 0.1}
TRAINING: Json = {
    "learning_rate": 3e-3,
    "steps": UPDATES,
    "warmup_steps": 2,
    "batch_size": 4,
    "eps": 1e-6,
    "weight_decay": 0.01,
    "max_grad_norm": 1.0,
}
PRECISIONS = ("float32", "bfloat16_autocast", "pure_bfloat16")
WHOLE: Json = {"per_layer_updates": True, "max_grad_norm": None}
SAVERS: dict[str, Json] = {
    "none": {"micro_batch_size": 2},
    "gradient_checkpointing": {"gradient_checkpointing": True},
    "per_layer_updates": WHOLE,
    "state_bits_8": {"state_bits": 8},
    "per_layer_updates_with_clipping": {**WHOLE, "max_grad_norm": 1.0},
    "per_layer_updates_with_accumulation": {**WHOLE, "micro_batch_size": 2},
}
# Between machines. Measured with instruction sets switched off (AVX2, and SSE alone), the worst of
# all cells: losses 3e-7 in float32 and 3e-6 with moments at 8 bits, where a rounding moves a code
# by a whole step; 8e-4 in bfloat16, whose numbers have 8 bits. Norms of gradients follow the
# curvature, and are up to a hundred times as sensitive.
TOLERANCES = {
    "float32": {"loss": 1e-5, "gradient_norm": 1e-5},
    "bfloat16": {"loss": 5e-3, "gradient_norm": 0.5},
}
EIGHT_BITS = {"loss": 1e-5, "gradient_norm": 2e-3}  # in float32


def current() -> Json:
    """Compute today's archive: a header and, by ``method/precision/saver``, a trajectory or the
    refusal of the combination.
    """
    cells: Json = {}
    for method in _rooms.method_names():
        cells |= cells_of(method)
    return {"header": header(), "cells": cells}


def archived() -> Json | None:
    """Read the archive; None where there is none."""
    return json.loads(PATH.read_text(encoding="utf-8")) if PATH.is_file() else None


def write(new: Json) -> None:
    """Replace the archive."""
    PATH.write_text(_equality.dumps(new, wide=("cells",)), encoding="utf-8")


def differences(old: Json, new: Json) -> Iterator[str]:
    """Say what differs: the text, methods on one side alone, and cells beyond what their machines
    allow.
    """
    for key in ("corpus_sha256", "dataset_fingerprint", "tokenizer_hash"):
        if old["header"].get(key) != new["header"].get(key):
            yield f"{key} was {old['header'].get(key)}, is {new['header'].get(key)}: every number below is of other rows"
    for cell in sorted({*old["cells"], *new["cells"]}):
        yield from cell_differences(cell, old, new)


def cell_differences(cell: str, old: Json, new: Json) -> Iterator[str]:
    """Say how one cell differs: bits on one machine, the precision's tolerance between two."""
    before, now = old["cells"].get(cell), new["cells"].get(cell)
    if before is None or now is None:
        yield f"{cell}: {'not in the archive' if before is None else 'archived, and gone from the code'}"
    elif "refused" in before or "refused" in now:
        if before != now:
            yield f"{cell}: {_kind(before)} became {_kind(now)}"
    else:
        same = _equality.is_same_machine(old["header"], new["header"])
        yield from _equality.series_differences(
            cell, 1, before, now, {} if same else tolerances(cell)
        )


def tolerances(cell: str) -> dict[str, float]:
    """Return the largest relative differences of a cell's series between two machines."""
    _, precision, saver = cell.split("/")
    if precision != "float32":
        return TOLERANCES["bfloat16"]
    return EIGHT_BITS if saver == "state_bits_8" else TOLERANCES["float32"]


def header() -> Json:
    """Describe the machine, the libraries and the text."""
    data = _rooms.dataset()
    return {
        **_equality.header(_rooms.VERSION),
        "dataset_fingerprint": data.fingerprint,
        "tokenizer_hash": data.tokenizer_hash,
    }


@cache
def cells_of(method: str) -> Json:
    """Compute all cells of a method; the second call returns what the first one found."""
    return {
        f"{method}/{precision}/{saver}": compute(method, precision, saver)
        for precision in PRECISIONS
        for saver in SAVERS
    }


def compute(method: str, precision: str, saver: str) -> Json:
    """Train one cell; a combination that the code refuses becomes ``{"refused": name of the
    error}``.
    """
    config = _rooms.run_config(
        method, SHAPE, {**TRAINING, "precision": precision, **SAVERS[saver]}, SETTINGS
    )
    with _rooms.on_one_thread():
        try:
            loop = _rooms.build_loop(config)
        except _rooms.REFUSAL as error:
            return {"refused": type(error).__name__}
        return dict(_rooms.walk(loop, 1, UPDATES))


def _kind(cell: dict[str, Any]) -> str:
    return f"refused ({cell['refused']})" if "refused" in cell else "a trajectory"
