"""Estimate what a run will hold in memory and compute, without running it.

This module contains no formula of any architecture. The run's own model, loss and optimizer make
one update on tensors that have shapes but no data (PyTorch's fake tensors). Every storage is
counted from the operation that allocates it until it is freed, and every matrix product as it is
dispatched. A third-party method is therefore estimated as faithfully as a built-in one, and a model
with a billion parameters takes a few seconds and almost no memory.

Parameter counts and the bytes of weights, gradients and optimizer state are exact. Memory that
PyTorch does not see is added to the peak of a CPU process as a measured fraction (:data:`SLACK`):
freed memory that the C library keeps, and scratch memory inside kernels.
"""

from __future__ import annotations

import json
import weakref
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from functools import partial
from itertools import chain
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.optim import Optimizer
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count
from transformers import PreTrainedModel

from lowrank import models
from lowrank.config import RunConfig
from lowrank.data import sources
from lowrank.data.tokenizer import DEFAULT_VOCABULARY
from lowrank.errors import LowrankError, UsageError
from lowrank.loss import summed_nats
from lowrank.methods.base import Method, build_optimizer
from lowrank.train import layerwise
from lowrank.train.layerwise import LayerwiseUpdates
from lowrank.train.loop import gradient_norms, split_batch, total_norm
from lowrank.train.memory import model_bytes, state_bytes, state_tensors

Device = Literal["cpu", "cuda"]
SPECIAL: dict[str, int | None] = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
STORED = {
    torch.int64: "I64",
    torch.float32: "F32",
    torch.bfloat16: "BF16",
}  # in the order of a safetensors file
aten = torch.ops.aten

LARGEST_KEPT = 32 * 2**20
"""Blocks above this size go back to the kernel when they are freed (glibc's largest threshold for
mmap).
"""

SLACK = 0.55
"""Resident bytes of a CPU process beyond each byte of smaller blocks at the peak: holes that no
later tensor fits, code, scratch.

Measured with glibc 2.36 at ``mini``, five methods: 0.47 to 0.69; ``benchmarks/memory_peak.py``
measures the result.
"""


@dataclass(frozen=True)
class RunEstimate:
    """What one run in one process needs: bytes, and floating-point operations.

    A multiplication with its addition counts as two operations. ``weight_bytes`` covers parameters
    and persistent buffers, ``checkpoint_bytes`` the file that stores them. ``activation_bytes`` is
    what one forward pass saves for its backward pass. ``peak_bytes`` is the largest sum of
    everything that is alive at once while the run trains or evaluates (saving copies nothing); on a
    CPU it includes the process's overhead. ``flops_per_token`` counts the matrix products of the
    forward and backward pass as they are executed: attention over the whole square, recomputation
    by gradient checkpointing included, the optimizer's own products excluded.
    """

    parameters_total: int
    parameters_trainable: int
    weight_bytes: int
    gradient_bytes: int
    optimizer_state_bytes: int
    activation_bytes: int
    peak_bytes: int
    flops_per_token: int
    checkpoint_bytes: int

    def row(self) -> dict[str, int]:
        """Return the figures by name."""
        return asdict(self)


def estimate(
    config: RunConfig, vocabulary_size: int | None = None, device: Device | None = None
) -> RunEstimate:
    """Estimate parameters, memory and floating-point operations of the run ``config``.

    ``vocabulary_size`` is the number of embedding rows; None uses :func:`expected_vocabulary`.
    ``device`` chooses whose peak is estimated: the resident memory of a process on a ``cpu``, or
    the allocator's on ``cuda``; None is the device that a run would use here.

    Raises :class:`LowrankError` if the vocabulary is not known, or if the optimizer reads tensor
    values and its method does not define ``optimizer_state_bytes``.
    """
    passes, micro = split_batch(config.training, processes=1)
    layerwise.check(config.training, passes, processes=1)
    passes = min(
        passes, 2
    )  # from the second pass on, gradients are alive while activations are allocated
    meta, method = meta_model(
        config, expected_vocabulary(config) if vocabulary_size is None else vocabulary_size
    )
    with FakeTensorMode(), torch.enable_grad():
        model = without_data(meta)
        optimizer = build_optimizer(method, model, config.training)
        state, traceable = planned_state(method, optimizer)
        counts, file = (
            model_bytes(model, config.training.per_layer_updates),
            file_bytes(model.state_dict()),
        )
        update, activations = trace_update(
            model, optimizer if traceable else None, config, passes, micro
        )
        evaluation = trace_evaluation(model, config)
    on_cpu = (device or default_device()) == "cpu"
    peak = (
        max(update.resident, evaluation.resident) if on_cpu else max(update.peak, evaluation.peak)
    )
    return RunEstimate(
        parameters_total=counts["parameters_total"],
        parameters_trainable=counts["parameters_trainable"],
        weight_bytes=counts["parameter_bytes"],
        gradient_bytes=counts["gradient_bytes"],
        optimizer_state_bytes=state,
        activation_bytes=activations,
        peak_bytes=counts["parameter_bytes"] + state + peak,
        flops_per_token=round(update.flops / (passes * micro * config.data.max_length)),
        checkpoint_bytes=file,
    )


