"""What evaluations share: a checkpoint that is loaded and verified once, tasks that are rendered
once, and one harness model per tokenizer.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from lowrank import checkpoint
from lowrank.config.schema import Downstream
from lowrank.errors import LowrankError
from lowrank.evaluate import harness
from lowrank.evaluate.definitions import define
from lowrank.evaluate.errors import EvaluationError
from lowrank.evaluate.plan import MissingScores, SuiteVariant
from lowrank.evaluate.scores import Score, scores
from lowrank.work.loading import load_checkpoint


class TaskCache:
    """Holds one checkpoint at a time, and every task and tokenizer that was used.

    ``loads`` counts loaded checkpoints.
    """

    def __init__(self, root: Path, settings: Downstream, device: torch.device) -> None:
        self.root, self.settings, self.device = root.resolve(), settings, device
        self.loads = 0
        self._current: tuple[int, Any] | None = None
        self._models: dict[tuple[str, int], Any] = {}
        self._tasks: dict[tuple[str, str], harness.LoadedTask | LowrankError] = {}

    def scores(self, work: MissingScores) -> tuple[harness.LoadedTask, list[Score], int]:
        """Score a checkpoint on a task; return the task, its missing scores, and a count.

        The count is the number of requests that were cut to the model's context.
        """
        task = self.task(work.variant, work.task)
        lm = self.model(work)
        with harness.evaluating(lm.model):
            results = harness.run(lm, task, self.settings.bootstrap)
        return task, scores(task, sorted(work.metrics | work.item_metrics), results), lm.truncated

    def task(self, variant: SuiteVariant, name: str) -> harness.LoadedTask:
        """Return a loaded task.

        Raises :class:`LowrankError` for one that cannot be loaded; that is tried once.
        """
        key = (variant.suite.name, name)
        if key not in self._tasks:
            try:
                data_dir = Path(self.settings.data_dir) if self.settings.data_dir else None
                definition = define(name, variant.suite.tasks[name], data_dir, variant.embedded)
                self._tasks[key] = harness.load(definition, self.settings.limit)
            except LowrankError as error:
                self._tasks[key] = error
        found = self._tasks[key]
        if isinstance(found, LowrankError):
            raise found
        return found

    def model(self, work: MissingScores) -> Any:
        """Return the harness's model with the weights of the checkpoint.

        Raises :class:`LowrankError` for one that cannot be loaded; that is tried once in a row.
        """
        if self._current is None or self._current[0] != work.checkpoint.id:
            self._current = (work.checkpoint.id or 0, self._load(work))
        found = self._current[1]
        if isinstance(found, LowrankError):
            raise found
        return found

    def release(self) -> None:
        """Drop the current checkpoint."""
        self._current = None

    def _load(self, work: MissingScores) -> Any:
        """Load a checkpoint in float32, verified against manifest and database.

        Returns the harness's model, or the error that kept it from being loaded.
        """
        try:
            self.loads += 1
            loaded = load_checkpoint(self.root, work.checkpoint)
            return self._in_harness(work, self.root / work.checkpoint.path, loaded)
        except LowrankError as error:
            return error

    def _in_harness(self, work: MissingScores, folder: Path, loaded: checkpoint.Loaded) -> Any:
        model: Any = loaded.model
        model.to(self.device)
        entry = loaded.manifest.files.get("tokenizer.json")
        key = (
            entry["sha256"] if entry else work.run.tokenizer_hash,
            int(model.config.max_position_embeddings),
        )
        if key in self._models:
            check_vocabulary(folder, self._models[key].tokenizer, model)
            self._models[key].use(model)
        else:
            tokenizer = tokenizer_of(folder)
            check_vocabulary(folder, tokenizer, model)
            self._models[key] = harness.language_model(
                model, tokenizer, self.settings.batch_size, key[1]
            )
        return self._models[key]


def tokenizer_of(folder: Path) -> Any:
    """Load the tokenizer in a checkpoint's folder.

    Raises :class:`EvaluationError` where there is none, or one without an end-of-sequence token.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # transformers raises OSError, ValueError, KeyError and others alike
        raise EvaluationError(
            f"{folder}: holds no tokenizer that can be loaded; save one there (tokenizer.json)"
        ) from error
    if tokenizer.eos_token_id is None:
        raise EvaluationError(
            f"{folder}: its tokenizer has no end-of-sequence token, which stands for the start of a text"
        )
    return tokenizer


def check_vocabulary(folder: Path, tokenizer: Any, model: Any) -> None:
    """Raise :class:`EvaluationError` unless every token has a row in the model's embedding."""
    highest, rows = (
        max(tokenizer.get_vocab().values()),
        model.get_input_embeddings().weight.shape[0],
    )
    if highest >= rows:
        raise EvaluationError(
            f"{folder}: its tokenizer does not fit the model (token {highest}, but {rows} rows in the embedding); "
            "save the tokenizer that the model was trained with"
        )
