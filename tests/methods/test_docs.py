"""The examples of docs/methods.md run as written."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

DOCUMENT = Path(__file__).parents[2] / "docs" / "methods.md"


def test_the_optimizers_work_in_a_plain_loop_and_in_the_trainer(
    start: Callable[..., Any], tmp_path: Path
) -> None:
    examples = re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(encoding="utf-8"), re.DOTALL)
    assert len(examples) == 2
    model = start("full_rank").model
    rows = torch.randint(3, 64, (8, 16), generator=torch.Generator().manual_seed(0))
    dataset = [{"input_ids": row, "labels": row} for row in rows]
    names: dict[str, Any] = {
        "model": model,
        "batches": [rows] * 6,
        "folder": str(tmp_path),
        "dataset": dataset,
    }
    before = model(input_ids=rows, labels=rows).loss.item()
    exec(examples[0], names)
    middle = model(input_ids=rows, labels=rows).loss.item()
    exec(examples[1], names)
    model.cpu()
    assert middle < before
    assert names["trainer"].state.global_step == 4
    assert model(input_ids=rows, labels=rows).loss.item() < middle
    basis = names["optimizer"].state[model.model.layers[0].mlp.up_proj.weight]["basis"]
    assert basis.shape == (8, 32)
    saved = torch.load(tmp_path / "checkpoint-4" / "optimizer.pt", weights_only=True)
    assert any("basis" in state for state in saved["state"].values())
    AutoModelForCausalLM.from_pretrained(tmp_path / "checkpoint-4")
