"""lm-evaluation-harness over models in memory: tasks are loaded, rendered and tokenised once for
many checkpoints.

Only the tokens of requests are kept between checkpoints, never the output of a model.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import logging
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from lowrank.evaluate.definitions import Definition
from lowrank.evaluate.errors import EvaluationError

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

if TYPE_CHECKING:
    from lm_eval.api.task import Task
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

Request = tuple[tuple[str, str], list[int], list[int]]
SEED = 0
# Characters of an item's key that name its cluster; sql/downstream_paired.sql and
# sql/downstream_against.sql cut there, too.
CLUSTER = 16


def version() -> str:
    """Return the version of the installed harness, without importing it."""
    from importlib.metadata import version as installed

    return installed("lm-eval")


@dataclass(frozen=True)
class ScoringBatch:
    """Rows of one forward pass, and which of its predictions are scored.

    ``input_ids`` has shape (rows, length), padded with 0 on the right. Predictions before position
    ``first`` are not needed. ``row``, ``position`` (counted from ``first``), ``target`` and
    ``request``, each of shape (n,), give place, id and request of each scored token.
    """

    input_ids: Tensor
    first: int
    row: Tensor
    position: Tensor
    target: Tensor
    request: Tensor

    def to(self, device: torch.device) -> ScoringBatch:
        """Return the batch on another device."""
        tensors = (self.input_ids, self.row, self.position, self.target, self.request)
        input_ids, row, position, target, request = (t.to(device) for t in tensors)
        return ScoringBatch(input_ids, self.first, row, position, target, request)


@dataclass(frozen=True)
class TokenisedRequests:
    """Tokenised requests as batches.

    ``requests`` is their number, and ``truncated`` that of requests whose context was cut on the
    left because it did not fit.
    """

    batches: list[ScoringBatch]
    requests: int
    truncated: int

    @classmethod
    def of(
        cls, requests: Sequence[Request], rows: int, max_length: int, device: torch.device
    ) -> TokenisedRequests:
        """Put requests into batches of ``rows`` rows, longest first.

        Requests that differ in their last token alone share a row. ``max_length`` is the model's
        context in tokens. Raises :class:`EvaluationError` for an answer that is longer.
        """
        longest = max(len(answer) for _, _, answer in requests)
        if longest > max_length:
            raise EvaluationError(
                f"an answer of {longest} tokens is longer than the model's context of {max_length}"
            )
        shared: dict[tuple[int, ...], list[int]] = {}
        truncated = 0
        for index, (_, context, answer) in enumerate(requests):
            whole = context + answer
            truncated += len(whole) > max_length + 1
            shared.setdefault(tuple(whole[-(max_length + 1) :][:-1]), []).append(index)
        order = sorted(shared, key=lambda tokens: (-len(tokens), tokens))
        batches = [
            _batch(order[i : i + rows], shared, requests).to(device)
            for i in range(0, len(order), rows)
        ]
        return cls(batches, len(requests), truncated)


def _batch(
    rows: Sequence[tuple[int, ...]],
    shared: dict[tuple[int, ...], list[int]],
    requests: Sequence[Request],
) -> ScoringBatch:
    """Return one batch of inputs and the tokens that are scored in it."""
    length = len(rows[0])
    scored = []
    for number, tokens in enumerate(rows):
        for index in shared[tokens]:
            answer = requests[index][2]
            start = len(tokens) - len(answer)
            scored += [
                (number, start + offset, token, index) for offset, token in enumerate(answer)
            ]
    row, position, target, request = torch.tensor(scored).T
    first = int(position.min())
    padded = torch.tensor([[*tokens, *[0] * (length - len(tokens))] for tokens in rows])
    return ScoringBatch(padded, first, row, position - first, target, request)


@torch.inference_mode()
def score(model: nn.Module, prepared: TokenisedRequests) -> list[tuple[float, bool]]:
    """Return for each request the log-likelihood of its answer in nats, and whether it is greedy.

    A greedy answer is the one that decoding with the likeliest token would produce.
    """
    total = torch.zeros(prepared.requests)
    greedy = torch.ones(prepared.requests, dtype=torch.bool)
    for batch in prepared.batches:
        kept = batch.input_ids.shape[1] - batch.first
        logits = model(input_ids=batch.input_ids, logits_to_keep=kept, use_cache=False).logits
        needed = logits.flatten(0, 1).index_select(0, batch.row * kept + batch.position).float()
        chosen = needed.gather(1, batch.target[:, None])[:, 0]
        values = (chosen - needed.logsumexp(1)).cpu()
        hits = (chosen == needed.amax(1)).cpu()  # amax takes half the time of argmax
        request = batch.request.cpu()
        total.index_add_(0, request, values)
        greedy[request[~hits]] = False
    return list(zip(total.tolist(), greedy.tolist(), strict=True))


def language_model(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, batch_size: int, max_length: int
) -> Any:
    """Return the harness's wrapper of a model in memory.

    Its method ``use(model)`` replaces the model by another one with the same tokenizer.
    """
    with quiet():
        from lm_eval.models.huggingface import HFLM

    class InMemory(HFLM):  # type: ignore[misc]
        """The harness's Hugging Face model, with tokenised requests kept from model to model."""

        def use(self, model: PreTrainedModel) -> None:
            self._model, self._config, self._device = model, model.config, model.device

        def loglikelihood(
            self, requests: list[Any], disable_tqdm: bool = True
        ) -> list[tuple[float, bool]]:
            key = self.asked = (str(self._device), *(request.args for request in requests))
            if key not in kept:
                return super().loglikelihood(requests, disable_tqdm=True)  # type: ignore[no-any-return]
            return score(self._model, kept[key])

        def _loglikelihood_tokens(
            self, requests: list[Request], **_: Any
        ) -> list[tuple[float, bool]]:
            prepared = TokenisedRequests.of(requests, batch_size, max_length, self._device)
            kept[self.asked] = prepared
            return score(self._model, prepared)

        @property
        def truncated(self) -> int:
            """The number of the last requests that were cut to the model's context."""
            return kept[self.asked].truncated

    kept: dict[Any, TokenisedRequests] = {}
    with quiet():
        return InMemory(
            pretrained=model,
            tokenizer=tokenizer,
            backend="causal",
            batch_size=batch_size,
            max_length=max_length,
            prefix_token_id=tokenizer.eos_token_id,  # precedes a document in training, too
        )


