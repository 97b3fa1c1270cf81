"""The examples of docs/optim.md run as written, from top to bottom."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from torch import nn

DOCUMENT = Path(__file__).parents[2] / "docs" / "optim.md"


def losses_of(model: nn.Module, batches: list[Any]) -> float:
    with torch.no_grad():
        return sum(nn.functional.mse_loss(model(x), y).item() for x, y in batches)


def test_the_examples_run(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(24, 160), nn.Tanh(), nn.Linear(160, 8))
    x = torch.randn(32, 24)
    batches = [(x, x[:, :8].sin())] * 30
    names: dict[str, Any] = {"model": model, "batches": batches, "path": tmp_path / "state.pt"}
    before = losses_of(model, batches)
    for example in re.findall(
        r"```python\n(.*?)```", DOCUMENT.read_text(encoding="utf-8"), flags=re.DOTALL
    ):
        exec(example, names)
    assert losses_of(model, batches) < 0.5 * before
    assert names["message"].startswith(
        "0.weight: rank 1000 does not fit a matrix of shape (160, 24)"
    )
    assert names["fira"].param_groups[0]["norm_growth_limit"] == 1.01
    # Bases (4, 24) and (8, 4), moments (160, 4) and (4, 160), all below 4096 entries: float32.
    assert names["bytes_at_most"] == 4 * (4 * 24 + 8 * 4 + 2 * (160 * 4 + 4 * 160))
    saved = torch.load(names["path"], weights_only=True)["state"]
    assert any("basis" in state for state in saved.values())


def test_the_projection_and_the_codes_are_what_the_page_says(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Linear(8, 8)
    names: dict[str, Any] = {"model": model, "batches": [], "path": tmp_path / "state.pt"}
    for example in re.findall(
        r"```python\n(.*?)```", DOCUMENT.read_text(encoding="utf-8"), flags=re.DOTALL
    ):
        exec(example.replace("0.weight", "weight"), names)
    G = names["G"].double()
    U, s, V = torch.linalg.svd(G, full_matrices=False)
    best = (U[:, :8] * s[:8]) @ V[:8]
    torch.testing.assert_close(names["inside"].double(), best, atol=1e-5, rtol=0)
    torch.testing.assert_close(names["outside"].double(), G - best, atol=1e-5, rtol=0)
    assert names["kind"] == "right"
    assert names["codes"].shape == G.shape
    assert names["scales"].shape == (64 * 32 // 256,)
    error = (names["restored"] - names["G"]).abs().max() / names["G"].abs().max()
    assert 0 < error < 0.01
    turning, (W,) = names["turning"], names["matrices"]
    for update in range(6):
        W.grad = torch.zeros(8, 8)
        W.grad[:, (0 if update < 3 else 4) : (4 if update < 3 else 8)] = torch.randn(8, 4)
        turning.step()
    # The gradient turns once, by a right angle.
    assert turning.state[W]["renewals"] == 2
    assert turning.state[W]["step"] == 6
