"""The queries of report and predictor: the same rows on SQLite and PostgreSQL, and
the right ones.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pandas as pd
import pytest

from lowrank import metrics
from lowrank.evaluate import suites
from lowrank.predict import predict
from lowrank.predict.features import PUBLISHED_GEOMETRY, columns
from lowrank.store import Store, queries
from lowrank.store.records import Checkpoint, DownstreamScore, MetricValue, Protocol, Run

STUDY = (
    "aggregates",
    "barriers",
    "curves",
    "evaluation_sets",
    "feature_values",
    "features",
    "features_published",
    "full_rank_differences",
    "layer_values",
    "predictions",
    "predictor_fits",
    "protocols",
    "run_costs",
    "seed_variability",
    "spectrum_shapes",
    "downstream",
    "checkpoints",
    "training_curve",
)
VOLATILE = {
    "library_versions",
    "parameters",
    "details",
    "features",
    "input_hash",
}  # JSON: text on one database, values on the other
SPEC = {"methods": ("full_rank", "cola"), "steps": (0, 150, 300), "layers": 2, "singular_values": 3}


@pytest.fixture(scope="module")
def stores(
    factory: ModuleType, sqlite_template: Path, postgres_server: object, postgres_template: str
) -> Iterator[dict[str, Store]]:
    """The same study on both databases."""
    path = sqlite_template.with_name("queries.db")
    path.write_bytes(sqlite_template.read_bytes())
    url = postgres_server.create_database(postgres_template)  # type: ignore[attr-defined]
    found = {}
    for name, where in (("sqlite", str(path)), ("postgresql", url)):
        found[name] = Store.open(where)
        factory.fill(found[name], factory.Synthetic(**SPEC))
        predict(
            found[name],
            "demo",
            schemes=("lomo",),
            models=("linear",),
            selections=("fixed",),
            permutations=5,
            progress=False,
        )
    yield found
    for store in found.values():
        store.close()
    postgres_server.drop_database(url)  # type: ignore[attr-defined]


def ask(store: Store, query: str, **params: str) -> pd.DataFrame:
    columns, rows = queries.get(query).run(store, {"study": "demo", **params})
    return pd.DataFrame(rows, columns=columns)


@pytest.mark.postgres
@pytest.mark.parametrize("query", STUDY)
def test_both_databases_give_the_same_rows(stores: dict[str, Store], query: str) -> None:
    first, second = (ask(store, query) for store in stores.values())
    assert len(first) > 0
    assert list(first.columns) == list(second.columns)
    kept = [c for c in first.columns if c not in VOLATILE]
    first, second = (
        frame[kept].sort_values(kept, key=lambda c: c.astype(str)).reset_index(drop=True)
        for frame in (first, second)
    )
    for column in kept:
        a, b = first[column], second[column]
        if pd.api.types.is_float_dtype(a) or pd.api.types.is_float_dtype(b):
            np.testing.assert_allclose(
                pd.to_numeric(a),
                pd.to_numeric(b).astype(float),
                rtol=1e-9,
                atol=1e-12,
                err_msg=column,
            )
        else:
            assert [str(v) for v in a] == [str(v) for v in b], column


def test_features_are_the_aggregate_rows(stores: dict[str, Store]) -> None:
    wide = ask(stores["sqlite"], "features").set_index("checkpoint_id")
    long = ask(stores["sqlite"], "aggregates")
    assert len(wide) == len(ask(stores["sqlite"], "checkpoints"))
    for column, metric in {
        "ccbh": "ccbh",
        "activation_cka_mean": "activation_cka",
        "stable_rank_dw": "stable_rank_dw",
    }.items():
        rows = long[(long["metric"] == metric) & (long["protocol"] == "exact")].set_index(
            "checkpoint_id"
        )["value"]
        pd.testing.assert_series_equal(
            wide[column].dropna().sort_index(), rows.dropna().sort_index(), check_names=False
        )
    scores = (
        ask(stores["sqlite"], "downstream", metric="acc").groupby("checkpoint_id")["value"].mean()
    )
    pd.testing.assert_series_equal(
        wide["downstream_mean"].sort_index(), scores.sort_index(), check_names=False
    )


@pytest.fixture
def changing(store: Store, factory: ModuleType) -> tuple[Store, object]:
    """A small study of two methods and two seeds on either database, to be changed."""
    lenses = frozenset({"spectra", "downstream"})
    return store, factory.fill(
        store,
        factory.Synthetic(**{**SPEC, "scales": {"nano": 64}, "lenses": lenses, "failed": None}),
    )


def superseded(store: Store, built: object, status: str = "done") -> int:
    """A newer recipe of cola's seed 0 with one checkpoint; the id of its run."""
    old = built.runs["cola", "nano", 0]  # type: ignore[attr-defined]
    fields = {
        f: getattr(old, f)
        for f in ("study_id", "method", "scale", "seed", "data_seed", "init_seed", "provenance_id")
    }
    new = store.add(Run(**fields, config_hash="another recipe", status=status, total_steps=300))
    place = {"run_id": new.id or 0, "step": 300, "kind": "final", "path": "x", "sha256": "y"}
    store.add(Checkpoint(**place, tokens_seen=1, bytes=1, validation_loss=1.5))
    return new.id or 0


