"""Everything that the archives of losses and saved states need of lowrank, in one place.

Where a module of lowrank moves or a function is renamed, this file follows; the archives and their
tests stay as they are.
"""

from __future__ import annotations

import atexit
import contextlib
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any
from unittest import mock

import _corpus
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState

import lowrank
from lowrank import checkpoint, methods, models
from lowrank.config import Data, ModelShape, RunConfig, Training
from lowrank.data import Dataset, EvaluationSet, open_data
from lowrank.errors import LowrankError
from lowrank.train import resume
from lowrank.train.job import make_accelerator
from lowrank.train.loop import Loop
from lowrank.train.validation import validation_loss

VERSION: str = lowrank.__version__
REFUSAL = LowrankError  # what a combination that is not allowed raises
# The path is no place on a disk: it enters a run's hash, which must be the same everywhere.
DATA = Data(
    source="jsonl",
    path=_corpus.PATH.name,
    vocabulary_size=300,
    max_length=16,
    validation_fraction=0.1,
    validation_tokens=400,
)
SEED = 0

Trajectory = dict[str, list[float]]
"""Of each update the loss in nats per token, ``loss``, and the norm of the gradient before
clipping, ``gradient_norm``.
"""


def method_names() -> list[str]:
    """Name every registered method."""
    return list(methods.names())


@cache
def dataset() -> Dataset:
    """Open the corpus of this folder with a cache of its own, which goes when the process ends."""
    folder = Path(tempfile.mkdtemp(prefix="lowrank_golden_"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return open_corpus(_corpus.PATH, folder)


def open_corpus(path: Path, cache_folder: Path) -> Dataset:
    """Open the corpus from a copy at ``path``."""
    return open_data(DATA.model_copy(update={"path": str(path)}), SEED, cache=cache_folder)


def run_config(
    method: str, shape: Mapping[str, int], training: Mapping[str, Any], settings: Mapping[str, Any]
) -> RunConfig:
    """Configure a run; of ``settings`` a method takes those that it knows."""
    known = methods.get(method).Settings.model_fields
    chosen = {key: value for key, value in settings.items() if key in known}
    resolved = methods.get(method).Settings.model_validate(chosen).model_dump(mode="json")
    return RunConfig(
        method=method,
        scale="golden",
        seed=SEED,
        init_seed=SEED,
        data_seed=SEED,
        shape=ModelShape(**shape),
        settings=resolved,
        data=DATA,
        training=Training(**training),
    )


@contextlib.contextmanager
def on_one_thread() -> Iterator[None]:
    """Compute on one thread of the CPU, also where there is a GPU: so the numbers of two machines
    can be compared.
    """
    before, gpu = torch.get_num_threads(), torch.cuda.is_available()
    torch.set_num_threads(1)
    AcceleratorState._reset_state(
        reset_partial_state=gpu
    )  # else an earlier run of the process has chosen the device
    try:
        with mock.patch.object(torch.cuda, "is_available", return_value=False):
            yield
    finally:
        torch.set_num_threads(before)
        AcceleratorState._reset_state(reset_partial_state=gpu)


def accelerator(training: Training) -> Accelerator:
    """Make the ``Accelerator`` of a run as training does."""
    return make_accelerator(training, None)


def build_loop(config: RunConfig) -> Loop:
    """Build the training loop of a run at its first update, as a session does. Raises
    :data:`REFUSAL`.
    """
    data = dataset()
    made = accelerator(config.training)
    model, method = models.build(config, data.vocabulary_size, data.special)
    return Loop(config, model, method, data, made)


def walk(loop: Loop, first: int, last: int) -> Trajectory:
    """Make the updates ``first`` … ``last`` in the order in which a session makes them."""
    found: Trajectory = {"loss": [], "gradient_norm": []}
    for update in range(first, last + 1):
        if update > 1:
            loop.after_update(update - 1)
        for point in [*loop.update(update), *loop.drain()]:
            found["loss"].append(point.loss)
            found["gradient_norm"].append(point.gradient_norm)
    return found


def write_resume_point(folder: Path, update: int, loop: Loop, losses: list[float]) -> None:
    """Write the resume point after ``update`` under ``folder``."""
    resume.write_resume_point(
        folder, resume.Progress(update=update, last_finite_loss=losses[-1]), loop.state()
    )


def read_resume_point(folder: Path) -> tuple[int, dict[str, Any]]:
    """Read the update and the state of the newest resume point under ``folder``. Raises where there
    is none.
    """
    found = resume.read_resume_point(folder)
    assert found is not None, f"there is no resume point under {folder}"
    progress, state = found
    return progress.update, state


def validation_rows() -> EvaluationSet:
    """Return the rows that validation losses are taken on."""
    return dataset().evaluation_set("validation", split="validation", tokens=DATA.validation_tokens)


def validate(model: torch.nn.Module, training: Training) -> float:
    """Compute the validation loss of a model in nats per token."""
    return validation_loss(model, validation_rows(), training, accelerator(training))[0]


def write_checkpoint(folder: Path, update: int, loop: Loop) -> None:
    """Write the checkpoint of ``update``, its validation loss in its manifest."""
    data, rows, config = dataset(), validation_rows(), loop.config
    loss, tokens = validation_loss(loop.wrapped, rows, config.training, loop.accelerator)
    manifest = checkpoint.Manifest(
        step=update,
        kind="training",
        tokens_seen=0,
        method=config.method,
        settings=config.settings,
        run_config_hash=config.fingerprint(),
        validation_loss=loss,
        validation_tokens=tokens,
        evaluation_set_sha256=rows.record.sha256,
        tokenizer_hash=data.tokenizer_hash,
        lowrank_version=VERSION,
    )
    checkpoint.save(folder, loop.model, manifest, data.tokenizer)


def read_checkpoint(folder: Path, training: Training) -> dict[str, Any]:
    """Load a checkpoint; return what its manifest says and the validation loss of
    the loaded model.
    """
    loaded = checkpoint.load(folder)
    facts = loaded.manifest
    return {
        "method": facts.method,
        "step": facts.step,
        "weights_sha256": facts.weights_sha256,
        "run_config_hash": facts.run_config_hash,
        "evaluation_set_sha256": facts.evaluation_set_sha256,
        "tokenizer_hash": facts.tokenizer_hash,
        "manifest_loss": facts.validation_loss,
        "validation_loss": validate(loaded.model, training),
    }
