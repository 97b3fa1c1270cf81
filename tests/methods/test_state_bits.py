"""Moments in eight bits: the maps against bitsandbytes, the optimizers against float32 states,
state that survives.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lowrank import methods
from lowrank.errors import ConfigError
from lowrank.methods.base import build_optimizer
from lowrank.optim import adam, quantisation
from lowrank.optim.adam import CHUNK
from lowrank.optim.adamw8bit import AdamW8bit
from lowrank.optim.fira import FiraAdamW
from lowrank.optim.galore import GaLoreAdamW
from lowrank.optim.quantisation import BLOCK, SMALLEST, BlockCodec, dynamic_map
from lowrank.train.memory import state_bytes

CPU = torch.device("cpu")
Start = Callable[..., Any]
signs = pytest.mark.parametrize("signed", [True, False], ids=["signed", "unsigned"])


@signs
def test_the_maps_are_those_of_bitsandbytes(signed: bool) -> None:
    functional = pytest.importorskip("bitsandbytes.functional")
    torch.testing.assert_close(
        torch.tensor(dynamic_map(signed)),
        functional.create_dynamic_map(signed=signed),
        rtol=1e-6,
        atol=0,
    )


def entries(signed: bool, elements: int = 64 * BLOCK + 17) -> Tensor:
    """Magnitudes over nine decades, the last block not full, one block of zeros."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(elements, generator=generator) * 10.0 ** (
        -9 * torch.rand(elements, generator=generator)
    )
    x[BLOCK : 2 * BLOCK] = 0.0
    return x if signed else x.abs()


@signs
def test_every_entry_becomes_the_nearest_value(signed: bool) -> None:
    """Against all 256 distances in float64; half the widest gap, 0.9/64 or 0.9/128 of the block's
    maximum, bounds the error.
    """
    x, codec = entries(signed), BlockCodec(signed, CPU)
    codes, scales = codec.encode(x)
    assert codes.dtype == torch.uint8
    assert torch.equal(scales, torch.stack([block.abs().max() for block in x.split(BLOCK)]))
    ends = scales.repeat_interleave(BLOCK)[: len(x)].double()
    values = torch.tensor(dynamic_map(signed), dtype=torch.float64)
    if not signed:
        values = values[1:]  # above zero nothing becomes zero
    found, wanted = codec.decode(codes, scales).double(), x.double()
    nearest = (wanted / ends.clamp(min=1e-30)).unsqueeze(1).sub(values).abs().min(
        dim=1
    ).values * ends
    error = (found - wanted).abs()
    assert (error <= nearest + 1e-6 * ends).all()
    assert (error <= 0.45 / (64 if signed else 128) * ends * (1 + 1e-5)).all()
    assert not found[BLOCK : 2 * BLOCK].any()
    assert signed or ((found > 0) == (wanted > 0)).all()


@signs
def test_boundaries_and_ends_are_exact(signed: bool) -> None:
    codec, values = BlockCodec(signed, CPU), torch.tensor(dynamic_map(signed), dtype=torch.float64)
    middles = ((values[1:] + values[:-1]) / 2).float()
    beside = [torch.nextafter(middles, torch.full_like(middles, end)) for end in (2.0, -2.0)]
    x = torch.cat([middles, *beside, values.float()])
    x = unscaled_blocks(x if signed else x[x > 0])
    codes, scales = codec.encode(x)
    assert (scales == 1.0).all()
    binary_search = torch.bucketize(x, middles)
    expected = values.float()[binary_search if signed else binary_search.clamp(min=1)]
    assert torch.equal(codec.decode(codes, scales), expected)


def unscaled_blocks(x: Tensor) -> Tensor:
    """Blocks that all hold a one, so that they are not scaled."""
    return torch.cat([torch.cat([part, torch.ones(1)]) for part in x.split(BLOCK - 1)])


def test_codes_zeroed_or_masked_are_moments_zeroed_or_masked() -> None:
    for signed in (True, False):
        x, codec = entries(signed), BlockCodec(signed, CPU)
        codes, scales = codec.encode(x)
        mask = torch.rand(len(x), generator=torch.Generator().manual_seed(1)) < 0.5
        assert torch.equal(codec.decode(codes * mask, scales), codec.decode(codes, scales) * mask)
        assert not codec.decode(torch.zeros_like(codes), scales).any()


Trained = tuple[Any, list[Any]]


def pair(
    make: Callable[..., Any], shapes: list[tuple[int, ...]], dtype: torch.dtype = torch.float32
) -> list[Trained]:
    """The same parameters twice, under an optimizer with states of 8 and one of 32 bits."""
    made = []
    for bits in (8, 32):
        torch.manual_seed(0)
        parameters = [nn.Parameter(torch.randn(shape).to(dtype)) for shape in shapes]
        made.append((make(parameters, bits), parameters))
    return made


def gradients(parameters: list[Any], update: int) -> None:
    torch.manual_seed(100 + update)
    for p in parameters:
        p.grad = (torch.randn(p.shape) * 0.1 + p.detach().float() * 0.1).to(p.dtype)


def plain(parameters: list[Any], bits: int) -> Any:
    if bits == 8:
        return AdamW8bit(parameters, lr=0.01, weight_decay=0.1, eps=0.1)  # large enough to be seen
    return torch.optim.AdamW(parameters, lr=0.01, weight_decay=0.1, eps=0.1)


def projected(cls: type) -> Callable[..., Any]:
    return lambda parameters, bits: cls(
        [{"params": parameters[:2], "rank": 16, "update_proj_gap": 4}, {"params": parameters[2:]}],
        lr=0.01,
        state_bits=bits,
    )