@pytest.mark.parametrize("query", ["features", "features_published", "feature_values"])
def test_the_newest_run_of_a_name_is_the_one_that_counts(
    changing: tuple[Store, object], query: str
) -> None:
    found, built = changing
    old, new = built.runs["cola", "nano", 0].id, superseded(found, built)  # type: ignore[attr-defined]
    runs = set(ask(found, query)["run_id"])
    assert new in runs
    assert old not in runs
    assert len(runs) == 4


def test_seeds_are_counted_once_and_differences_taken_once(changing: tuple[Store, object]) -> None:
    found, built = changing
    superseded(found, built)
    variability = ask(found, "seed_variability", metric="validation_loss")
    last = variability[(variability["method"] == "cola") & (variability["step"] == 300)]
    assert list(last["seeds"]) == [2]
    assert 1.5 in (float(last["lowest"].iloc[0]), float(last["highest"].iloc[0]))
    differences = ask(found, "full_rank_differences", metric="validation_loss")
    (row,) = differences[(differences["seed"] == 0) & (differences["step"] == 300)].itertuples()
    assert row.value == 1.5
    assert sorted(ask(found, "perplexity")["seed"]) == [0, 0, 1, 1]


@pytest.mark.parametrize("query", ["features", "features_published"])
def test_of_two_protocols_of_one_name_the_newer_counts(
    changing: tuple[Store, object], query: str
) -> None:
    """For the metrics and tasks that it has in this study; the others keep their values."""
    found, built = changing
    before = ask(found, query).set_index("checkpoint_id")
    key = ("cola", "nano", 0, 300)
    checkpoint = built.checkpoints[key].id  # type: ignore[attr-defined]
    spectra = found.add(Protocol(name="exact", lens="spectra", metric_revision=2))
    suite = found.add(Protocol(name="embedded", lens="downstream", metric_revision=2))
    elsewhere = found.add(
        Protocol(name="exact", lens="spectra", metric_revision=3)
    )  # newer, but no value of this study
    assert elsewhere.id is not None
    found.add(
        MetricValue(
            checkpoint_id=checkpoint, protocol_id=spectra.id, metric="stable_rank_w", value=77.0
        )
    )
    found.add(
        DownstreamScore(
            checkpoint_id=checkpoint, protocol_id=suite.id, task="cloze", category="language", metric="acc", value=0.0, n=1,
            task_version="2", harness_version="x",
        )
    )  # fmt: skip
    after = ask(found, query).set_index("checkpoint_id")
    assert after.loc[checkpoint, "stable_rank_w"] == 77.0
    others = after.drop(index=checkpoint)
    assert others["stable_rank_w"].isna().all()
    pd.testing.assert_series_equal(after["effective_rank_dw"], before["effective_rank_dw"])
    scores = ask(found, "downstream", metric="acc")
    mine = scores[(scores["checkpoint_id"] == checkpoint) & (scores["task"] != "cloze")]["value"]
    assert after.loc[checkpoint, "downstream_mean"] == pytest.approx(
        np.mean([*mine.astype(float), 0.0])
    )


LONG = {"checkpoint_metrics": "metric", "checkpoint_scores": "name"}


