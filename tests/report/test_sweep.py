"""The query that chooses a recipe of each method on one split and reports it on another."""

from __future__ import annotations

import math
import statistics

import pytest

from lowrank.store import Store, queries, records

# (selection loss, validation loss) by variant and seed; None: the run diverged.
LOSSES: dict[tuple[str, str], list[tuple[float, float] | None]] = {
    ("galore", ""): [(5.0, 4.0), (5.2, 4.4), (5.1, 4.1)],
    ("galore", "lr_2e-2"): [
        (4.9, 4.5),
        (5.0, 4.6),
        (4.8, 4.4),
    ],  # better on selection, worse on validation: chosen
    ("galore", "lr_4e-2"): [
        (4.0, 3.0),
        None,
        (4.1, 3.1),
    ],  # best where it lived, but a seed diverged
    ("cola", ""): [None, None, None],
}


def fill(store: Store) -> None:
    study = store.add(records.Study(name="demo", config={}, config_hash="c"))
    rows = [
        store.add(
            records.EvaluationSet(
                name=split,
                dataset_fingerprint="f",
                split=split,
                seed=0,
                examples=1,
                tokens=1,
                max_length=8,
                packing=True,
                tokenizer_hash="t",
                sha256=split,
            )
        )
        for split in ("validation", "selection")
    ]
    on_validation, on_selection = [
        store.add(
            records.Protocol(name="exact", lens="loss", metric_revision=1, evaluation_set_id=row.id)
        )
        for row in rows
    ]
    for (method, variant), seeds in LOSSES.items():
        for seed, losses in enumerate(seeds):
            run = store.add(
                records.Run(
                    study_id=study.id or 0,
                    config_hash=f"{method}{variant}{seed}",
                    method=method,
                    variant=variant,
                    scale="nano",
                    seed=seed,
                    data_seed=seed,
                    init_seed=seed,
                    status="done" if losses else "failed",
                    base_learning_rate=0.01,
                )
            )
            if losses is None:
                continue
            saved = store.add(
                records.Checkpoint(
                    run_id=run.id or 0,
                    step=9,
                    kind="final",
                    tokens_seen=1,
                    path=f"runs/{run.id}",
                    sha256=str(run.id),
                    bytes=1,
                    validation_loss=losses[1],
                )
            )
            for protocol, value in ((on_selection, losses[0]), (on_validation, losses[1])):
                store.add(
                    records.MetricValue(
                        checkpoint_id=saved.id or 0,
                        protocol_id=protocol.id or 0,
                        metric="held_out_loss",
                        value=value,
                    )
                )


def test_the_recipe_is_chosen_on_selection_and_reported_on_validation(store: Store) -> None:
    fill(store)
    columns, rows = queries.get("sweep").run(store, {"study": "demo"})
    found = {
        (row[columns.index("method")], row[columns.index("variant")]): dict(
            zip(columns, row, strict=True)
        )
        for row in rows
    }
    assert [key for key, row in found.items() if row["chosen"]] == [("galore", "lr_2e-2")]
    assert next(key for key in found if key[0] == "galore") == ("galore", "lr_2e-2"), (
        "the chosen recipe comes first"
    )
    chosen = found["galore", "lr_2e-2"]
    assert (chosen["runs"], chosen["finished"]) == (3, 3)
    assert chosen["selection_loss"] == pytest.approx(4.9)
    losses = [4.5, 4.6, 4.4]
    assert chosen["validation_loss"] == pytest.approx(statistics.mean(losses))
    assert chosen["validation_loss_sd"] == pytest.approx(statistics.stdev(losses))
    perplexities = [math.exp(loss) for loss in losses]
    assert chosen["perplexity"] == pytest.approx(statistics.mean(perplexities))
    assert chosen["perplexity_sd"] == pytest.approx(statistics.stdev(perplexities))
    assert (found["galore", "lr_4e-2"]["runs"], found["galore", "lr_4e-2"]["finished"]) == (3, 2)
    assert (
        found["cola", ""]["runs"],
        found["cola", ""]["finished"],
        found["cola", ""]["validation_loss"],
    ) == (3, 0, None)
