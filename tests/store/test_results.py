"""Which rows are there, on both databases: of a study, of a checkpoint, under one protocol."""

from __future__ import annotations

import pytest

from lowrank.store import Store, records, results


def study(store: Store, name: str) -> records.Study:
    return store.add(records.Study(name=name, config={}, config_hash=name))


def run(store: Store, of: records.Study, recipe: str) -> records.Run:
    return store.add(
        records.Run(
            study_id=of.id or 0,
            config_hash=recipe,
            method="galore",
            scale="tiny",
            seed=0,
            data_seed=0,
            init_seed=0,
        )
    )


def checkpoint(store: Store, of: records.Run, step: int) -> int:
    saved = records.Checkpoint(
        run_id=of.id or 0,
        step=step,
        kind="training",
        tokens_seen=0,
        path=f"{of.id}/{step}",
        sha256="",
        bytes=0,
    )
    return store.add(saved).id or 0


def protocol(store: Store, name: str) -> int:
    return store.add(records.Protocol(name=name, lens="spectra", metric_revision=1)).id or 0


@pytest.fixture
def places(store: Store) -> tuple[int, int, int]:
    """Two checkpoints of one study and one of another."""
    one, other = study(store, "one"), study(store, "other")
    mine = run(store, one, "a")
    return (
        checkpoint(store, mine, 1),
        checkpoint(store, mine, 2),
        checkpoint(store, run(store, other, "b"), 1),
    )


def test_keys_of_metric_rows(store: Store, places: tuple[int, int, int]) -> None:
    first, second, elsewhere = places
    exact, published = protocol(store, "exact"), protocol(store, "published")
    for where, under in ((first, exact), (second, published), (elsewhere, exact)):
        store.add(
            records.MetricValue(checkpoint_id=where, protocol_id=under, metric="x", value=None)
        )
    pair = {"checkpoint_id": second, "reference_checkpoint_id": first, "protocol_id": exact}
    rows: list[records.Record] = [
        records.MetricValue(**pair, metric="y", layer=3, module="q", value=1.0),
        records.CurvePoint(**pair, curve="line", position=0, offset_value=0.0, mean=2.0),
        records.CurvePoint(**pair, curve="line", position=1, offset_value=1.0, mean=2.0),
    ]
    rows += [
        records.SingularValue(**pair, matrix="dw", layer=3, module="q", position=k, value=1.0)
        for k in range(5)
    ]
    store.add_all(rows)
    none: frozenset[tuple] = frozenset()
    alone = results.MetricKeys(frozenset({("x", -2, "")}), none, none)
    together = results.MetricKeys(
        frozenset({("y", 3, "q")}),
        frozenset({("line", -1, 0), ("line", -1, 1)}),
        frozenset({("dw", 3, "q", 5)}),
    )
    one = store.get(records.Run, store.get(records.Checkpoint, first).run_id).study_id
    assert results.study_metric_keys(store, exact, one) == {
        (first, None): alone,
        (second, first): together,
    }
    assert results.checkpoint_metric_keys(store, exact, second) == {(second, first): together}
    assert results.checkpoint_metric_keys(store, exact, elsewhere) == {(elsewhere, None): alone}
    assert results.study_metric_keys(store, None, one) == {}


def test_sizes_and_items_of_downstream_scores(store: Store, places: tuple[int, int, int]) -> None:
    first, second, _ = places
    exact, other = protocol(store, "exact"), protocol(store, "other")
    for where, under, metric, n in (
        (first, exact, "acc", 300),
        (first, exact, "acc_norm", 200),
        (second, exact, "acc", 1),
        (second, other, "acc", 2),
    ):
        common = {"checkpoint_id": where, "protocol_id": under, "task": "cloze", "metric": metric}
        store.add(records.DownstreamScore(**common, category="", value=0.5, n=n))
    common = {"checkpoint_id": first, "protocol_id": exact, "task": "cloze", "metric": "acc"}
    store.add_all(records.DownstreamItem(**common, item=item, value=1.0) for item in "abc")
    assert results.score_sizes(store, exact) == {
        (first, "cloze"): {"acc": 300, "acc_norm": 200},
        (second, "cloze"): {"acc": 1},
    }
    assert results.item_counts(store, exact) == {(first, "cloze", "acc"): 3}
    assert results.stored_items(store, first, exact, "cloze") == {
        ("acc", "a"),
        ("acc", "b"),
        ("acc", "c"),
    }
    assert results.stored_items(store, second, exact, "cloze") == set()
    assert results.score_sizes(store, None) == results.item_counts(store, None) == {}


def test_a_newer_run_of_the_same_place_supersedes(store: Store) -> None:
    one, other = study(store, "one"), study(store, "other")
    run(store, one, "a")
    newer, elsewhere = run(store, one, "b"), run(store, other, "a")
    assert results.current_runs(store, one.id) == {newer.id}
    assert results.current_runs(store, other.id) == {elsewhere.id}
