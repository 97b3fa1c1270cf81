"""How the content of the archived databases is made: a synthetic study, and what a study that goes
well does not have.
"""

from __future__ import annotations

import importlib.util
import math
import sqlite3
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import yaml

from lowrank.predict import predict
from lowrank.store import Store
from lowrank.store import records as r
from lowrank.study import Plan

HERE = Path(__file__).resolve().parent
STUDY_FILE = HERE / "stores" / "study.yaml"
FACTORY = HERE.parent / "report" / "factory.py"
STUDY = "golden"
TRACEBACK = (
    "Traceback (most recent call last):\n"
    '  File "größe.py", line 3, in ratio\n'
    "    return 100 * part / whole\n"
    "           ~~~~~~~~~~~^~~~~~~\n"
    "ZeroDivisionError: division by zero\n"
)
THINNING = (
    "DELETE FROM training_log"
    " WHERE step % 10 <> 1 AND step < 150 AND loss_kind = 'finite' AND step > 2",
    "DELETE FROM downstream_item WHERE CAST(substr(item, 5) AS INTEGER) >= 10",
    "DELETE FROM singular_value WHERE layer = 1 AND module NOT IN ('q', 'down')",
    # a hash of floats, whose last bit depends on the SQLite that averages them
    "UPDATE predictor_fit SET input_hash = 'input of fit ' || id",
)
"""Statements that make the archive small, and the same wherever it is made."""


def factory() -> ModuleType:
    """Import tests/report/factory.py, under the name that the tests of the report use."""
    name = "report_factory"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, FACTORY)
        assert spec is not None
        assert spec.loader is not None
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


def build(path: Path) -> None:
    """Make the database at the newest revision, as one SQLite file without a log beside it."""
    synthetic = factory()
    spec = synthetic.Synthetic(
        name=STUDY,
        methods=("full_rank", "galore", "cola"),
        scales={"nano": 64, "60m": 512},
        seeds=(0, 1),
        steps=(0, 75, 150),
        layers=2,
        singular_values=3,
        failed=("galore", "60m", 1),
    )
    plan = Plan.of(STUDY_FILE)
    with Store.open(path, create=True) as store, store.transaction():
        built = synthetic.fill(store, spec)
        body = yaml.safe_load(STUDY_FILE.read_text(encoding="utf-8"))
        store.put(replace(built.study, config={**body, "preset": "exact"}, root=f"outputs/{STUDY}"))
        fingerprints = {(c.method, c.scale, c.seed): c.fingerprint() for c in plan.runs}
        add_runs(store, built, fingerprints)
        add_values(store, built)
        add_units(store, built, fingerprints)
    with Store.open(path) as store:
        predict(
            store,
            STUDY,
            schemes=("loso", "lomo"),
            models=("linear",),
            selections=("fixed",),
            permutations=9,
            progress=False,
        )
    statements = [
        ("UPDATE run SET config_hash = ? WHERE config_hash = ?", (new, f"{m}-{s}-{seed}-{STUDY}"))
        for (m, s, seed), new in fingerprints.items()
    ]
    tidy(path, [*statements, *((statement, ()) for statement in THINNING)])


def tidy(path: Path, statements: Sequence[tuple[str, Sequence[Any]]] = ()) -> None:
    """Run ``statements`` in an SQLite file and pack it, so that equal content gives equal bytes."""
    connection = sqlite3.connect(path)
    try:
        with connection:
            for statement, values in statements:
                connection.execute(statement, values)
        connection.execute("VACUUM")
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    finally:
        connection.close()


