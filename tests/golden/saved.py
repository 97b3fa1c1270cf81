"""Resume points and checkpoints that an earlier version wrote, and the losses that they must give
when they are loaded.

The folders under ``saved/`` are written once, where they are missing, and never again: that what
they hold stays loadable is what they are kept for. Delete one and regenerate to have it written by
today's code.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import _equality
import _rooms
import torch
from _equality import Json

ARCHIVE = "saved"
FOLDER = Path(__file__).resolve().with_name("saved")
PATH = FOLDER / "saved.json"
AGAIN = "python tests/golden/regenerate.py saved --write"
KEYS = ("update", "run_config_hash", "loss", "gradient_norm")  # of a resume point, in the archive
KEPT, NEXT = 6, 5  # updates before the state was saved, and after it
SMALL = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "rank": 8,
}
WIDE = {
    **SMALL,
    "intermediate_size": 520,
}  # times the rank: more than the 4096 entries from which moments are quantised
SETTINGS = {"rank": 8, "update_proj_gap": 4, "merge_every": 4, "restart_warmup": 1, "dropout": 0.1}
TRAINING: Json = {
    "learning_rate": 3e-3,
    "steps": 20,
    "warmup_steps": 2,
    "batch_size": 4,
    "eps": 1e-6,
    "weight_decay": 0.01,
}
# Between machines; float32 measured at 3e-6 with instruction sets switched off, bfloat16 has 8 bits
# (see losses.py).
TOLERANCES = {"loss": 1e-5, "gradient_norm": 2e-3}
BFLOAT16 = {"loss": 5e-3, "gradient_norm": 0.5}


@dataclass(frozen=True)
class Case:
    """A run whose state was saved after update :data:`KEPT`."""

    method: str
    shape: dict[str, int] = field(default_factory=lambda: SMALL)
    training: Json = field(default_factory=dict)

    def config(self) -> Any:
        """Configure the run."""
        return _rooms.run_config(self.method, self.shape, {**TRAINING, **self.training}, SETTINGS)


RESUME = {
    "full_rank": Case("full_rank"),  # AdamW of PyTorch, fused
    "full_rank_8bit": Case("full_rank", WIDE, {"state_bits": 8}),
    "galore_8bit": Case(
        "galore", WIDE, {"state_bits": 8}
    ),  # quantised moments in a subspace, its basis
    "galore_bfloat16": Case("galore", SMALL, {"precision": "pure_bfloat16"}),
    "fira": Case("fira"),  # the norm of the residual
    "relora": Case("relora"),  # after a merge, its counters begun anew
    "sltrain": Case("sltrain"),  # a support beside the weights
}
CHECKPOINTS = {"full_rank": Case("full_rank"), "sltrain": Case("sltrain")}


def current() -> Json:
    """Load every saved state with today's code; a state that is missing is written by it first,
    beside the archive's folder.
    """
    with tempfile.TemporaryDirectory(prefix="lowrank_golden_") as scratch, _rooms.on_one_thread():
        made = Path(scratch)
        resume, checkpoints = {}, {}
        for name, case in RESUME.items():
            resume[name] = resumed(case, _found(made, "resume", name))
        for name, case in CHECKPOINTS.items():
            checkpoints[name] = _rooms.read_checkpoint(
                _found(made, "checkpoints", name) / "checkpoint", case.config().training
            )
        new: Json = {"header": _header(), "resume": resume, "checkpoints": checkpoints}
        new["made"] = {
            path.relative_to(made).as_posix(): path.read_bytes()
            for path in sorted(made.rglob("*"))
            if path.is_file()
        }
    return new


def archived() -> Json | None:
    """Read what the saved states gave when they were written; None where there is nothing."""
    return json.loads(PATH.read_text(encoding="utf-8")) if PATH.is_file() else None


def write(new: Json) -> None:
    """Replace the archive of losses, and add the states that are missing; states that are there
    stay as they are.
    """
    for name, content in new["made"].items():
        path = FOLDER / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    for kind, cases in (("resume", RESUME), ("checkpoints", CHECKPOINTS)):
        for gone in (path for path in (FOLDER / kind).iterdir() if path.name not in cases):
            shutil.rmtree(gone)
    resume = {name: {key: entry[key] for key in KEYS} for name, entry in new["resume"].items()}
    kept = {"header": new["header"], "resume": resume, "checkpoints": new["checkpoints"]}
    PATH.write_text(_equality.dumps(kept, wide=("resume", "checkpoints")), encoding="utf-8")


def differences(old: Json, new: Json) -> Iterator[str]:
    """Say which states no longer give what they gave, or have another layout than today's code
    writes.
    """
    for name in new.get("made", {}):
        yield f"{name}: missing, written by today's code"
    same = _equality.is_same_machine(old["header"], new["header"])
    for kind in ("resume", "checkpoints"):
        for name in sorted({*old[kind], *new[kind]}):
            if name not in new[kind] or name not in old[kind]:
                yield f"{kind}/{name}: {'not in the archive' if name in new[kind] else 'archived, and gone from saved.py'}"
            elif kind == "resume":
                yield from _resume_differences(name, old[kind][name], new[kind][name], same)
            else:
                yield from _checkpoint_differences(name, old[kind][name], new[kind][name], same)


def resumed(case: Case, folder: Path) -> Json:
    """Go on from a resume point: its update, the next :data:`NEXT` losses and norms, the layout of
    today's state there.
    """
    loop = _rooms.build_loop(case.config())
    update, state = _rooms.read_resume_point(folder)
    loop.restore(state)
    found = _rooms.walk(loop, update + 1, update + NEXT)
    fresh = _rooms.build_loop(case.config())
    _rooms.walk(fresh, 1, update)
    return {
        "update": update,
        "run_config_hash": case.config().fingerprint(),
        "saved_layout": layout(state),
        "layout": layout(fresh.state()),
        **found,
    }


def layout(value: Any, where: str = "") -> dict[str, str]:
    """List every leaf of a state by its path: type and shape of a tensor, the type of a plain
    value.
    """
    if isinstance(value, torch.Tensor):
        return {where: f"{str(value.dtype).removeprefix('torch.')} {tuple(value.shape)}"}
    if isinstance(value, dict):
        items = [(str(key), inner) for key, inner in value.items()]
    elif isinstance(value, list | tuple):
        items = [(str(index), inner) for index, inner in enumerate(value)]
    else:
        return {where: type(value).__name__}
    return {
        path: leaf for key, inner in items for path, leaf in layout(inner, f"{where}/{key}").items()
    }


def _resume_differences(name: str, old: Json, new: Json, same: bool) -> Iterator[str]:
    what = f"resume/{name}"
    for key in ("update", "run_config_hash"):
        if old[key] != new[key]:
            yield f"{what}: {key} was {old[key]}, is {new[key]}"
    written, now = new["saved_layout"], new["layout"]
    for path in sorted({*written, *now}):
        if written.get(path) != now.get(path):
            yield f"{what}: the state's {path} was {written.get(path, 'absent')}, is {now.get(path, 'absent')} in today's state"
    series = [{key: side[key] for key in ("loss", "gradient_norm")} for side in (old, new)]
    tolerances = BFLOAT16 if name.endswith("bfloat16") else TOLERANCES
    yield from _equality.series_differences(
        what, old["update"] + 1, *series, {} if same else tolerances
    )


def _checkpoint_differences(name: str, old: Json, new: Json, same: bool) -> Iterator[str]:
    for key in old:
        before, now = old[key], new.get(key)
        if key == "validation_loss":
            near = (
                _equality.first_difference([before], [now], 0.0 if same else TOLERANCES["loss"])
                is None
            )
        else:
            near = before == now
        if not near:
            yield f"checkpoints/{name}: {key} was {before!r}, is {now!r}"


def _found(made: Path, kind: str, name: str) -> Path:
    """Return the folder of a saved state: the archive's, or one under ``made`` that
    is written now.
    """
    folder = FOLDER / kind / name
    if folder.is_dir():
        return folder
    case, target = (RESUME if kind == "resume" else CHECKPOINTS)[name], made / kind / name
    loop = _rooms.build_loop(case.config())
    losses = _rooms.walk(loop, 1, KEPT)["loss"]
    if kind == "resume":
        _rooms.write_resume_point(target, KEPT, loop, losses)
    else:
        _rooms.write_checkpoint(target / "checkpoint", KEPT, loop)
    return target


def _header() -> Json:
    return _equality.header(_rooms.VERSION)


if (
    __name__ == "__main__"
):  # the test asks a fresh process: today's values as JSON, into the file that it names
    answer = current()
    answer["made"] = dict.fromkeys(answer["made"], "")
    Path(sys.argv[1]).write_text(json.dumps(answer), encoding="utf-8")
