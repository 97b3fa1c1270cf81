"""The memory of a run: exact bytes of parameters, gradients and optimizer state, and the measured
peak.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

STATUS = Path("/proc/self/status")
CLEAR = Path("/proc/self/clear_refs")


def tensor_bytes(tensors: Iterable[Tensor]) -> int:
    """Return the bytes of the elements of ``tensors``."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def model_bytes(model: nn.Module, per_layer_updates: bool = False) -> dict[str, int]:
    """Return the run's columns of parameter counts and of bytes of parameters and gradients.

    Buffers count among the bytes of parameters. All gradients exist at once, or only the largest
    with ``per_layer_updates``.
    """
    parameters = list(model.parameters())
    trained = [p for p in parameters if p.requires_grad]
    state = [t for name, t in model.state_dict().items()]
    return {
        "parameters_total": sum(p.numel() for p in parameters),
        "parameters_trainable": sum(p.numel() for p in trained),
        "parameter_bytes": tensor_bytes(state),
        "gradient_bytes": max((tensor_bytes([p]) for p in trained), default=0)
        if per_layer_updates
        else tensor_bytes(trained),
    }


def state_bytes(optimizer: torch.optim.Optimizer) -> int:
    """Return the bytes of all tensors in the optimizer's state: moments, projectors, counters."""
    return tensor_bytes(state_tensors(optimizer))


def state_tensors(optimizer: torch.optim.Optimizer) -> Iterable[Tensor]:
    """Yield every tensor in the optimizer's state."""
    return _tensors(list(optimizer.state.values()))


def _tensors(value: Any) -> Iterable[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        for inner in value.values():
            yield from _tensors(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _tensors(inner)


class PeakMemory:
    """Peak memory since construction: the allocator's on a GPU, else resident memory above that at
    construction.

    Construct it when everything is imported and before the model is built. On a CPU it resets the
    kernel's high-water mark of the process. Memory that earlier work left behind is first returned
    to the kernel, so that a second run does not reuse it unseen. Where the mark cannot be reset
    (not Linux, or a container that forbids it) the peak is unknown, None.
    """

    def __init__(self) -> None:
        self.cuda = torch.cuda.is_available()
        self.start: int | None = None
        gc.collect()
        if self.cuda:
            torch.cuda.reset_peak_memory_stats()
        else:
            return_freed_memory()
            with contextlib.suppress(OSError):
                CLEAR.write_text("5", encoding="ascii")
                self.start = _status_bytes("VmRSS")

    def peak(self) -> int | None:
        """Return the bytes at the peak since construction, None where they are unknown."""
        if self.cuda:
            return torch.cuda.max_memory_allocated()
        mark = _status_bytes("VmHWM")
        return None if mark is None or self.start is None else max(0, mark - self.start)


def return_freed_memory() -> None:
    """Return freed memory that the C library caches to the kernel, where it can (glibc)."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def _status_bytes(field: str) -> int | None:
    try:
        for line in STATUS.read_text(encoding="ascii").splitlines():
            if line.startswith(field + ":"):
                return int(line.split()[1]) * 1024
    except OSError:
        return None
    return None
