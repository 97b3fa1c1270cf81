"""The measured peak: what it sees, and how near the estimate comes to it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lowrank import models
from lowrank.checkpoint import write_weights
from lowrank.config import Data, ModelShape, RunConfig, Training
from lowrank.estimate import SPECIAL, estimate
from lowrank.loss import summed_nats
from lowrank.presets import load
from lowrank.train.memory import PeakMemory

MEBI = 2**20
pytestmark = [
    pytest.mark.skipif(
        torch.cuda.is_available(), reason="resident memory is the measure where there is no GPU"
    ),
    pytest.mark.skipif(
        PeakMemory().peak() is None,
        reason="this system does not let a process reset its high-water mark",
    ),
]


def blocks(count: int) -> list[torch.Tensor]:
    """``count`` MiB in blocks of one."""
    return [torch.ones(MEBI // 4) for _ in range(count)]


def test_the_peak_includes_memory_that_was_freed() -> None:
    memory = PeakMemory()
    held = blocks(150)
    del held
    assert memory.peak() == pytest.approx(150 * MEBI, rel=0.1)


def test_memory_reused_from_earlier_work_is_counted() -> None:
    for _ in range(
        2
        # the second time the C library serves the blocks from its heap, and keeps what is below the
        # pin
    ):
        held = blocks(150)
        pin = held[-1]
        del held
    memory = PeakMemory()
    again = blocks(100)
    assert memory.peak() == pytest.approx(100 * MEBI, rel=0.1)
    assert len(again) == 100
    assert pin.numel()


def test_weights_are_saved_without_a_copy_in_memory(tmp_path: Path) -> None:
    state = {str(n): tensor for n, tensor in enumerate(blocks(150))}
    memory = PeakMemory()
    write_weights(tmp_path / "weights", state)
    assert (memory.peak() or 0) < 15 * MEBI
    assert (tmp_path / "weights").stat().st_size > 150 * MEBI
    (tmp_path / "other").touch()
    assert (tmp_path / "weights").stat().st_mode == (tmp_path / "other").stat().st_mode
    with pytest.raises(OSError, match=r"No such file|I/O error"):
        write_weights(tmp_path / "nowhere" / "weights", state)


def config(method: str, settings: dict[str, int]) -> RunConfig:
    shape = ModelShape.model_validate(load("scales")["mini"])
    return RunConfig(
        method=method,
        scale="mini",
        seed=0,
        init_seed=0,
        data_seed=0,
        shape=shape,
        settings=settings,
        data=Data(max_length=128),
        training=Training(learning_rate=1e-3, batch_size=8),
    )


def test_estimated_peaks_of_runs_in_one_process_are_near_the_measured_ones() -> None:
    """benchmarks/memory_peak.py compares whole runs of every method, each in a
    process of its own.
    """
    ids = torch.randint(0, 4096, (8, 128), generator=torch.Generator().manual_seed(0))
    for run in (config("full_rank", {}), config("cola", {"rank": 64}), config("full_rank", {})):
        memory = PeakMemory()
        model, method = models.build(run, 4096, SPECIAL)
        optimizer = method.optimizer(model.train(), run.training)
        for _ in range(3):
            summed_nats(model(input_ids=ids).logits, ids).backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        measured = memory.peak() or 0
        del model, optimizer
        live = estimate(
            run, 4096, "cuda"
        ).peak_bytes  # what is alive at once, without what the process holds beyond
        assert 0.95 * live < measured < 1.8 * live
        assert estimate(run, 4096, "cpu").peak_bytes == pytest.approx(measured, rel=0.25)