@pytest.mark.parametrize("backend", ["sqlite", "postgresql"])
def test_the_feature_table_is_the_pivot_of_its_long_forms(
    stores: dict[str, Store], backend: str
) -> None:
    """Every value of a column is the mean of the long rows of its name, and no value is lost."""
    wide = ask(stores[backend], "features").set_index("checkpoint_id")
    for query, names in LONG.items():
        given = {"protocol": "exact"} if query == "checkpoint_metrics" else {}
        long = ask(stores[backend], query, **given)
        long = long[long["checkpoint_id"].isin(wide.index)]
        means = long.groupby([names, "checkpoint_id"])["value"].apply(
            lambda values: pd.to_numeric(values).mean()
        )
        called = columns() if names == "metric" else {}
        pairs = {name for name in set(long[names]) if metrics.about(name).role == "pair"}
        assert set(long[names]) - pairs <= {*called, *wide.columns}
        for name in sorted(set(long[names]) - pairs):
            found = wide[called.get(name, name)].astype(float)
            expected = means[name].reindex(wide.index).astype(float)
            pd.testing.assert_series_equal(found, expected, check_names=False, rtol=1e-12)


def test_what_is_declared_has_a_column_where_nothing_was_measured(
    sqlite_store: Store, factory: ModuleType
) -> None:
    """In the order of the declarations; tasks of the store that no suite knows come last."""
    spec = factory.Synthetic(**{**SPEC, "scales": {"nano": 64}, "lenses": frozenset()})
    factory.fill(sqlite_store, spec)
    found = list(ask(sqlite_store, "features").columns)
    infos = metrics.declared().values()
    assert {info.feature for info in infos if info.role != "pair"} <= set(found)
    assert not {info.feature for info in infos if info.role == "pair"} & set(found)
    assert found[8 : 8 + len(PUBLISHED_GEOMETRY)] == list(PUBLISHED_GEOMETRY)
    tasks = {f"score_{task}" for suite in suites.names() for task in suites.get(suite).tasks}
    assert tasks == {name for name in found if name.startswith("score_")}
    assert found[-3:] == ["status", "run_id", "checkpoint_id"]


def test_a_task_that_no_suite_has_is_a_column_after_those_of_the_suites(
    stores: dict[str, Store],
) -> None:
    found = [name for name in ask(stores["sqlite"], "features").columns if name[:6] == "score_"]
    known = list(suites.columns())
    assert found[: len(known)] == known
    assert found[len(known) :] == ["score_definitions", "score_minimal_pairs"]


def test_scores_of_tasks_stand_beside_their_mean(stores: dict[str, Store]) -> None:
    wide = ask(stores["postgresql"], "features").set_index("checkpoint_id")
    cloze = ask(stores["postgresql"], "downstream", metric="acc", task="cloze").set_index(
        "checkpoint_id"
    )["value"]
    pd.testing.assert_series_equal(
        wide["score_cloze"].dropna().sort_index(), cloze.sort_index(), check_names=False
    )
    assert set(wide["tasks"].dropna()) == {5}


def test_variability_is_the_sample_variance(stores: dict[str, Store]) -> None:
    rows = ask(stores["sqlite"], "seed_variability", metric="validation_loss")
    losses = ask(stores["sqlite"], "checkpoints").groupby(["scale", "method", "step"])[
        "validation_loss"
    ]
    expected = losses.var(ddof=1).dropna()
    found = rows.set_index(["scale", "method", "step"])["variance"].astype(float)
    pd.testing.assert_series_equal(found.sort_index(), expected.sort_index(), check_names=False)


def test_differences_are_against_the_same_seed_and_step(stores: dict[str, Store]) -> None:
    rows = ask(stores["sqlite"], "full_rank_differences", metric="validation_loss")
    losses = ask(stores["sqlite"], "checkpoints").set_index(["scale", "method", "seed", "step"])[
        "validation_loss"
    ]
    assert set(rows["method"]) == {"cola"}
    for row in rows.itertuples():
        assert row.difference == pytest.approx(
            losses[row.scale, "cola", row.seed, row.step]
            - losses[row.scale, "full_rank", row.seed, row.step]
        )


def test_barriers_name_their_pair(stores: dict[str, Store]) -> None:
    rows = ask(stores["sqlite"], "barriers")
    assert set(rows[rows["metric"] == "ccbh"]["pair"]) == {"step"}
    assert set(rows[rows["metric"] == "imbh"]["pair"]) == {"seed"}
    assert (
        rows[rows["pair"] == "step"]["reference_step"] < rows[rows["pair"] == "step"]["step"]
    ).all()
