"""Streams of the keyed generators: literal numbers, drawn by the code that made stored results."""

from __future__ import annotations

import pytest
import torch

from lowrank.geometry.directions import random_direction
from lowrank.geometry.hessian import hutchinson
from lowrank.models import named_draws
from lowrank.seeds import generator

STREAMS = {
    "0/model.embed_tokens.weight": (
        28051674831730926,
        [368141369, 863389085, 995457991, 1649153612],
    ),
    "3/model.layers.0.mlp.up_proj.weight": (
        2707994378418105,
        [507150325, 819223589, 1236234367, 1913858886],
    ),
    "0/3/w": (59799108432659735, [1822929238, 750198983, 246774947, 1408511528]),
}


@pytest.mark.parametrize("key", STREAMS)
def test_a_key_gives_its_stream(key: str) -> None:
    seed, numbers = STREAMS[key]
    for _ in range(2):  # a new generator each time, whatever was drawn before
        drawn = generator(key)
        assert drawn.initial_seed() == seed
        assert torch.randint(0, 2**31, (4,), generator=drawn).tolist() == numbers


@pytest.mark.parametrize("key", list(STREAMS)[:2])
def test_weights_are_drawn_by_seed_and_name(key: str) -> None:
    seed, name = key.split("/")
    drawn = named_draws(int(seed))(name)
    assert torch.randint(0, 2**31, (4,), generator=drawn).tolist() == STREAMS[key][1]
    expected = [-0.09029541909694672, 0.06788257509469986, -1.305201530456543]
    assert torch.randn(3, generator=named_draws(3)("w")).tolist() == pytest.approx(expected)


def test_directions_are_drawn_by_seed_index_and_name() -> None:
    weights = {"model.norm.weight": torch.zeros(3), "w": torch.zeros(2, 2)}
    found = random_direction(weights, 5, 7, "raw")
    assert found["model.norm.weight"].tolist() == pytest.approx(
        [0.6616, -0.6138, -0.5230], abs=1e-4
    )
    assert found["w"].flatten().tolist() == pytest.approx(
        [-1.7788, 0.7864, -0.7898, -1.3803], abs=1e-4
    )


def test_probes_are_signs_drawn_by_seed_index_and_name() -> None:
    probes: list[list[float]] = []

    def product(v: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        probes.append(v["w"].tolist())
        return v

    hutchinson(product, {"w": torch.zeros(8)}, 4, 0)
    assert probes[3] == [1.0, -1.0, 1.0, 1.0, 1.0, 1.0, 1.0, -1.0]