@dataclass
class LoadedTask:
    """One task of a suite, loaded by the harness: a single member, or all members of a group.

    ``answers`` maps (member, number of the document) to the item's answers.
    """

    name: str
    members: dict[str, Task]
    version: str
    answers: dict[tuple[str, int], Answers]


@dataclass(frozen=True)
class Answers:
    """What an item is, independent of any model: its key, the indices ``right`` of the right
    choices, and the choices' sizes in bytes.

    The first 16 characters of a key are its ``cluster``: items that share it (twins of the embedded
    suite, an item that a data set holds twice) are not independent, and standard errors treat them
    as a cluster.
    """

    key: str
    right: tuple[int, ...]
    sizes: tuple[int, ...]

    @property
    def cluster(self) -> str:
        """The prefix of the key that dependent items share."""
        return self.key[:CLUSTER]


def load(definition: Definition, limit: int | None) -> LoadedTask:
    """Load a task with its data, and render its requests.

    ``limit`` keeps only the leading items. Raises :class:`EvaluationError` where its data set
    cannot be reached or read.
    """
    with quiet():
        from lm_eval.tasks import TaskManager

        try:
            manager = TaskManager(include_defaults=False)
            members = manager.load([str(path) for path in definition.files])["tasks"]
            for task in members.values():
                task.set_config(key="num_fewshot", value=0)
                task.set_fewshot_seed(seed=SEED)
                _render_once(task, limit)
        except Exception as error:  # the libraries below raise errors of any class
            raise EvaluationError(
                f"the task '{definition.name}' cannot read its data ({definition.origin}): {_first_line(error)}; "
                "connect, or fetch the files beforehand and give --data-dir"
            ) from error
    if definition.items is not None:
        for task in members.values():
            _require_items(task, definition.items)
    versions = sorted({str(task.VERSION) for task in members.values()})
    answers = {
        (name, index): _answers(task, instances)
        for name, task in members.items()
        for index, instances in _by_document(task).items()
    }
    return LoadedTask(definition.name, members, "/".join(versions), answers)


