"""The contract of a training method.

A method is one file in this folder with a class ``METHOD``. It may change the model (architecture
and adapter families), the optimizer (optimizer family), what happens after an update (merges,
resets) and the learning-rate factor; everything else is the same for all methods. Nothing outside a
method's file asks for its name.

Guarantees that the conformance suite (``tests/methods``) holds every registered method to:

* one seed gives one model, bit for bit, and whatever parameters two methods have in common start
  equal;
* the state of method and optimizer consists of tensors and plain values and loads with
  ``weights_only=True``;
* save, stop and resume is bit-identical to running on;
* ``dense`` gives weights that reproduce the model's logits, or is None;
* a method that has nothing to act on raises instead of training something else.
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
    """Base of all methods: AdamW on a plain LLaMA; a method overrides what it changes.

    Class attributes: ``family``; ``title`` for people; ``summary`` in one sentence; ``source``
    (paper); ``Settings``, the validated settings with defaults; ``custom_architecture``, whether
    the model is more than a plain LLaMA; ``has_dense``, whether each target layer equals a dense
    one.
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
        """Factor from the configured to the effective learning rate, as the GaLore scale factor."""
        return 1.0

    def attach(self, model: nn.Module) -> None:
        """Replace or wrap the target layers of ``model`` (a ``LlamaModel``), in place; may run on
        the meta device.

        Only for ``custom_architecture`` methods. New modules implement
        ``reset_parameters(draw: Callable[[str], Generator] | None = None)``: with ``draw``,
        parameter ``p`` is drawn from ``draw(p)``; without it, from the global generator, with
        ``torch.nn.init`` functions alone.
        """

    def optimizer(self, model: nn.Module, training: Training) -> torch.optim.Optimizer:
        """The optimizer over the trained parameters of ``model`` (the whole causal language model).

        By ``state_bits`` 8 in its groups an optimizer says that it heeds ``training.state_bits``;
        any other is refused there.
        """
        groups = parameter_groups(model, training)
        if not groups:
            raise LowrankError(f"{self.name}: no parameter is trained")
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
        """Bytes of the tensors that ``optimizer`` will hold after its first step, from shapes
        alone; nothing is computed.

        None, the default, where the step itself can be traced on tensors without data, as that of
        PyTorch's optimizers can: then ``lowrank estimate`` does that. An optimizer that looks at
        values (a decomposition, an ``if`` on a norm) counts here.
        """
        return None

    def lr_factor(self, update: int, training: Training) -> float:
        """Factor of the learning rate at ``update`` = 1, 2, …"""
        return schedule.cosine(
            update - training.schedule_lag, training.steps, training.warmup, training.min_lr_ratio
        )

    def after_update(
        self, update: int, model: nn.Module, optimizer: torch.optim.Optimizer, draw: Draw
    ) -> None:
        """Called after update ``update`` and after its checkpoint, if one is due; merges and resets
        happen here.

        Random choices come from ``draw`` with a label that holds the update, so that all processes
        agree and a resumed run repeats them.
        """

    def dense(self, model: nn.Module) -> dict[str, Tensor] | None:
        """{module path of the target layer: effective dense W (out, in)}, or None where no dense
        equivalent exists.

        Under ``fully_shard`` every process has to call, and gets whole weights.
        """
        return {
            path: full_tensor(module.weight.detach())
            for path, module in targets(model)
            if isinstance(module, nn.Linear)
        }

    def factors(self, model: nn.Module) -> dict[str, Tensor]:
        """{parameter path: factor} of the target layers as trained; the dense weights where there
        are no factors.
        """
        matrices = (
            (f"{path}.{name}", p)
            for path, module in targets(model)
            for name, p in module.named_parameters()
        )
        return {name: p.detach() for name, p in matrices if p.dim() == 2}

    def low_rank_parts(self, model: nn.Module) -> dict[str, tuple[Tensor, Tensor, Tensor]]:
        """{module path of the target layer: (base, B, A)} where W = base + B·A, base (out, in), B
        (out, r), A (r, in).

        ΔW is then taken of the parts, in more digits than two dense sums have; where two
        checkpoints have the same base, bit for bit, it is a difference of products, of rank 2r at
        most. Empty, the default, where W is one matrix.
        """
        return {}

    def state_dict(self) -> dict[str, Any]:
        """State of the method itself beyond model and optimizer: tensors and plain values."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore :meth:`state_dict`."""


def build_optimizer(method: Method, model: nn.Module, training: Training) -> torch.optim.Optimizer:
    """``method.optimizer(model, training)``. Raises :class:`ConfigError` where it would ignore a
    setting of ``training``.
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
    """The trained parameters as groups of an optimizer, the target layers' and all others with a
    learning rate of their own.
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
    """The method ``name`` with ``settings`` (JSON values, as stored with a run or a model)."""
    from lowrank import methods

    cls = methods.get(name)
    return cls(cls.Settings.model_validate_json(_dumps(settings)))


def _dumps(value: Any) -> str:
    import json

    return json.dumps(value)


class ProjectionSettings(Config):
    """Settings of a method whose moments live in gradient subspaces."""

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
    """A method of the optimizer family: a plain LLaMA whose target matrices are trained by a
    :class:`ProjectedAdamW`.
    """

    family = "optimizer"
    Settings: ClassVar[type[Config]] = ProjectionSettings
    optimizer_class: ClassVar[type[ProjectedAdamW]]

    @property
    def update_scale(self) -> float:
        """What every update within the subspace is multiplied by."""
        return float(getattr(self.settings, self.optimizer_class.scale_key))

    def optimizer_state_bytes(self, optimizer: Optimizer) -> int | None:
        """Counted from shapes: a decomposition needs values."""
        return optimizer.planned_state_bytes() if isinstance(optimizer, ProjectedAdamW) else None

    def optimizer(self, model: nn.Module, training: Training) -> Optimizer:
        """Target matrices projected; embeddings, norms, head and biases plain. Raises where nothing
        would be projected.
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
