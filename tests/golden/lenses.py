"""The archive of lenses: every row that measuring a tiny study gives, by natural key, on weights
that no platform moves.

Weights are exact multiples of powers of two, drawn from SHAKE-256 of the parameter's name: the same
bits everywhere and with every version of PyTorch, so that the archive needs no checkpoints. Rows
are equal to the last bit where libraries and processor are those of the archive, and within
:data:`TOLERANCES` elsewhere.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import math
import os
import tempfile
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any
from unittest import mock

import _equality
import numpy as np
import torch
import yaml
from threadpoolctl import threadpool_limits

from lowrank import checkpoint, metrics
from lowrank.config import RunConfig
from lowrank.data import open_data
from lowrank.models import build
from lowrank.store import Store, records
from lowrank.study import Plan, register, run_study

ARCHIVE = "lenses"
HERE = Path(__file__).resolve().parent
PATH = HERE / "lenses.json.gz"
COMMAND = "python tests/golden/regenerate.py lenses --write"
STEPS = {0: "initial", 10: "training", 20: "final"}
SECOND_SEED = ("full_rank", "cola")  # methods with a second run, for what compares seeds
LIBRARIES = ("numpy", "scipy", "tokenizers")  # beside those of every archive

STUDY: dict[str, Any] = {
    "name": "golden",
    "methods": {
        "full_rank": {},
        "cola": {},
        "relora": {"settings": {"merge_every": 10, "restart_warmup": 2}},
        "sltrain": {},
    },
    "scales": {
        "tiny": {
            "shape": {
                "hidden_size": 16,
                "intermediate_size": 24,
                "num_hidden_layers": 2,
                "num_attention_heads": 2,
                "rank": 4,
            }
        }
    },
    "seeds": [0, 1],
    "data": {
        "source": "text",
        "path": str(HERE / "studies" / "corpus.txt"),
        "max_length": 24,
        "layout": "padded",
        "vocabulary_size": 280,
        "validation_fraction": 0.1,
        "evaluation_examples": 6,
    },
    "training": {"steps": 20, "learning_rate": 1e-2, "checkpoint_every": 10},
}
TEXT = {"batch_rows": 4}  # two batches of different sizes
FEW = {**TEXT, "directions": 3}
# Offsets larger than those of the presets: at these the loss of such a model moves by far more than
# its rounding.
WIDE = {
    "grid": {"start": -0.03, "step": 0.0025, "count": 25},
    "component_grid": {"start": -0.24, "step": 0.02, "count": 25},
}
FILTER = {"grid": {"start": -0.12, "step": 0.04, "count": 7}}
# In bfloat16 the weights' own rounding moves the loss more than any offset; the same walk in
# float32 tells what it does.
COARSE = {
    "grid": {"start": -0.003, "step": 0.001, "count": 7},
    "component_grid": {"start": -0.05, "step": 0.02, "count": 6},
}
PLAIN = {
    "grid": {"start": -0.06, "step": 0.02, "count": 7},
    "component_grid": {"start": -0.25, "step": 0.1, "count": 6},
    "precision": "float32",
}
PRODUCTS = {"probes": 3, "iterations": 8}
AUTO = {"directions": "auto", "fewest": 3, "most": 6}
ENTRIES: dict[str, list[dict[str, Any]]] = {
    "landscape": [
        {
            "preset": "exact",
            "variants": ["main"],
            "settings": {**FEW, **WIDE, "component_means": [5]},
        },
        {"preset": "exact", "variants": ["trained"], "every": 2, "settings": {**FEW, **WIDE}},
        {
            "preset": "exact",
            "variants": ["trained"],
            "every": 3,
            "settings": {**TEXT, **WIDE, **AUTO},
        },
        {"preset": "exact", "variants": ["filter"], "every": 2, "settings": {**FEW, **FILTER}},
        {"preset": "published", "every": 2, "settings": {**FEW, **COARSE}},
        {"preset": "published", "every": 2, "settings": {**FEW, **PLAIN}},
    ],
    "interpolation": [
        {"preset": preset, "settings": {**TEXT, "points": 5}} for preset in ("exact", "published")
    ],
    "activations": [{"preset": preset, "settings": TEXT} for preset in ("exact", "published")],
    "curvature": [
        {"preset": preset, "every": 2, "settings": {**TEXT, **PRODUCTS}}
        for preset in ("exact", "published")
    ],
    "loss": [
        {"settings": {**TEXT, "final_only": False}},
        {"settings": {**TEXT, "split": "validation"}},
    ],
}

# (relative, absolute), ten times what values moved by, or more. Measured on one AMD EPYC (AVX512,
# one thread), against the same with ATEN_CPU_CAPABILITY=default; the same and MKL_CBWR=COMPATIBLE,
# ONEDNN_MAX_CPU_ISA=SSE41, OPENBLAS_CORETYPE=Nehalem; all of these at AVX2; and two threads. The
# largest moves, absolute (relative where that is what bounds it): losses on curves 9.3e-8
# barriers 8.9e-8             sharpness 7.7e-8            held_out_loss 6.6e-8 effective_rank 1.1e-6
# (1.4e-7)     stable_rank 1.6e-7 (3.2e-8) spectral_gap 1.9e-8         delta_norm 2.3e-9
# activation_l2 1.0e-7 (4.1e-8)      activation_cka 3.0e-8       singular values 2.6e-8
# sigma_pca, trajectory_share 3.4e-9 direction_variance 2.0e-9 (5.6e-7) hessian_trace 1.8e-4
# hessian_top_eigenvalue 2.7e-5 (4.7e-7) in bfloat16: losses 1.4e-3, sharpness 9.3e-4;
# direction_variance 5.0e-7 Not one threshold rank, count, kind or number of directions moved: they
# are compared exactly, or as numbers a whole apart.
DEFAULT = (2e-6, 1e-6)
TOLERANCES = {
    "direction_variance": (1e-5, 5e-9),  # squares of differences of losses: of the order of 1e-3
    "hessian_trace": (2e-5, 1e-3),  # a mean of products of either sign, each of the order of 100
    "hessian_top_eigenvalue": (5e-6, 0.0),  # by iteration
}
BFLOAT16 = (
    0.0,
    1.5e-2,
    # of what is computed from weights that are moved in bfloat16: one weight rounded otherwise is
    # enough
)


def entries() -> list[dict[str, Any]]:
    """Say what the study asks of every registered lens; a lens without an entry is asked for its
    presets as they are.
    """
    found: list[dict[str, Any]] = []
    for name in metrics.names():
        presets = [{"preset": preset} for preset in metrics.get(name).presets]
        found += [{"lens": name, **entry} for entry in ENTRIES.get(name, presets)]
    return found


def current(threads: int = 1) -> dict[str, Any]:
    """Measure the tiny study in an empty folder with ``threads`` threads; return its rows and where
    they were computed.
    """
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        with (
            threadpool_limits(threads),
            tempfile.TemporaryDirectory() as folder,
            mock.patch.dict(os.environ, {"LOWRANK_CACHE": f"{folder}/cache"}),
        ):
            return {"environment": environment(), **_measured(Path(folder))}
    finally:
        torch.set_num_threads(before)


def environment() -> dict[str, Any]:
    """Return what can move the last digits: versions of libraries, the processor, and the
    instructions in use.
    """
    here = _equality.header("")
    return {
        **{name: here[name] for name in _equality.EXACT},
        **{name: version(name) for name in LIBRARIES},
    }


def _measured(folder: Path) -> dict[str, Any]:
    file = folder / "golden.yaml"
    file.write_text(yaml.safe_dump({**STUDY, "output": str(folder / "out"), "metrics": entries()}))
    plan = Plan.of(file)
    with Store.open(folder / "lowrank.db", create=True) as store:
        points: dict[int | None, str] = {}
        for config, run in register(store, plan)[1]:
            if config.seed == 0 or config.method in SECOND_SEED:
                points |= _save_run(store, plan.root, config, run)
        failures = run_study(store, plan, only="measure").failures
        if failures:
            raise AssertionError(f"measuring the golden study failed: {failures}")
        return _rows(store, points)


@torch.no_grad()
def _save_run(
    store: Store, root: Path, config: RunConfig, run: records.Run
) -> dict[int | None, str]:
    """Write the run's checkpoints and rows; return their readable names by id."""
    data = open_data(config.data, 0)
    model, _ = build(config, data.vocabulary_size, data.special)
    state = {
        "init_hash": f"seed {config.seed}",
        "status": "done",
        "tokenizer_hash": data.tokenizer_hash,
    }
    store.update(records.Run, run.id, **state)
    named: dict[int | None, str] = {}
    for step, kind in STEPS.items():
        for name, parameter in model.named_parameters():
            if not step and parameter.any():  # what a method begins with as zero stays zero
                parameter.copy_(
                    float(parameter.dim() == 1) + drawn(f"{config.seed}/{name}", parameter.shape, 2)
                )
            elif step and parameter.requires_grad:
                parameter.add_(drawn(f"{config.label}/{step}/{name}", parameter.shape, 5))
        folder = root / "runs" / config.folder / f"step-{step}"
        manifest = checkpoint.Manifest(
            step=step, kind=kind, tokens_seen=step, method=config.method, settings=config.settings
        )
        saved = checkpoint.save(folder, model, manifest)
        row = store.add(
            records.Checkpoint(
                run_id=run.id or 0,
                step=step,
                kind=kind,
                tokens_seen=step,
                path=str(folder.relative_to(root)),
                sha256=saved.weights_sha256,
                bytes=saved.bytes,
                validation_loss=4.0,
            )
        )
        named[row.id] = f"{config.label}@{step}"
    return named


