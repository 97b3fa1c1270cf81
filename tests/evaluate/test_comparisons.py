"""Paired comparisons in SQL against closed forms on items that depend on each other, on both
databases.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from lowrank.evaluate.scores import standard_error
from lowrank.store import Store, queries, records

TWINS, SEEDS = 40, (0, 1, 2)
KEYS = [f"{twin:016x}{side}" for twin in range(TWINS) for side in "ab"]
CLUSTERS = [key[:16] for key in KEYS]


def fill(
    store: Store, seeds: tuple[int, ...] = SEEDS
) -> dict[tuple[str, int], NDArray[np.float64]]:
    """Store items of two methods; twins, methods and seeds are all correlated. Return {(method,
    seed): values}.
    """
    draw = np.random.default_rng(0)
    study = store.add(records.Study(name="s", config={}, config_hash="s", root="."))
    protocol = store.add(records.Protocol(name="embedded", lens="downstream", metric_revision=1))
    ease, effect, taste = (
        draw.normal(size=TWINS).repeat(2),
        draw.normal(size=TWINS).repeat(2),
        np.tile([1.0, -1.0], TWINS),
    )
    found = {}
    for method in ("cola", "full_rank"):
        for seed in seeds:
            run = store.add(
                records.Run(
                    study_id=study.id or 0,
                    method=method,
                    scale="nano",
                    seed=seed,
                    data_seed=seed,
                    init_seed=seed,
                    kind="trained",
                    config={},
                    config_hash=f"{method}{seed}",
                    status="done",
                )
            )
            saved = store.add(
                records.Checkpoint(
                    run_id=run.id or 0,
                    step=1,
                    kind="final",
                    tokens_seen=1,
                    path=f"{method}{seed}",
                    sha256="x",
                    bytes=1,
                )
            )
            shift = 0.3 * draw.normal() + (
                0.2 + 0.3 * effect + 0.8 * taste if method == "cola" else 0.0
            )
            values = ease + shift + 0.3 * draw.normal(size=2 * TWINS)
            found[method, seed] = values
            common: dict[str, Any] = {
                "checkpoint_id": saved.id,
                "protocol_id": protocol.id,
                "task": "t",
                "metric": "acc",
            }
            store.add_all(
                records.DownstreamItem(**common, item=k, value=v)
                for k, v in zip(KEYS, values.tolist(), strict=True)
            )
    return found


def ask(store: Store, query: str, **params: Any) -> list[dict[str, Any]]:
    columns, rows = queries.get(query).run(store, params)
    return [dict(zip(columns, row, strict=True)) for row in rows]


def test_two_checkpoints_are_compared_by_clusters(store: Store) -> None:
    answers = fill(store)
    difference = answers["full_rank", 0] - answers["cola", 0]
    ids = {saved.path: saved.id for saved in store.find(records.Checkpoint)}
    (row,) = ask(store, "downstream_paired", a=ids["cola0"], b=ids["full_rank0"])
    assert (row["n"], row["difference"]) == (2 * TWINS, pytest.approx(difference.mean()))
    pairs = difference.reshape(TWINS, 2).mean(1)
    assert row["standard_error"] == pytest.approx(pairs.std(ddof=1) / TWINS**0.5)
    assert row["standard_error"] == pytest.approx(standard_error(difference.tolist(), CLUSTERS))
    assert row["standard_error"] != pytest.approx(
        difference.std(ddof=1) / (2 * TWINS) ** 0.5, rel=0.1
    ), "twins are not independent"
    assert (row["better"], row["worse"]) == ((difference > 0).sum(), (difference < 0).sum())
    (against,) = (r for r in ask(store, "downstream_against", study="s") if r["seed"] == 0)
    assert against["difference"] == pytest.approx(-row["difference"])
    assert (against["standard_error"], against["n"]) == (
        pytest.approx(row["standard_error"]),
        row["n"],
    )


def test_two_methods_are_compared_over_items_and_seeds(store: Store) -> None:
    answers = fill(store)
    grid = (
        np.array([answers["cola", seed] - answers["full_rank", seed] for seed in SEEDS])
        .reshape(len(SEEDS), TWINS, 2)
        .mean(2)
    )
    (row,) = ask(store, "downstream_methods", study="s", method="cola")
    assert (row["seeds"], row["n"], row["scale"]) == (3, 2 * TWINS, "nano")
    assert row["difference"] == pytest.approx(grid.mean())
    assert row["mean"] - row["reference_mean"] == pytest.approx(grid.mean())
    items, seeds = (
        grid.mean(0).std(ddof=1) / TWINS**0.5,
        grid.mean(1).std(ddof=1) / len(SEEDS) ** 0.5,
    )
    cells = grid.std(ddof=1) / grid.size**0.5
    assert (row["items_error"], row["seeds_error"]) == (pytest.approx(items), pytest.approx(seeds))
    assert row["standard_error"] == pytest.approx((items**2 + seeds**2 - cells**2) ** 0.5)
    (mirrored,) = ask(store, "downstream_methods", study="s", method="full_rank", reference="cola")
    assert mirrored["difference"] == pytest.approx(-grid.mean())
    assert mirrored["standard_error"] == pytest.approx(row["standard_error"])


def test_one_seed_leaves_the_items_alone(store: Store) -> None:
    fill(store, seeds=(5,))
    (row,) = ask(store, "downstream_methods", study="s", method="cola")
    (paired,) = ask(store, "downstream_against", study="s")
    assert (row["seeds"], row["seeds_error"]) == (1, None)
    assert row["standard_error"] == pytest.approx(paired["standard_error"])
