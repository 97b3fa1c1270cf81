"""A small store with rows in every table."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest

from lowrank.store import Store, records

Populate = Callable[..., None]


@pytest.fixture(scope="session")
def populate() -> Populate:
    """Fill a store: one study, two methods with two checkpoints each, and something
    in every table.
    """
    return _populate


def _populate(
    store: Store, *, study: str = "demo", methods: tuple[str, ...] = ("full_rank", "galore")
) -> None:
    provenance = store.add(
        records.Provenance(
            hash="p",
            lowrank_version="0.1.0",
            git_commit="c0ffee",
            library_versions={"torch": "2"},
            device="cpu",
            threads=1,
        )
    )
    held_out = store.add(
        records.EvaluationSet(
            name="validation",
            dataset_fingerprint="f",
            split="validation",
            seed=0,
            examples=4,
            tokens=2**33,
            max_length=8,
            packing=True,
            tokenizer_hash="t",
            sha256="e",
        )
    )
    protocol = store.add(
        records.Protocol(
            name="exact",
            lens="spectral",
            metric_revision=1,
            evaluation_set_id=held_out.id,
            parameters={"threshold": 0.1},
        )
    )
    row = store.put(
        records.Study(
            name=study, config={"methods": list(methods)}, config_hash="h", root="outputs"
        )
    )
    for method in methods:
        run = store.add(
            records.Run(
                study_id=row.id or 0,
                config_hash=f"{study}/{method}",
                method=method,
                scale="60m",
                seed=0,
                data_seed=0,
                init_seed=0,
                status="done",
                total_steps=2,
                provenance_id=provenance.id,
                train_seconds=1.5,
            )
        )
        _fill_run(store, run, protocol, held_out, provenance)
    fit = store.add(
        records.PredictorFit(
            study_id=row.id or 0,
            feature_set="all",
            features={"names": ["x"]},
            selection="none",
            scheme="loso",
            model="linear",
            target="mean",
            n=4,
            pearson=0.5,
            input_hash="i",
            provenance_id=provenance.id,
        )
    )
    store.add(
        records.Prediction(fit_id=fit.id or 0, row_label="a", fold="0", target=0.5, predicted=0.25)
    )
    store.add(
        records.WorkUnit(
            unit_key=f"{study}/1",
            kind="measure",
            status="failed",
            error="out of memory",
            study_id=row.id,
        )
    )


def _fill_run(
    store: Store,
    run: records.Run,
    protocol: records.Protocol,
    held_out: records.EvaluationSet,
    provenance: records.Provenance,
) -> None:
    store.add_all(
        records.TrainingLog(
            run_id=run.id or 0, step=step, loss=loss, learning_rate=0.1, gradient_norm=norm
        )
        for step, loss, norm in ((1, 5.0, None), (2, math.inf, math.nan))
    )
    first, last = (
        store.add(
            records.Checkpoint(
                run_id=run.id or 0,
                step=step,
                kind=kind,
                tokens_seen=step,
                path=f"{run.method}/{step}",
                sha256=f"{step}",
                bytes=2**33,
                validation_loss=loss,
                validation_tokens=10,
                evaluation_set_id=held_out.id,
            )
        )
        for step, kind, loss in ((0, "initial", math.nan), (2, "final", 3.0))
    )
    keys = {"checkpoint_id": last.id or 0, "protocol_id": protocol.id or 0}
    for i, number in enumerate([1.0, math.nan, math.inf, -math.inf, None]):
        store.add(
            records.MetricValue(
                **keys,
                metric=f"metric_{i}",
                value=number,
                standard_error=number,
                provenance_id=provenance.id,
                note="" if number else "absent",
            )
        )
    store.add(
        records.MetricValue(**keys, metric="effective_rank_w", layer=0, module="q", value=7.0)
    )
    store.add(
        records.MetricValue(**keys, metric="ccbh", value=0.1, reference_checkpoint_id=first.id)
    )
    store.add(
        records.CurvePoint(
            **keys, curve="random", position=0, offset_value=-0.1, mean=math.inf, variance=None, n=3
        )
    )
    store.add_all(
        records.SingularValue(
            **keys,
            matrix="dw",
            layer=0,
            module="q",
            position=i,
            value=1.0 / (i + 1),
            reference_checkpoint_id=first.id,
        )
        for i in range(3)
    )
    store.add(
        records.DownstreamScore(
            **keys, task="piqa", category="reasoning", metric="acc", value=0.5, n=10, chance=0.5
        )
    )
    store.add(records.DownstreamItem(**keys, task="piqa", metric="acc", item="1", value=1.0))