def default_device() -> Device:
    """Return the device that a run would use on this machine."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def expected_vocabulary(config: RunConfig) -> int:
    """Return the number of embedding rows, as far as the study file determines it.

    A tokenizer trained on a small corpus may end up with fewer tokens. Raises :class:`UsageError`
    if the size is known only after loading a tokenizer.
    """
    data = config.data
    if data.vocabulary_size is not None:
        return data.vocabulary_size
    source = sources.get(data.source)
    if data.tokenizer is None and (source.tokenizer is None or source.vocabulary_size):
        return source.vocabulary_size or DEFAULT_VOCABULARY
    raise UsageError(
        f"the size of the tokenizer '{data.tokenizer or source.tokenizer}' is not known before it is loaded; "
        "give --vocabulary-size, or data.vocabulary_size in the study file"
    )


def meta_model(config: RunConfig, vocabulary_size: int) -> tuple[PreTrainedModel, Method]:
    """Return the run's model, prepared as for training, and its method; tensors have no storage."""
    with torch.device("meta"):
        model, method = models.construct(config, vocabulary_size, SPECIAL)
    models.prepare(model, config.training)
    return model.train(), method


def without_data(model: PreTrainedModel) -> PreTrainedModel:
    """Replace the tensors of ``model``, in place, by fake ones on the CPU; return the model.

    Call this under a ``FakeTensorMode``. Meta tensors would do for counting the bytes of the
    weights, but neither autocast nor fused attention accepts them.
    """
    for module in model.modules():
        for name, p in list(module.named_parameters(recurse=False)):
            setattr(
                module,
                name,
                nn.Parameter(torch.empty(p.shape, dtype=p.dtype), requires_grad=p.requires_grad),
            )
        for name, buffer in list(module.named_buffers(recurse=False)):
            setattr(module, name, torch.empty(buffer.shape, dtype=buffer.dtype))
    for layer in model.model.layers:
        layer.register_forward_pre_hook(without_mask, with_kwargs=True)
    return model


