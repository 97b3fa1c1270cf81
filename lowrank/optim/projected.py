"""AdamW with moments in a gradient subspace: what GaLore and Fira share.

The state of a parameter is Adam's (``lowrank/optim/adam.py``) and, where projected, ``basis``
(and ``basis_2`` for two-sided projections): tensors and plain values, so that it loads with
``weights_only=True``.
"""

from __future__ import annotations

from abc import abstractmethod
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer

from lowrank.errors import ConfigError, DivergedError
from lowrank.optim import adam, projection, sharding
from lowrank.optim.adamw8bit import refuse_shards
from lowrank.optim.quantisation import check_bits, moment_bytes
from lowrank.optim.sharding import local, whole

Group = dict[str, Any]
State = dict[str, Any]
THEIR_KEYS = {"scaling_grad": "residual_norm"}  # of fira's state


@dataclass(frozen=True)
class Move:
    """One update of one projected matrix, in the coordinates of its subspace."""

    R: Tensor  # projected gradient
    N: Tensor  # Adam's direction m / (√v + eps), of the same shape
    bases: projection.Bases
    kind: str  # right | left | full
    step_size: float  # learning rate with Adam's bias correction
    state: State
    group: Group


class ProjectedAdamW(adam.KeepsCodecs, Optimizer):
    """AdamW whose groups with a ``rank`` keep their moments in the leading singular subspace of the
    gradient.

    Without projection, update t of W with gradient G is m = β₁ m + (1-β₁) G, v = β₂ v + (1-β₂) G²,
    W -= lr · √(1-β₂ᵗ)/(1-β₁ᵗ) · m/(√v + eps), then W -= lr · weight_decay · W. (``eps`` meets the
    uncorrected √v, in which this differs from ``torch.optim.AdamW``.) Subclasses say how a
    projected matrix moves.

    Keys of a projected group: ``rank``, ``update_proj_gap`` (updates between decompositions, 200),
    ``proj_type`` (``std``), ``svd`` and the subclass's ``scale_key``. Any group may have
    ``state_bits`` 8: moments of 4096 entries and more are then quantised in blocks between updates;
    bases and smaller moments are not. Parameters may be given with names, as PyTorch's optimizers
    take them; errors then name the parameter.
    """

    scale_key: str
    scalars: ClassVar[int] = 0  # tensors of a single number in the state of a projected matrix
    proj_types: tuple[str, ...] = projection.PROJ_TYPES

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 0.0,
        correct_bias: bool = True,
        *,
        svd: projection.Svd = "exact",
        state_bits: int = 32,
    ) -> None:
        _require(lr >= 0.0, f"lr is {lr}; it must be at least 0")
        _require(
            all(0.0 <= beta < 1.0 for beta in betas), f"betas are {betas}; each must lie in [0, 1)"
        )
        _require(eps >= 0.0, f"eps is {eps}; it must be at least 0")
        _require(weight_decay >= 0.0, f"weight_decay is {weight_decay}; it must be at least 0")
        check_bits(state_bits)
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "correct_bias": correct_bias,
        }
        super().__init__(params, {**defaults, "svd": svd, "state_bits": state_bits})

    def add_param_group(self, param_group: Group) -> None:
        """Add a group; one with a ``rank`` is projected. Raises :class:`ConfigError` for a rank
        that does not fit.
        """
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        _require(
            group["svd"] in projection.SVDS,
            f"svd is '{group['svd']}'; choose one of {', '.join(projection.SVDS)}",
        )
        check_bits(group["state_bits"])
        if group["state_bits"] == 8:
            refuse_shards(group["params"])
        if "rank" not in group:
            return
        for key, default in (("update_proj_gap", 200), (self.scale_key, 1.0), ("proj_type", "std")):
            group.setdefault(key, default)
        known, proj_type = self.proj_types, group["proj_type"]
        _require(
            proj_type in known, f"proj_type is '{proj_type}'; choose one of {', '.join(known)}"
        )
        _require(
            group["update_proj_gap"] >= 1,
            f"update_proj_gap is {group['update_proj_gap']}; it must be at least 1",
        )
        for index, parameter in enumerate(group["params"]):
            projection.check_rank(_name(group, index), parameter.shape, group["rank"])
            sharding.check_layout(_name(group, index), parameter)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One update of every parameter that has a gradient; the closure's value,
        if one is given.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self._check_gradients()
        for group in self.param_groups:
            present = [p for p in group["params"] if p.grad is not None]
            if "rank" in group:
                for p in present:
                    self._projected_step(p, group)
            elif present:
                self._plain_step(present, group)
        return loss

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore a state; every tensor moves to its parameter's device and shards and keeps its
        own dtype.

        States of ``galore_torch`` and ``fira`` are taken, too: their bases are kept until the next
        refresh.
        """
        state_dict = _own_layout(state_dict, self.param_groups)
        super().load_state_dict(
            state_dict
        )  # would cast bases and moments to the parameter's dtype: put them back
        ids = [i for group in state_dict["param_groups"] for i in group["params"]]
        owners = [(p, _kind(p, group)) for group in self.param_groups for p in group["params"]]
        for i, (p, kind) in zip(ids, owners, strict=True):
            for key, value in state_dict["state"].get(i, {}).items():
                if torch.is_tensor(value):
                    self.state[p][key] = sharding.fit(value, key, kind, p)

    def full_state_dict(self) -> dict[str, Any]:
        """:meth:`state_dict` with every tensor whole, for any number of processes to load; under
        FSDP all have to call.
        """
        found = super().state_dict()
        states = {
            i: {key: _whole_value(value) for key, value in state.items()}
            for i, state in found["state"].items()
        }
        return {**found, "state": states}

    def planned_state_bytes(self) -> int:
        """Bytes of the state's tensors once every parameter has been updated, from shapes alone."""
        total = 0
        for group in self.param_groups:
            for p in group["params"]:
                bases, moment = 0, p.numel()
                if "rank" in group:
                    bases, moment = projection.state_elements(
                        p.shape, group["rank"], group["proj_type"]
                    )
                    bases += self.scalars
                total += bases * p.element_size() + 2 * moment_bytes(
                    moment, p.element_size(), group["state_bits"]
                )
        return total

    @abstractmethod
    def _move(self, p: Tensor, G: Tensor, move: Move) -> None:
        """Move the matrix ``p`` (m, n) with gradient ``G``; decay follows."""

    def _check_gradients(self) -> None:
        """Raise before anything moves if a gradient that is about to be decomposed
        is not finite.
        """
        for group in self.param_groups:
            for index, p in enumerate(group["params"] if "rank" in group else ()):
                if (
                    p.grad is not None
                    and _due(self.state[p], group)
                    and not torch.isfinite(whole(p.grad)).all()
                ):
                    update = self.state[p].get("step", 0) + 1
                    raise DivergedError(
                        f"the gradient of {_name(group, index)} is not finite at update {update}, where its subspace is due; "
                        "lower the learning rate or clip the gradient",
                        update,
                        None,
                    )

    def _projected_step(self, p: Tensor, group: Group) -> None:
        state, kind = self.state[p], projection.kind_of(p.shape, group["proj_type"])
        assert p.grad is not None
        G = (
            p.grad.to(state["basis"].dtype) if "basis" in state else p.grad
        )  # a loaded state keeps its precision
        if _due(state, group):
            bases = projection.decompose(whole(G), group["rank"], group["proj_type"], group["svd"])
            _set_bases(state, sharding.spread(bases, kind, p))
        bases = _bases(state)
        R = sharding.settle(projection.project(G, bases, kind), kind, p)
        adam.advance(state, R, group)
        if adam.is_quantised(state):
            N = adam.quantised_direction(R, state, group, self.codecs(R.device))
        else:
            N = adam.direction(R, state, group)
        step_size = adam.step_size(state["step"], group)
        self._move(p, G, Move(R, N, bases, kind, step_size, state, group))
        _decay([p], group)

    def _plain_step(self, parameters: list[Tensor], group: Group) -> None:
        together: dict[tuple[int, torch.device], list[Tensor]] = defaultdict(list)
        for p in parameters:
            assert p.grad is not None
            if p.grad.is_sparse:
                raise ConfigError(
                    "sparse gradients are not supported; use dense ones (nn.Embedding(sparse=False))"
                )
            state = self.state[p]
            adam.advance(state, p.grad, group)
            step_size = adam.step_size(state["step"], group)
            if adam.is_quantised(state):
                adam.quantised_update(p, p.grad, state, group, self.codecs(p.device), step_size)
            elif (
                p.dtype == p.grad.dtype and local(p).is_contiguous() and adam.fusable(p.grad, state)
            ):
                together[state["step"], p.device].append(p)
            else:
                p.add_(adam.direction(p.grad, state, group), alpha=-step_size)
        for (step, _), some in together.items():
            gradients = [p.grad for p in some if p.grad is not None]
            adam.fused(
                some, gradients, [self.state[p] for p in some], group, adam.step_size(step, group)
            )
        _decay(parameters, group)


