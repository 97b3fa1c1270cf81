"""The contract of a training method.

A method is one file in this folder with a class ``METHOD``. It may change the model (architecture
and adapter families), the optimizer (optimizer family), what happens after an update (merges,
resets) and the learning-rate factor; everything else is the same for all methods. No code outside a
method's file depends on its name.

The conformance suite (``tests/methods``) checks these guarantees for every registered method:

* one seed gives one model, bit for bit, and parameters that two methods have in common start
  equal;
* the state of method and optimizer consists of tensors and plain values and loads with
  ``weights_only=True``;
* saving, stopping and resuming is bit-identical to continuing;
* ``dense`` gives weights that reproduce the model's logits, or is None;
* a method that finds no layer to act on raises an error instead of training something else.
"""

# ruff: noqa: B027 (hooks that do nothing by default are the contract)

from __future__ import annotations

from abc import ABC
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field, PositiveInt
from torch import Tensor, nn
from torch.optim import Optimizer

from lowrank import schedule
from lowrank.errors import ConfigError, LowrankError
from lowrank.layers import (
    TARGETS as TARGETS,
)
from lowrank.layers import (
    Draw as Draw,
)
from lowrank.layers import (
    plain_path as plain_path,
)
from lowrank.layers import (
    targets as targets,
)
from lowrank.optim import projection
from lowrank.optim.adamw8bit import AdamW8bit
from lowrank.optim.projected import ProjectedAdamW
from lowrank.optim.sharding import full_tensor
from lowrank.settings import Config, Training

Family = Literal["baseline", "optimizer", "architecture", "adapter"]
RANK = "rank of the treated matrices; a study file without it takes that of the scale"
PROJ_TYPE = (
    "side of the gradient that is compressed: std the shorter, reverse_std the longer; "
    "right, left: always these singular vectors; full: both sides"
)


class Method(ABC):
    """The base class of all methods: AdamW on a plain LLaMA.

    A subclass overrides what it changes. Class attributes: ``family``; ``title``, the readable
    name; ``summary``, one sentence; ``source``, the paper; ``Settings``, the validated settings
    with defaults; ``custom_architecture``, True if the model is not a plain LLaMA; ``has_dense``,
    True if each target layer is equivalent to a dense one.
    """

    family: ClassVar[Family]
    title: ClassVar[str]
    summary: ClassVar[str]
    source: ClassVar[str]
    Settings: ClassVar[type[Config]] = Config
    custom_architecture: ClassVar[bool] = False
    has_dense: ClassVar[bool] = True

    def __init__(self, settings: Config) -> None:
        self.settings: Any = settings

    @property
    def name(self) -> str:
        """The stem of the file that defines the method."""
        return type(self).__module__.rpartition(".")[2]

    @property
    def update_scale(self) -> float:
        """The factor from the configured to the effective learning rate (GaLore scale factor)."""
        return 1.0

    def attach(self, model: nn.Module) -> None:
        """Replace or wrap the target layers of ``model`` (a ``LlamaModel``) in place.

        Only methods with ``custom_architecture`` implement it; it may run on the meta device. New
        modules implement
        ``reset_parameters(draw: Callable[[str], Generator] | None = None)``: with ``draw``,
        parameter ``p`` is drawn from ``draw(p)``; without it, from the global generator, with
        ``torch.nn.init`` functions alone.
        """

    def optimizer(self, model: nn.Module, training: Training) -> torch.optim.Optimizer:
        """Return the optimizer of the trained parameters of ``model``, a causal language model.

        An optimizer that supports ``training.state_bits`` 8 has ``state_bits`` 8 in its groups;
        :func:`build_optimizer` rejects any other. Raises :class:`LowrankError` if no parameter is
        trained.
        """
        groups = parameter_groups(model, training)
        if not groups:
            raise LowrankError(
                f"{self.name}: no parameter is trained; let attach leave some with requires_grad"
            )
        if training.state_bits == 8:
            return AdamW8bit(
                groups,
                lr=training.learning_rate,
                betas=training.betas,
                eps=training.eps,
                weight_decay=training.weight_decay,
            )
        # Fused AdamW exists for CPU and CUDA and is the fastest of PyTorch's variants on both.
        return torch.optim.AdamW(
            groups,
            lr=training.learning_rate,
            betas=training.betas,
            eps=training.eps,
            weight_decay=training.weight_decay,
            fused=True,
        )

    def optimizer_state_bytes(self, optimizer: torch.optim.Optimizer) -> int | None:
        """Return the bytes of optimizer state after the first step, computed from shapes alone.

        None, the default, means that ``lowrank estimate`` traces a step on tensors without data,
        which works for PyTorch's optimizers. Override it for an optimizer whose step depends on
        values (a decomposition, an ``if`` on a norm).
        """
        return None

    def lr_factor(self, update: int, training: Training) -> float:
        """Return the factor of the learning rate at ``update`` = 1, 2, …"""
        return schedule.cosine(
            update - training.schedule_lag, training.steps, training.warmup, training.min_lr_ratio
        )

    def after_update(
        self, update: int, model: nn.Module, optimizer: torch.optim.Optimizer, draw: Draw
    ) -> None:
        """Merge or reset after update ``update``, and after its checkpoint if one is due.

        Draw random numbers from ``draw`` with a label that contains the update, so that all
        processes agree and a resumed run repeats them.
        """

    def dense(self, model: nn.Module) -> dict[str, Tensor] | None:
        """Return the effective dense W (out, in) of each target layer by module path.

        None if there is no dense equivalent. Under ``fully_shard`` every process must call this,
        and each gets full weights.
        """
        return {
            path: full_tensor(module.weight.detach())
            for path, module in targets(model)
            if isinstance(module, nn.Linear)
        }

    def factors(self, model: nn.Module) -> dict[str, Tensor]:
        """Return the trained factors of the target layers by parameter path.

        Layers without factors contribute their dense weights.
        """
        matrices = (
            (f"{path}.{name}", p)
            for path, module in targets(model)
            for name, p in module.named_parameters()
        )
        return {name: p.detach() for name, p in matrices if p.dim() == 2}

    def low_rank_parts(self, model: nn.Module) -> dict[str, tuple[Tensor, Tensor, Tensor]]:
        """Return (base, B, A) of each target layer by module path, where W = base + B·A.

        The shapes are base (out, in), B (out, r) and A (r, in). ΔW is then computed from the parts,
        more precisely than from two dense sums; if two checkpoints have the same base, bit for bit,
        it is a difference of products, of rank 2r at most. The default is empty: W is one matrix.
        """
        return {}

    def state_dict(self) -> dict[str, Any]:
        """Return the method's state besides model and optimizer: tensors and plain values."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore :meth:`state_dict`."""