def _render_once(task: Task, limit: int | None) -> None:
    """Build the requests once; later calls of the harness reuse them without the old answers."""
    task.build_all_requests(limit=limit)
    documents = {instance.doc_id: instance.doc for instance in task.instances}

    def again(**_: Any) -> None:
        for instance in task.instances:
            instance.resps = []
            instance.filtered_resps = {}

    task.build_all_requests = again  # type: ignore[method-assign]
    task.doc_iterator = lambda **_: iter(documents.items())  # type: ignore[method-assign, assignment]


def _require_items(task: Task, path: Path) -> None:
    """Raise :class:`EvaluationError` unless the documents are the lines of ``path``."""
    lines = path.read_text(encoding="utf-8").splitlines()
    for instance in task.instances:
        if json.loads(lines[instance.doc_id or 0]) != instance.doc:
            raise EvaluationError(
                f"the cached items of {path.name} are damaged; delete {path.parent} and run again"
            )


def _by_document(task: Task) -> dict[int, list[Any]]:
    grouped: dict[int, list[Any]] = {}
    for instance in task.instances:
        grouped.setdefault(instance.doc_id or 0, []).append(instance)
    return grouped


def _answers(task: Task, instances: list[Any]) -> Answers:
    """Return the right answers and the sizes of one item's choices.

    Raises :class:`EvaluationError` for an item without a right answer among its choices.
    """
    delimiter = task.config.target_delimiter
    texts = [instance.args[1].removeprefix(delimiter) for instance in instances]
    target = task.doc_to_target(instances[0].doc)
    targets = target if isinstance(target, list) else [target]
    right = tuple(t if isinstance(t, int) else texts.index(t) for t in targets)
    if not right or min(right) < 0 or max(right) >= len(texts):
        raise EvaluationError(
            f"the task '{task.config.task}' has an item whose answer is none of its choices"
        )
    body = "\x1f".join([instances[0].args[0], *texts, *map(str, right)])
    twin = str(instances[0].doc.get("twin") or "")[:CLUSTER]
    return Answers(
        twin + hashlib.sha256(body.encode()).hexdigest()[:16],
        right,
        tuple(len(text.encode()) for text in texts),
    )


def run(lm: Any, task: LoadedTask, bootstrap: int) -> dict[str, Any]:
    """Run one task with the model of ``lm``; return the harness's results with samples.

    ``bootstrap`` is the number of resamples of the harness's standard errors.
    """
    with quiet():
        import lm_eval

        loaded = {"tasks": task.members, "groups": {}, "group_map": {}}
        found: dict[str, Any] = lm_eval.evaluate(
            lm=lm, task_dict=loaded, bootstrap_iters=bootstrap, log_samples=True
        )
    return found


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put the model into evaluation mode in the block, then restore the mode of each module."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


@contextmanager
def quiet() -> Iterator[None]:
    """Suppress the harness's log lines, progress bars and notices in the block."""
    loggers = [
        logging.getLogger(name) for name in ("lm_eval", "datasets", "huggingface_hub", "httpx")
    ]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    with contextlib.redirect_stderr(io.StringIO()):
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
            sys.stderr.flush()


def _first_line(error: BaseException) -> str:
    """Return the class of an error and the first line of its text, cut to 200 characters."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__
