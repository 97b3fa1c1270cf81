"""Target layers of a LLaMA, and the base of layers with two factors that replace them.

W is (out, in), its factors are B (out, rank) and A (rank, in).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from lowrank.errors import ConfigError, LowrankError
from lowrank.optim.sharding import like

Draw = Callable[[str], torch.Generator]
"""A function of a name (a parameter's full name, or any label) that returns a new CPU generator,
seeded by the run's seed and this name.
"""
TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
"""The seven linear layers of every block that low-rank methods treat."""


class FactoredLinear(nn.Module, ABC):
    """Base of linear layers from x (…, in) to (…, out) with two factors.

    Parameters: ``A`` (rank, in), ``B`` (out, rank) and, with ``bias``, ``bias`` (out,). They are
    allocated here; a subclass draws them in :meth:`reset_parameters`. Raises :class:`ConfigError`
    for a rank that does not fit the layer.
    """

    draws_own_parameters = True

    def __init__(self, in_features: int, out_features: int, rank: int, bias: bool = False) -> None:
        super().__init__()
        largest = min(in_features, out_features)
        if not 1 <= rank <= largest:
            raise ConfigError(
                f"rank {rank} does not fit a layer of shape ({out_features}, {in_features}); choose 1 to {largest}"
            )
        self.in_features, self.out_features, self.rank = in_features, out_features, rank
        self.A = nn.Parameter(torch.empty(rank, in_features))
        self.B = nn.Parameter(torch.empty(out_features, rank))
        if bias:
            self.bias: nn.Parameter | None = nn.Parameter(torch.empty(out_features))
        else:
            self.register_parameter("bias", None)

    @abstractmethod
    def reset_parameters(self, draw: Draw | None = None) -> None:
        """Draw every parameter: parameter p from ``draw(p)``, or all from the global generator."""

    def reset_bias(self) -> None:
        """Set the bias to zero, where there is one."""
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def extra_repr(self) -> str:
        """Describe shape and rank."""
        return f"in_features={self.in_features}, out_features={self.out_features}, rank={self.rank}, bias={self.bias is not None}"


@torch.no_grad()
def fill(
    parameter: Tensor, initialise: Callable[..., object], draw: Draw | None, label: str
) -> None:
    """Initialise ``parameter`` in place.

    ``initialise`` is a function of ``torch.nn.init`` with its arguments bound; it is called as
    ``initialise(tensor, generator=…)``. With ``draw`` the numbers are drawn in float32 on the CPU
    by ``draw(label)``, so that device, precision and the order of the calls change nothing; on the
    meta device nothing is drawn. Without ``draw`` the parameter is filled where it is; Transformers
    relies on that to leave loaded parameters alone.
    """
    if draw is None:
        initialise(parameter, generator=None)
    elif parameter.device.type != "meta":
        numbers = torch.empty(parameter.shape, dtype=torch.float32)
        initialise(numbers, generator=draw(label))
        parameter.copy_(like(numbers, parameter))


def kaiming(tensor: Tensor, generator: torch.Generator | None) -> None:
    """Fill ``tensor`` (out, in) uniformly in ±1/√in, which is Kaiming-uniform with a = √5."""
    nn.init.kaiming_uniform_(tensor, a=math.sqrt(5.0), generator=generator)


def replace_targets(model: nn.Module, make: Callable[[nn.Linear], nn.Module]) -> None:
    """Replace every target layer of ``model`` by ``make(linear)``, in place.

    Raises :class:`LowrankError` where the model has no target layer.
    """
    found = [(path, module) for path, module in targets(model) if isinstance(module, nn.Linear)]
    if not found:
        raise LowrankError(
            "the model has no target layer to adapt (q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj)"
        )
    for path, linear in found:
        model.set_submodule(path, make(linear))


def plain_path(path: str) -> str:
    """Return ``path`` without the parts that DistributedDataParallel and ``torch.compile`` add.

    Draws are keyed by such paths, so that a wrapped model draws the same numbers.
    """
    return path.replace("_orig_mod.", "").removeprefix("module.")


def targets(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield (path, module) of the target layers (:data:`TARGETS`) in the order of the model."""
    for path, module in model.named_modules():
        if path.rpartition(".")[2] in TARGETS:
            yield path, module
