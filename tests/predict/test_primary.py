"""The metric that stands for a task in the predictor's target."""

from __future__ import annotations

from dataclasses import replace
from types import ModuleType

import pytest

from lowrank.predict.features import TARGET, feature_table
from lowrank.store import Store
from lowrank.store.records import Checkpoint, DownstreamScore, Protocol


def test_the_primary_metric_is_what_the_protocol_names(store: Store, factory: ModuleType) -> None:
    few = {"methods": ("full_rank", "relora"), "steps": (0, 100), "failed": None}
    factory.fill(store, factory.Synthetic(**few, lenses=frozenset({"downstream"})))
    protocol = store.find(Protocol, lens="downstream")[0]
    tasks = protocol.parameters["primary"]
    named = feature_table(store, "demo").frame.set_index("checkpoint_id")[TARGET]
    means = {m: mean_score(store, m) for m in ("acc", "margin")}
    assert named.to_dict() == pytest.approx(means["acc"])
    other = store.add(
        replace(
            protocol,
            id=None,
            parameters_hash="",
            parameters={"primary": dict.fromkeys(tasks, "margin")},
        )
    )
    store.add_all(
        [replace(s, id=None, protocol_id=other.id or 0) for s in store.find(DownstreamScore)]
    )
    renamed = feature_table(store, "demo").frame.set_index("checkpoint_id")[TARGET]
    assert renamed.to_dict() == pytest.approx({key: means["margin"][key] for key in renamed.index})
    silent = store.add(
        replace(protocol, id=None, parameters_hash="", parameters={})
    )  # scores stored by other means
    store.add_all(
        [
            replace(s, id=None, protocol_id=silent.id or 0)
            for s in store.find(DownstreamScore, protocol_id=other.id)
        ]
    )
    assert feature_table(store, "demo").frame.set_index("checkpoint_id")[
        TARGET
    ].to_dict() == pytest.approx(means["acc"])


def mean_score(store: Store, metric: str) -> dict[int, float]:
    """The mean over tasks for each checkpoint after step 0 of the first protocol of downstream
    scores.
    """
    first = min(score.protocol_id for score in store.find(DownstreamScore))
    found: dict[int, list[float]] = {}
    for score in store.find(DownstreamScore, metric=metric, protocol_id=first):
        found.setdefault(score.checkpoint_id, []).append(score.value)
    steps = {saved.id: saved.step for saved in store.find(Checkpoint)}
    return {key: sum(values) / len(values) for key, values in found.items() if steps[key]}