MAKERS = {"adamw": plain, "galore": projected(GaLoreAdamW), "fira": projected(FiraAdamW)}
SHAPES: list[tuple[int, ...]] = [(300, 70), (70, 300), (90, 100), (7,)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("maker", MAKERS)
def test_follows_the_states_in_float32(maker: str, dtype: torch.dtype) -> None:
    """20 updates: the way that every parameter went differs by a few per cent of its length; small
    ones agree to rounding.
    """
    (eight, ours), (full, theirs) = pair(MAKERS[maker], SHAPES, dtype)
    start = [p.detach().clone().float() for p in ours]
    for update in range(20):
        for optimizer, parameters in ((eight, ours), (full, theirs)):
            gradients(parameters, update)
            optimizer.step()
    for p, q, before in zip(ours, theirs, start, strict=True):
        quantised = "exp_avg_scale" in eight.state[p]
        assert quantised == (full.state[q]["exp_avg"].numel() >= SMALLEST)
        way = (q.float() - before).norm()
        tolerance = 0.05 if quantised else 1e-5
        if dtype == torch.float32:
            assert (p - q).norm() < tolerance * way
        else:  # 8 bits with float32 arithmetic are more exact than moments in bfloat16, which stall
            assert (p.float() - q.float()).norm() < 0.5 * way


def test_a_tensor_of_many_chunks_is_updated_as_its_blocks_would_be() -> None:
    torch.manual_seed(0)
    whole = nn.Parameter(torch.randn(CHUNK + 3 * BLOCK + 5))
    parts = [
        nn.Parameter(piece.clone())
        for piece in whole.detach().split([CHUNK - 16 * BLOCK, 16 * BLOCK, 3 * BLOCK + 5])
    ]
    one, many = AdamW8bit([whole], lr=0.1), AdamW8bit(parts[:2], lr=0.1)
    for update in range(3):
        torch.manual_seed(update)
        whole.grad = torch.randn(whole.shape)
        for p, g in zip(parts, whole.grad.split([len(p) for p in parts]), strict=True):
            p.grad = g
        one.step()
        many.step()
    assert torch.equal(whole.detach()[:CHUNK], torch.cat([p.detach() for p in parts[:2]]))


def test_parameters_that_are_not_contiguous() -> None:
    torch.manual_seed(0)
    base = torch.randn(70, 80)
    before = base.T.clone()
    turned, straight = nn.Parameter(base.T), nn.Parameter(base.T.contiguous())
    for p in (turned, straight):
        optimizer = AdamW8bit([p], lr=0.1)
        p.grad = before.cos()
        optimizer.step()
    assert torch.equal(turned, straight)
    assert not torch.equal(turned, before)


@pytest.mark.parametrize("maker", MAKERS)
def test_state_loads_as_plain_tensors_and_goes_on_bit_for_bit(maker: str) -> None:
    (ran_on, ours), _ = pair(MAKERS[maker], SHAPES)
    (resumed, theirs), _ = pair(MAKERS[maker], SHAPES)
    for update in range(6):
        gradients(ours, update)
        ran_on.step()
        if update == 2:
            file = io.BytesIO()
            torch.save(ran_on.state_dict(), file)
            file.seek(0)
            resumed.load_state_dict(torch.load(file, weights_only=True))
            for p, q in zip(ours, theirs, strict=True):
                q.data.copy_(p)
                dtypes = {
                    key: value.dtype
                    for key, value in resumed.state[q].items()
                    if torch.is_tensor(value)
                }
                assert dtypes["exp_avg"] == (
                    torch.uint8 if "exp_avg_scale" in dtypes else torch.float32
                )
        elif update > 2:
            gradients(theirs, update)
            resumed.step()
    assert all(torch.equal(p, q) for p, q in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("name", methods.names())
def test_every_method_trains_and_resumes_with_eight_bits(
    name: str, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (adam, quantisation):
        monkeypatch.setattr(module, "SMALLEST", 256)  # the matrices here are small
    run, resumed = (start(name, training={"state_bits": 8}) for _ in range(2))
    full = start(name)
    losses, wanted = run.train(1, 10), full.train(1, 10)
    assert losses == pytest.approx(wanted, rel=0.03)
    assert losses != wanted
    counters = [[int(state["step"]) for state in r.optimizer.state.values()] for r in (run, full)]
    assert counters[0] == counters[1]  # ReLoRA's resets among them
    first = start(name, training={"state_bits": 8})
    first.train(1, 5)
    resumed.model.load_state_dict(first.model.state_dict())
    resumed.optimizer.load_state_dict(first.optimizer.state_dict())
    assert resumed.train(6, 10) == losses[5:]
    assert state_bytes(run.optimizer) < 0.7 * state_bytes(full.optimizer)


def test_an_optimizer_that_would_ignore_the_setting_is_refused(start: Start) -> None:
    run = start("full_rank")
    eight = run.config.training.model_copy(update={"state_bits": 8})
    assert isinstance(build_optimizer(run.method, run.model, eight), AdamW8bit)
    run.method.optimizer = lambda model, training: torch.optim.SGD(model.parameters())
    with pytest.raises(ConfigError, match=r"state_bits is 8 .*'full_rank' \(SGD\)"):
        build_optimizer(run.method, run.model, eight)
    with pytest.raises(ConfigError, match="state_bits is 4; choose 32"):
        GaLoreAdamW([nn.Parameter(torch.zeros(3, 3))], state_bits=4)