def build_optimizer(method: Method, model: nn.Module, training: Training) -> torch.optim.Optimizer:
    """Return ``method.optimizer(model, training)``.

    Raises :class:`ConfigError` if the optimizer would ignore a setting of ``training``.
    """
    optimizer = method.optimizer(model, training)
    groups, whose = (
        optimizer.param_groups,
        f"the optimizer of method '{method.name}' ({type(optimizer).__name__})",
    )
    if any(group.get("state_bits", 32) != training.state_bits for group in groups):
        raise ConfigError(
            f"training.state_bits is {training.state_bits} and {whose} has no such states; use 32"
        )
    other = training.untargeted_learning_rate
    if other is not None and all(group["lr"] != other for group in groups):
        raise ConfigError(
            f"training.untargeted_learning_rate is {other} and {whose} gives all parameters one rate; drop it"
        )
    return optimizer


def parameter_groups(model: nn.Module, training: Training) -> list[dict[str, Any]]:
    """Return the trained parameters as groups of an optimizer; no group if none is trained.

    With ``training.untargeted_learning_rate`` the parameters of target layers are one group, and
    all others are a second one with that learning rate.
    """
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    other = training.untargeted_learning_rate
    if other is None or not trained:
        return [{"params": list(trained.values())}] if trained else []
    inside = tuple(f"{path}." for path, _ in targets(model))
    return [
        {"params": [p for name, p in trained.items() if name.startswith(inside)]},
        {"params": [p for name, p in trained.items() if not name.startswith(inside)], "lr": other},
    ]


def create(name: str, settings: dict[str, Any]) -> Method:
    """Return the method ``name`` with ``settings`` (JSON values, as stored with a run or model).

    Raises :class:`UnknownNameError` for an unknown name and :class:`pydantic.ValidationError` for
    settings that are not valid.
    """
    from lowrank import methods

    cls = methods.get(name)
    return cls(cls.Settings.model_validate_json(_dumps(settings)))


def _dumps(value: Any) -> str:
    import json

    return json.dumps(value)


class ProjectionSettings(Config):
    """Settings of a method that keeps the moments in gradient subspaces."""

    rank: PositiveInt = Field(description=RANK)
    update_proj_gap: PositiveInt = Field(
        200, description="updates between two decompositions of a gradient"
    )
    proj_type: projection.ProjType = Field("std", description=PROJ_TYPE)
    svd: projection.Svd = Field(
        "exact",
        description="exact: singular vectors in float64; fast: nearly the same space in half the time",
    )


class ProjectedMethod(Method):
    """The base class of methods that train the target matrices of a plain LLaMA by a
    :class:`ProjectedAdamW`.
    """

    family = "optimizer"
    Settings: ClassVar[type[Config]] = ProjectionSettings
    optimizer_class: ClassVar[type[ProjectedAdamW]]

    @property
    def update_scale(self) -> float:
        """The factor of every update within the subspace."""
        return float(getattr(self.settings, self.optimizer_class.scale_key))

    def optimizer_state_bytes(self, optimizer: Optimizer) -> int | None:
        """Return the bytes from shapes: a decomposition cannot be traced without values."""
        return optimizer.planned_state_bytes() if isinstance(optimizer, ProjectedAdamW) else None

    def optimizer(self, model: nn.Module, training: Training) -> Optimizer:
        """Return the optimizer that projects target matrices, and nothing else.

        Embeddings, norms, head and biases are trained by plain AdamW. Raises :class:`LowrankError`
        if the model has no target layer.
        """
        matrices = {
            f"{path}.weight" for path, module in targets(model) if isinstance(module, nn.Linear)
        }
        named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
        projected = [(name, p) for name, p in named if name in matrices]
        if not projected:
            raise LowrankError(f"{self.name}: the model has no target layer to project")
        plain = [(name, p) for name, p in named if name not in matrices]
        rate = training.untargeted_learning_rate or training.learning_rate
        groups = [{"params": plain, "lr": rate}] if plain else []
        return self.optimizer_class(
            [*groups, {"params": projected, **self.settings.model_dump()}],
            lr=training.learning_rate,
            betas=training.betas,
            eps=training.eps,
            weight_decay=training.weight_decay,
            state_bits=training.state_bits,
        )