def add_runs(store: Store, built: Any, fingerprints: Mapping[tuple[str, str, int], str]) -> None:
    """Add runs of every other state: superseded, planned, cancelled, running and imported ones, and
    one that failed with a traceback.
    """
    old = built.runs["cola", "nano", 0]
    common = {"study_id": built.study.id, "total_steps": 150, "provenance_id": built.provenance.id}

    def run(method: str, scale: str, seed: int, **more: Any) -> r.Run:
        names = {
            "method": method,
            "scale": scale,
            "seed": seed,
            "data_seed": seed,
            "init_seed": seed,
        }
        return store.add(
            r.Run(**{**common, **names, "config_hash": fingerprints[method, scale, seed], **more})
        )

    superseded = run(
        "relora",
        "nano",
        0,
        config_hash="the recipe before",
        status="done",
        parameters_total=old.parameters_total,
    )
    run("relora", "nano", 0, config={"training": {"learning_rate": 1e-3}})
    cancelled = run("relora", "nano", 1, status="cancelled", attempts=1)
    running = run("relora", "60m", 0, status="running", attempts=2)
    run(
        "relora",
        "60m",
        1,
        config_hash="the recipe that failed",
        status="failed",
        attempts=3,
        error="division by zero",
        traceback=TRACEBACK,
    )
    run("relora", "60m", 1)
    imported = run(
        "galore",
        "60m",
        0,
        config_hash="imported",
        variant="released",
        kind="imported",
        status="done",
        config={"settings": {"größe": [1, 2.5, None, True]}},
    )
    for owner, step, kind, loss in (
        (superseded, 0, "initial", math.nan),
        (superseded, 150, "final", math.inf),
        (cancelled, 0, "initial", None),
        (imported, 60_000, "imported", 3.5625),
    ):
        store.add(
            r.Checkpoint(
                run_id=owner.id or 0,
                step=step,
                kind=kind,
                tokens_seen=step * 2**20,
                path=f"runs/{owner.id}/{step}",
                sha256=f"{owner.id}/{step}",
                bytes=2**33,
                validation_loss=loss,
                validation_tokens=0 if loss is None else 40_000,
            )
        )
    failed = built.runs["galore", "60m", 1]
    store.add_all(
        r.TrainingLog(
            run_id=owner.id or 0, step=step, loss=loss, learning_rate=1e-3, gradient_norm=norm
        )
        for owner, step, loss, norm in (
            (failed, 141, math.inf, math.nan),
            (running, 1, 10.5, None),
            (running, 2, math.nan, math.inf),
        )
    )


def add_values(store: Store, built: Any) -> None:
    """Add results of every kind: nan, both infinities, absent with a note, of one matrix; layer by
    layer.
    """
    curvature = store.add(
        r.Protocol(name="exact", lens="curvature", metric_revision=1, precision="float32")
    )
    spectra, scores = built.protocols["spectra"], built.protocols["downstream"]

    def value(
        method: str, seed: int, metric: str, number: float | None, **more: Any
    ) -> r.MetricValue:
        checkpoint = built.checkpoints[method, "nano", seed, 150]
        fields = {"protocol_id": curvature.id, "provenance_id": built.provenance.id, **more}
        return r.MetricValue(checkpoint_id=checkpoint.id, metric=metric, value=number, **fields)

    note = "the method has no dense equivalent"
    store.add_all(
        [
            value("full_rank", 0, "hessian_trace", 12.5, standard_error=0.25, n=8),
            value("full_rank", 1, "hessian_trace", math.nan, standard_error=math.nan, n=8),
            value("galore", 0, "hessian_trace", math.inf, standard_error=math.inf, n=8),
            value("galore", 0, "hessian_top_eigenvalue", -math.inf),
            value("cola", 0, "hessian_trace", None, note=note),
            value(
                "full_rank",
                0,
                "effective_rank_w",
                31.5,
                layer=0,
                module="q",
                protocol_id=spectra.id,
            ),
        ]
    )
    keys = {"checkpoint_id": built.checkpoints["galore", "nano", 1, 150].id}
    store.add_all(
        r.CurvePoint(
            **keys,
            protocol_id=built.protocols["landscape"].id,
            curve="landscape_random",
            direction_index=3,
            position=i,
            offset_value=0.25 * i,
            mean=mean,
            variance=variance,
        )
        for i, (mean, variance) in enumerate(
            [(4.5, None), (math.inf, math.nan), (math.nan, math.inf), (-math.inf, 0.5)]
        )
    )
    score = {**keys, "protocol_id": scores.id, "task": "cloze", "category": "language"}
    store.add_all(
        [
            r.DownstreamScore(
                **score, metric="perplexity", value=math.inf, standard_error=math.nan, n=3
            ),
            r.DownstreamScore(**score, metric="f1", value=None, note="no item has an answer", n=0),
            r.DownstreamItem(
                **keys,
                protocol_id=scores.id,
                task="cloze",
                metric="perplexity",
                item="item0",
                value=math.nan,
            ),
        ]
    )


def add_units(store: Store, built: Any, fingerprints: Mapping[tuple[str, str, int], str]) -> None:
    """Add a claim that its owner left behind and lapsed long ago, and two units of work that
    failed.
    """
    unit = f"train/{STUDY}/{fingerprints['relora', '60m', 0]}"
    store.add_all(
        [
            r.WorkUnit(
                unit_key=unit,
                kind="train",
                status="claimed",
                owner="elsewhere/1/0",
                lease_until=1.7e9 + 120,
                heartbeat_at=1.7e9,
                attempts=2,
                study_id=built.study.id,
            ),
            r.WorkUnit(
                unit_key="measure/1",
                kind="measure",
                status="failed",
                attempts=1,
                study_id=built.study.id,
                error="the checkpoint 'runs/1' is missing: 'ΔW' has no end",
            ),
            r.WorkUnit(
                unit_key="evaluate/1",
                kind="evaluate",
                status="failed",
                attempts=3,
                error="out of memory",
                traceback=TRACEBACK,
            ),
        ]
    )
