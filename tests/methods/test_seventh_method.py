"""A method from outside: one file and one entry point, and the whole suite applies to it
(CONTRIBUTING, "Add a method").
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

SOURCE = '''
"""Sign descent: the sign of the gradient's running mean."""

import torch
from pydantic import Field

from lowrank.config.schema import Config
from lowrank.errors import LowrankError
from lowrank.methods.base import Method, targets


class SignDescent(torch.optim.Optimizer):
    """W -= lr · 0.1 · sign(m) with m = beta m + (1 - beta) G."""

    def __init__(self, params, lr, beta):
        super().__init__(params, {"lr": lr, "beta": beta})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                mean = self.state[p].setdefault("exp_avg", torch.zeros_like(p))
                mean.lerp_(p.grad, 1 - group["beta"])
                p.sub_(mean.sign(), alpha=0.1 * group["lr"])


class Settings(Config):
    """Settings of sign descent."""

    beta: float = Field(0.5, ge=0.0, lt=1.0)


class Toy(Method):
    """The smallest method of the optimizer family."""

    family = "optimizer"
    title = "Toy"
    summary = "sign descent"
    source = "this test"
    Settings = Settings

    def optimizer(self, model, training):
        if not list(targets(model)):
            raise LowrankError("the model has no target layer")
        return SignDescent(model.parameters(), training.learning_rate, self.settings.beta)
'''
ENTRY_POINT = "[lowrank.methods]\ntoy = toy_method:Toy\n"
METADATA = "Metadata-Version: 2.1\nName: toy-method\nVersion: 1.0\n"


def test_a_method_from_outside_is_held_to_the_whole_suite(tmp_path: Path) -> None:
    (tmp_path / "toy_method.py").write_text(SOURCE, encoding="utf-8")
    folder = tmp_path / "toy_method-1.0.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text(METADATA, encoding="utf-8")
    (folder / "entry_points.txt").write_text(ENTRY_POINT, encoding="utf-8")
    suite = Path(__file__).with_name("test_conformance.py")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "OMP_NUM_THREADS": "1"}
    command = [
        sys.executable,
        "-m",
        "pytest",
        str(suite),
        "-q",
        "-k",
        "toy",
        "-p",
        "no:cacheprovider",
    ]
    done = subprocess.run(
        command, check=False, capture_output=True, text=True, env=environment, cwd=suite.parents[2]
    )
    assert done.returncode == 0, done.stdout[-3000:]
    assert " passed" in done.stdout
    assert " failed" not in done.stdout