def without_mask(
    _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Drop the attention mask that Transformers makes when it detects tracing.

    A run has no mask: its attention is causal.
    """
    return args, {**kwargs, "attention_mask": None}


def planned_state(method: Method, optimizer: Optimizer) -> tuple[int, bool]:
    """Return the bytes of the optimizer's state after a step, and whether its steps can be traced.

    Makes one step if they can.
    """
    declared = method.optimizer_state_bytes(optimizer)
    if declared is not None:
        return declared, False
    for p in chain.from_iterable(group["params"] for group in optimizer.param_groups):
        p.grad = torch.empty_like(p)
    try:
        optimizer.step()
    except DataDependentOutputException as error:
        raise LowrankError(
            f"the optimizer of method '{method.name}' reads tensor values, so that tracing a step cannot count its state; "
            "let the method define optimizer_state_bytes"
        ) from error
    optimizer.zero_grad(set_to_none=True)
    return state_bytes(optimizer), True


def trace_update(
    model: PreTrainedModel, optimizer: Optimizer | None, config: RunConfig, passes: int, micro: int
) -> tuple[Trace, int]:
    """Trace ``passes`` forward and backward passes of ``micro`` rows, then a step of ``optimizer``.

    With ``optimizer`` None the step is left out. Returns the trace and the bytes of the activations
    of one forward pass.
    """
    ids = torch.zeros(micro, config.data.max_length, dtype=torch.int64)
    activations, per_layer = 0, config.training.per_layer_updates
    if per_layer:
        LayerwiseUpdates([p for p in model.parameters() if p.requires_grad], optimizer, stop=False)
    trace = Trace(
        [*model.state_dict().values(), *(state_tensors(optimizer) if optimizer is not None else ())]
    )
    with trace:
        for _ in range(passes):
            gradients = trace.live
            with autocast(config):
                logits = model(input_ids=ids).logits
            nats = summed_nats(logits, ids)
            del logits
            activations = max(
                activations, trace.live - gradients
            )  # the first pass also brings the ids
            nats.backward()  # type: ignore[no-untyped-call]
            del nats
        if not per_layer:
            norm = total_norm(gradient_norms(model.parameters()))
            nn.utils.clip_grads_with_norm_(
                model.parameters(), config.training.max_grad_norm or 1.0, norm
            )
        if optimizer is not None and not per_layer:
            optimizer.step()
    model.zero_grad(set_to_none=True)
    return trace, activations


def trace_evaluation(model: PreTrainedModel, config: RunConfig) -> Trace:
    """Trace one batch of the validation loss."""
    rows = min(
        config.training.evaluation_batch_size,
        -(-config.data.validation_tokens // config.data.max_length),
    )
    ids = torch.zeros(rows, config.data.max_length, dtype=torch.int64)
    model.eval()
    trace = Trace(model.state_dict().values())
    with trace, torch.no_grad():
        with autocast(config):
            logits = model(input_ids=ids).logits
        summed_nats(logits, ids)
    return trace


def autocast(config: RunConfig) -> AbstractContextManager[Any]:
    """Return the context manager for the precision of a forward pass."""
    return torch.autocast(
        "cpu", torch.bfloat16, enabled=config.training.precision == "bfloat16_autocast"
    )


class Trace(TorchDispatchMode):
    """Count the memory and the floating-point operations of what runs inside this context.

    ``live`` and ``peak`` are bytes of storages allocated inside it, ``flops`` those of its matrix
    products. ``resident`` is the peak as a CPU process sees it: freed small blocks stay resident,
    with their slack. ``held`` are tensors from before; views of them are not counted as new.
    """

    def __init__(self, held: Iterable[Tensor]) -> None:
        super().__init__()
        self.live = self.peak = self.resident = self.flops = self._small = self._kept = 0
        self._held = [tensor.untyped_storage() for tensor in held]
        self._known: dict[int, weakref.ref[torch.UntypedStorage] | None] = {
            id(storage): None for storage in self._held
        }

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Run one operation and count what it allocates and computes."""
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor):
                self._add(leaf.untyped_storage())
        formula = FORMULAS.get(func._overloadpacket)
        if formula is not None:
            self.flops += formula(*args, **(kwargs or {}), out_val=out)
        return out

    def _add(self, storage: torch.UntypedStorage) -> None:
        if (
            id(storage) not in self._known
        ):  # a storage keeps its Python object for as long as it lives
            size = storage.nbytes()
            self._known[id(storage)] = weakref.ref(storage, partial(self._drop, id(storage), size))
            self._count(size)
            self.peak = max(self.peak, self.live)
            self._kept = max(self._kept, round((1.0 + SLACK) * self._small))
            self.resident = max(self.resident, self.live - self._small + self._kept)

    def _drop(self, key: int, size: int, _: object) -> None:
        self._count(-size)
        del self._known[key]

    def _count(self, size: int) -> None:
        self.live += size
        self._small += size if abs(size) <= LARGEST_KEPT else 0


def _attention(q: Tensor, k: Tensor, v: Tensor, *_: Any, **__: Any) -> int:
    return int(sdpa_flop_count(q.shape, k.shape, v.shape))


def _attention_backward(grad: Tensor, q: Tensor, k: Tensor, v: Tensor, *_: Any, **__: Any) -> int:
    return int(sdpa_backward_flop_count(grad.shape, q.shape, k.shape, v.shape))


FORMULAS: Mapping[
    Any, Callable[..., int]
] = {  # PyTorch's own, and the CPU's attention, which is missing there
    **flop_registry,
    aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
}


def file_bytes(state: Mapping[str, Tensor]) -> int:
    """Return the size of a safetensors file of ``state``.

    The file holds eight bytes, a JSON header padded to a multiple of eight, and the data.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    order, end = list(STORED), 0
    for name, tensor in sorted(
        state.items(), key=lambda item: (order.index(item[1].dtype), item[0])
    ):
        begin, end = end, end + tensor.numel() * tensor.element_size()
        header[name] = {
            "dtype": STORED[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [begin, end],
        }
    text = len(json.dumps(header, separators=(",", ":")))
    return 8 + -(-text // 8) * 8 + end
