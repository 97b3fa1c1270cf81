"""What every registered lens must keep, found by discovery: a new lens is tested the moment its
file exists.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from lowrank import metrics
from lowrank.config.loading import validate
from lowrank.errors import UnknownNameError
from lowrank.metrics.base import SELECTION, Comparison, Curve, Expected, Lens, TextSettings, Value

QUICK: dict[str, dict[str, Any]] = {
    "interpolation": {"points": 4},
    "landscape": {"directions": 2, "nodes": 1, "components": (1, 5)},
    "curvature": {"probes": 2, "iterations": 2},
}
RUNS = (
    ("full_rank", 0),
    ("full_rank", 1),
    ("cola", 0),
    ("relora", 0),
    ("sltrain", 0),
    ("galore", 0),
)


def cases() -> Iterator[Any]:
    """(lens, preset, variant) of all that is registered."""
    for name in metrics.names():
        for preset in metrics.get(name).presets:
            for variant in metrics.get(name).variants(preset):
                yield pytest.param(name, preset, variant.name, id=f"{name}-{variant.name}")


def settings_of(name: str, preset: str, variant: str) -> Any:
    """The settings of a variant, made quick."""
    lens = metrics.get(name)
    chosen = next(dict(v.settings) for v in lens.variants(preset) if v.name == variant)
    quick = {
        k: v for k, v in QUICK.get(name, {}).items() if not (k == "nodes" and "nodes" in chosen)
    }
    return validate(lens.Settings, {**chosen, **quick}, "test")


def sampled(lens: Lens, place: Any, settings: Any) -> list[Comparison]:
    """One unit of each kind of work and method."""
    found: dict[Any, Comparison] = {}
    for unit in lens.units(place.checkpoints, settings):
        found[unit.roles, unit.checkpoint.method, unit.reference is None] = unit
    return [unit for unit in found.values() if not unit.blocked]


@pytest.mark.parametrize("name", metrics.names())
def test_facts_for_people(name: str) -> None:
    lens = metrics.get(name)
    assert lens.name() == name
    assert lens.title
    assert lens.revision >= 1
    names = [info.name for info in lens.metrics]
    assert len(names) == len(set(names)) > 0
    for info in lens.metrics:
        assert all((info.definition, info.unit, info.range, info.source)), info.name
    assert {"exact", "published"} <= set(lens.presets)
    assert all("main" in variants for variants in lens.presets.values())
    assert lens.needs_data == issubclass(lens.Settings, TextSettings)
    validate(lens.Settings, {}, "defaults")
    with pytest.raises(UnknownNameError, match="exact"):
        lens.variants("exakt")


def test_metric_names_are_unique_and_hold_the_sixteen() -> None:
    names = [info.name for lens in metrics.names() for info in metrics.get(lens).metrics]
    assert len(names) == len(set(names))
    spectral = {
        f"{m}_{w}"
        for m in ("effective_rank", "stable_rank", "spectral_gap", "threshold_rank")
        for w in ("w", "dw")
    }
    landscape = {
        "sharpness_random",
        "direction_variance",
        *(f"sharpness_pca_{k}" for k in (1, 5, 10, 20, 100)),
    }
    assert spectral | landscape | {
        "ccbh",
        "imbh",
        "activation_l2",
        "activation_cosine",
        "activation_cka",
    } <= set(names)
    assert {
        "delta_norm",
        "delta_norm_relative",
        "ccbh_excess",
        "imbh_excess",
        "imbh_aligned",
        "activation_cka_debiased",
        "sigma_pca_1",
        "hessian_trace",
        "hessian_top_eigenvalue",
    } <= set(names)


def test_an_unknown_lens_suggests_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'spectra'"):
        metrics.get("spectre")


@pytest.mark.parametrize(("name", "preset", "variant"), list(cases()))
def test_computes_what_it_announces_twice_the_same_and_leaves_no_trace(
    name: str,
    preset: str,
    variant: str,
    arena: Callable[..., Any],
) -> None:
    lens, settings = metrics.get(name)(), settings_of(name, preset, variant)
    place = arena(*RUNS)
    known = {info.name.rstrip("0123456789") for info in lens.metrics}
    before = {
        i: [p.clone() for p in found.model.parameters()]
        for i, found in place.context.models.items()
    }
    units = sampled(lens, place, settings)
    assert units
    for unit in units:
        first = list(lens.compute(unit, place.context, settings))
        assert Expected.of(first) == lens.expected(unit, settings), unit.label
        place.context.kept.clear()
        assert list(lens.compute(unit, place.context, settings)) == first, unit.label
        for result in first:
            if isinstance(result, Value):
                assert result.metric.rstrip("0123456789") in known
                assert result.value is None or torch.isfinite(torch.tensor(result.value))
                assert result.value is not None or result.note, "what is absent says why"
            if isinstance(result, Curve):
                assert len(result.offsets) == len(result.means)
    for i, found in place.context.models.items():
        assert all(
            torch.equal(a, b) for a, b in zip(before[i], found.model.parameters(), strict=True)
        )


@pytest.mark.parametrize("name", [n for n in metrics.names() if metrics.get(n).needs_data])
def test_an_exception_half_way_leaves_the_weights_as_they_were(
    name: str, arena: Callable[..., Any]
) -> None:
    lens, settings = metrics.get(name)(), settings_of(name, "exact", "exact")
    place = arena(("full_rank", 0), ("galore", 0))
    calls = 0

    def break_off(*_: Any) -> None:
        nonlocal calls
        calls += 1
        if calls % 3 == 0:
            raise RuntimeError("broken off")

    before = {
        i: [p.clone() for p in found.model.parameters()]
        for i, found in place.context.models.items()
    }
    flags = {
        i: [p.requires_grad for p in found.model.parameters()]
        for i, found in place.context.models.items()
    }
    for found in place.context.models.values():
        found.model.model.register_forward_hook(break_off)
    broken = 0
    for unit in sampled(lens, place, settings):
        try:
            list(lens.compute(unit, place.context, settings))
        except RuntimeError:
            broken += 1
    assert broken > 0
    for i, found in place.context.models.items():
        assert all(
            torch.equal(a, b) for a, b in zip(before[i], found.model.parameters(), strict=True)
        )
        assert [p.requires_grad for p in found.model.parameters()] == flags[i]


@pytest.mark.parametrize("name", metrics.names())
def test_settings_that_only_select_stay_out_of_the_protocol(name: str) -> None:
    fields = metrics.get(name).Settings.model_fields
    marked = {field for field, info in fields.items() if info.json_schema_extra == SELECTION}
    assert marked <= {"distributions", "kinds", "align", "final_only"}, (
        "a new one must not be able to change a value"
    )