def _own_layout(state_dict: dict[str, Any], groups: list[Group]) -> dict[str, Any]:
    """``state_dict`` with the bases taken out of the projector objects of the authors' packages;
    any other as it is.

    Nothing of theirs is called or imported, and an object without a basis is refused. What their
    groups do not know stays as in ``groups``.
    """
    states: dict[int, State] = {}
    for i, state in state_dict["state"].items():
        states[i] = own = {
            THEIR_KEYS.get(key, key): value for key, value in state.items() if key != "projector"
        }
        if "projector" in state:
            bases = getattr(state["projector"], "ortho_matrix", None)
            found = tuple(bases) if isinstance(bases, list | tuple) else (bases,)
            _require(
                all(torch.is_tensor(basis) for basis in found),
                f"the projector of parameter {i} in this state holds no basis",
            )
            _set_bases(own, found)
    saved = [dict(group) for group in state_dict["param_groups"]]
    for group, ours in zip(saved, groups, strict=False):  # PyTorch tells if their numbers differ
        for key in ours.keys() - {"params", "param_names"}:
            group.setdefault(key, ours[key])
    return {**state_dict, "state": states, "param_groups": saved}


def _decay(parameters: list[Tensor], group: Group) -> None:
    if group["weight_decay"] > 0.0:
        torch._foreach_mul_(
            [local(p) for p in parameters], 1.0 - group["lr"] * group["weight_decay"]
        )


def _kind(p: Tensor, group: Group) -> str | None:
    return projection.kind_of(p.shape, group["proj_type"]) if "rank" in group else None


def _whole_value(value: Any) -> Any:
    return whole(value) if torch.is_tensor(value) else value


def _due(state: State, group: Group) -> bool:
    """Whether the next update of this state recomputes its subspace: the first, then every
    ``update_proj_gap``.
    """
    return "basis" not in state or state["step"] % group["update_proj_gap"] == 0


def _bases(state: State) -> projection.Bases:
    return tuple(state[key] for key in ("basis", "basis_2") if key in state)


def _set_bases(state: State, bases: projection.Bases) -> None:
    state.update(zip(("basis", "basis_2"), bases, strict=False))


def _name(group: Group, index: int) -> str:
    names = group.get("param_names")
    return (
        names[index]
        if names
        else f"projected parameter {index} of shape {tuple(group['params'][index].shape)}"
    )


def _require(condition: bool, sentence: str) -> None:
    if not condition:
        raise ConfigError(sentence)