def drawn(name: str, shape: torch.Size, power: int) -> torch.Tensor:
    """Draw multiples of 2^-15 between -2^-``power`` and 2^-``power`` from the hash of ``name``:
    sums of a few are exact.
    """
    count = math.prod(shape)
    numbers = np.frombuffer(hashlib.shake_256(name.encode()).digest(2 * count), dtype="<i2").astype(
        np.float32
    )
    return torch.from_numpy(np.floor(numbers * 2.0**-power) * np.float32(2.0**-15)).reshape(shape)


def _rows(store: Store, points: dict[int | None, str]) -> dict[str, Any]:
    """Return all rows of results by natural key: [value, standard error, n], points of curves,
    singular values.
    """
    protocols = {}
    for p in store.find(records.Protocol):
        fields = (p.space, p.normalization, p.direction_seed, p.precision, p.parameters)
        name = f"{p.lens} {p.name} revision {p.metric_revision} {p.parameters_hash}"
        protocols[p.id] = (name, json.dumps(fields, sort_keys=True))
    rows: dict[str, dict[str, Any]] = {"values": {}, "curves": {}, "spectra": {}}

    def key(row: Any, *rest: Any) -> str:
        reference = points[row.reference_checkpoint_id] if row.reference_checkpoint_id else ""
        return "|".join(
            map(str, (points[row.checkpoint_id], reference, protocols[row.protocol_id][0], *rest))
        )

    for value in store.find(records.MetricValue):
        numbers = [*map(_number, (value.value, value.standard_error)), value.n]
        rows["values"][key(value, value.metric, value.layer, value.module)] = numbers
    for point in sorted(store.find(records.CurvePoint), key=lambda p: p.position):
        numbers = [*map(_number, (point.offset_value, point.mean, point.variance)), point.n]
        rows["curves"].setdefault(key(point, point.curve, point.direction_index), []).append(
            numbers
        )
    for one in sorted(store.find(records.SingularValue), key=lambda s: s.position):
        rows["spectra"].setdefault(key(one, one.matrix, one.layer, one.module), []).append(
            _number(one.value)
        )
    return {"protocols": dict(protocols.values()), **rows}


def _number(value: float | None) -> float | str:
    """Return a finite number, or the kind of what is none: absent, nan, inf or -inf."""
    if value is None:
        return "absent"
    return value if math.isfinite(value) else str(value)


def archived() -> dict[str, Any] | None:
    """Read the archive; None where there is none."""
    if not PATH.is_file():
        return None
    content: dict[str, Any] = json.loads(gzip.decompress(PATH.read_bytes()))
    return content


def write(new: dict[str, Any]) -> None:
    """Replace the archive; the same rows give the same bytes."""
    PATH.write_bytes(
        gzip.compress(json.dumps(new, sort_keys=True, separators=(",", ":")).encode(), mtime=0)
    )


def differences(old: dict[str, Any], new: dict[str, Any]) -> Iterator[str]:
    """Name the rows that differ: keys always exactly, numbers within the tolerances where the
    environment is another.
    """
    exact = old["environment"] == new["environment"]
    known = {key.split("|")[3] for key in old["values"]}
    yield from (
        f"the metric '{info.name}' of lens '{name}' is registered and not in the archive; add it with: {COMMAND}"
        for name in metrics.names()
        for info in metrics.get(name).metrics
        if info.name not in known
    )
    before, after = old["protocols"], new["protocols"]
    for key in sorted(before.keys() | after.keys()):
        if before.get(key) != after.get(key):
            yield f"the protocol '{key}': archived {before.get(key)}, now {after.get(key)}"
    both = before.keys() & after.keys()
    for table in ("values", "curves", "spectra"):
        for key in sorted(old[table].keys() | new[table].keys()):
            protocol, name = key.split("|")[2:4]
            if protocol not in both or (table == "values" and name not in known):
                continue  # named above
            if key not in old[table] or key not in new[table]:
                yield f"{table}: {key}: {'not in the archive' if key in new[table] else 'archived, now missing'}"
            elif not _close(
                old[table][key], new[table][key], (0.0, 0.0) if exact else tolerance(key, old)
            ):
                yield f"{table}: {key}: archived {_shown(old[table][key])}, now {_shown(new[table][key])}"


def tolerance(key: str, content: dict[str, Any]) -> tuple[float, float]:
    """Return (relative, absolute) of the metric, curve or spectrum of a row's key."""
    protocol, name = key.split("|")[2:4]
    if "bfloat16" in content["protocols"][protocol] and not name.startswith("sigma"):
        return BFLOAT16
    return TOLERANCES.get(name, DEFAULT)


def _close(old: Any, new: Any, within: tuple[float, float]) -> bool:
    """Compare numbers within (relative, absolute); counts, kinds and lengths exactly."""
    if isinstance(old, list) and isinstance(new, list):
        return len(old) == len(new) and all(
            _close(a, b, within) for a, b in zip(old, new, strict=True)
        )
    if isinstance(old, float) and isinstance(new, float):
        return abs(old - new) <= within[1] + within[0] * abs(old)
    return bool(old == new)


def _shown(row: Any) -> str:
    text = str(row)
    return text if len(text) <= 120 else text[:117] + "..."
