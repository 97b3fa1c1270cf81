"""AdamW with moments in a subspace of the gradient: the base of GaLore, Fira and their kin.

A subclass says with :meth:`ProjectedAdamW.move` how a projected matrix moves. Where its basis
differs from GaLore's, it also overrides when the basis is due (:meth:`~ProjectedAdamW.is_due`), how
it is renewed (:meth:`~ProjectedAdamW.renew`) or what is stored of it
(:meth:`~ProjectedAdamW.bases`), each without the others.
"""

from __future__ import annotations

from abc import abstractmethod
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer

from lowrank.errors import ConfigError, DivergedError
from lowrank.optim import adam, projection, sharding
from lowrank.optim.adam import Group
from lowrank.optim.adamw8bit import refuse_shards
from lowrank.optim.foreign import own_layout
from lowrank.optim.quantisation import check_bits, moment_bytes
from lowrank.optim.sharding import full_tensor, local_tensor
from lowrank.optim.state import AdamState, ProjectedState


@dataclass(frozen=True, slots=True)
class ProjectedMatrix:
    """A matrix that is trained in a subspace of its gradient, with all that belongs to it.

    ``state`` is of the optimizer's ``state_class``; a subclass that adds fields reads them from it.
    """

    parameter: Tensor  # W (m, n)
    kind: projection.Kind
    group: Group
    index: int  # among the parameters of the group
    state: Any

    @property
    def name(self) -> str:
        """Return its name where the group has names, else its place and shape."""
        return _name(self.group, self.index)

    @property
    def gradient(self) -> Tensor:
        """Return G (m, n) in the precision of the stored state."""
        G = self.parameter.grad
        assert G is not None
        return G if self.state.dtype is None else G.to(self.state.dtype)


@dataclass(frozen=True, slots=True)
class Move:
    """One update of a projected matrix, in the coordinates of its subspace."""

    R: Tensor  # projected gradient
    N: Tensor  # Adam's direction m / (√v + eps), of the same shape
    bases: projection.Bases
    step_size: float  # learning rate, corrected for Adam's bias


class ProjectedAdamW(adam.KeepsCodecs, Optimizer):
    """AdamW whose groups with a ``rank`` keep their moments in a subspace of the gradient.

    A plain parameter W with gradient G moves at update t by m = β₁ m + (1-β₁) G, v = β₂ v +
    (1-β₂) G², W -= lr · √(1-β₂ᵗ)/(1-β₁ᵗ) · m/(√v + eps), then W -= lr · weight_decay · W. (``eps``
    is added to the uncorrected √v, in which this differs from ``torch.optim.AdamW``.) For a
    projected one Adam runs on R, the gradient in the subspace, and :meth:`move` takes Adam's
    direction back to W.

    Arguments: ``params``, parameters or groups, with or without names; ``lr``, ``betas``, ``eps``,
    ``weight_decay`` as in Adam; ``correct_bias``, whether to correct the bias of the moments;
    ``svd``, ``exact`` or ``fast`` (:func:`lowrank.optim.projection.decompose`); ``state_bits``, 32
    or 8. All of them may stand in a group too.

    Keys of a projected group: ``rank``, ``update_proj_gap`` (updates between two decompositions,
    200), ``proj_type`` (``std``) and the subclass's ``scale_key``. With ``state_bits`` 8 moments of
    4096 entries and more are quantised in blocks between updates, bases and smaller moments not.

    Raises :class:`ConfigError`, naming the parameter, for anything that is not a matrix, a rank
    that does not fit and values out of range.
    """

    scale_key: str
    scalars: ClassVar[int] = 0  # tensors of a single number in the state of a projected matrix
    proj_types: tuple[str, ...] = projection.PROJ_TYPES
    state_class: ClassVar[type[ProjectedState]] = ProjectedState

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
        """Add a group; one with a ``rank`` is projected.

        Raises :class:`ConfigError` for a rank that does not fit or a value out of range.
        """
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        projection.check_svd(group["svd"])
        check_bits(group["state_bits"])
        if group["state_bits"] == 8:
            refuse_shards(group["params"])
        if "rank" not in group:
            return
        for key, default in (("update_proj_gap", 200), (self.scale_key, 1.0), ("proj_type", "std")):
            group.setdefault(key, default)
        projection.check_proj_type(group["proj_type"], self.proj_types)
        _require(
            group["update_proj_gap"] >= 1,
            f"update_proj_gap is {group['update_proj_gap']}; it must be at least 1",
        )
        for index, parameter in enumerate(group["params"]):
            projection.check_rank(_name(group, index), parameter.shape, group["rank"])
            sharding.check_layout(_name(group, index), parameter)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update every parameter that has a gradient; return the value of ``closure``, if given.

        Raises :class:`DivergedError` before anything moves where a gradient that is about to be
        decomposed is not finite.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self._check_gradients()
        for group in self.param_groups:
            if "rank" in group:
                for matrix in self._matrices(group):
                    self.projected_step(matrix)
            else:
                self._plain_step([p for p in group["params"] if p.grad is not None], group)
        return loss

    def is_due(self, matrix: ProjectedMatrix) -> bool:
        """Tell whether the next update of ``matrix`` renews its basis.

        By default the first does, then every ``update_proj_gap`` updates (GaLore, algorithm 2).
        """
        state: ProjectedState = matrix.state
        return not state.bases or state.step % matrix.group["update_proj_gap"] == 0

    def renew(self, matrix: ProjectedMatrix, G: Tensor) -> None:
        """Compute the basis of ``matrix`` anew and store it; the moments stay as they are.

        By default it is formed by the leading singular vectors of ``G`` (m, n), the gradient in the
        precision of the state. An override may also transform the moments, which exist from the
        second renewal on.
        """
        group = matrix.group
        bases = projection.decompose(
            full_tensor(G), group["rank"], group["proj_type"], group["svd"]
        )
        matrix.state.bases = sharding.distribute(bases, matrix.kind, matrix.parameter)

    def bases(self, matrix: ProjectedMatrix) -> projection.Bases:
        """Return the bases that project ``matrix`` at this update; by default the stored ones.

        An override may decode them from a smaller form, or draw them again.
        """
        bases: projection.Bases = matrix.state.bases
        return bases

    @abstractmethod
    def move(self, matrix: ProjectedMatrix, G: Tensor, move: Move) -> None:
        """Move the matrix (m, n) by one update, in place; weight decay follows.

        ``G`` is its gradient in the precision of the state.
        """

    def projected_step(self, matrix: ProjectedMatrix) -> None:
        """Make one update of ``matrix``: basis, projection, Adam, move and decay."""
        G, state, group = matrix.gradient, matrix.state, matrix.group
        if self.is_due(matrix):
            self.renew(matrix, G)
        bases = self.bases(matrix)
        R = projection.project(G, bases, matrix.kind)
        R = sharding.reduce_scatter(R, matrix.kind, matrix.parameter)
        adam.advance(state, R, group)
        if state.is_quantised:
            N = adam.quantised_direction(R, state, group, self.codecs(R.device))
        else:
            N = adam.direction(R, state, group)
        self.move(matrix, G, Move(R, N, bases, adam.step_size(state.step, group)))
        decay([matrix.parameter], group)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore a state. Every tensor moves to its parameter's device and shards; dtypes stay.

        States of ``galore_torch`` and ``fira`` are accepted too: their bases are kept until the
        next refresh. Raises :class:`ConfigError` for one of these without a basis.
        """
        state_dict = own_layout(state_dict, self.param_groups)
        super().load_state_dict(state_dict)
        # That casts bases and moments to the parameter's dtype, so the saved ones are put back.
        ids = [i for group in state_dict["param_groups"] for i in group["params"]]
        owners = [(p, _kind(p, group)) for group in self.param_groups for p in group["params"]]
        for i, (p, kind) in zip(ids, owners, strict=True):
            for key, value in state_dict["state"].get(i, {}).items():
                if torch.is_tensor(value):
                    layout = self.state_class.layout(key)
                    self.state[p][key] = sharding.reshard(value, layout, kind, p)

    def full_state_dict(self) -> dict[str, Any]:
        """Return :meth:`state_dict` with every tensor whole, to load on any number of processes.

        Under ``fully_shard`` every process has to call this.
        """
        found = super().state_dict()
        states = {
            i: {key: full_tensor(v) if torch.is_tensor(v) else v for key, v in state.items()}
            for i, state in found["state"].items()
        }
        return {**found, "state": states}

    def planned_state_bytes(self) -> int:
        """Return the bytes of the state's tensors once every parameter has been updated.

        They are counted from shapes alone.
        """
        return sum(
            self.planned_bytes(p, group) for group in self.param_groups for p in group["params"]
        )

    def planned_bytes(self, p: Tensor, group: Group) -> int:
        """Return the bytes that the tensors of the state of ``p`` will take."""
        bases, moment = 0, p.numel()
        if "rank" in group:
            bases, moment = projection.state_elements(p.shape, group["rank"], group["proj_type"])
            bases += self.scalars
        size = p.element_size()
        return bases * size + 2 * moment_bytes(moment, size, group["state_bits"])

    def _matrices(self, group: Group) -> Iterator[ProjectedMatrix]:
        """Yield the matrices of a projected group that have a gradient."""
        for index, p in enumerate(group["params"]):
            if p.grad is not None:
                kind = projection.kind_of(p.shape, group["proj_type"])
                yield ProjectedMatrix(p, kind, group, index, self.state_class(self.state[p]))

    def _check_gradients(self) -> None:
        """Raise before anything moves if a gradient that is due for decomposition is not finite."""
        for group in self.param_groups:
            for matrix in self._matrices(group) if "rank" in group else ():
                G = matrix.parameter.grad
                assert G is not None
                if self.is_due(matrix) and not torch.isfinite(full_tensor(G)).all():
                    update = matrix.state.step + 1
                    raise DivergedError(
                        f"the gradient of {matrix.name} is not finite at update {update}, where its subspace is due; "
                        "lower the learning rate or clip the gradient",
                        update,
                        None,
                    )

    def _plain_step(self, parameters: list[Tensor], group: Group) -> None:
        """Update parameters that are not projected, as many as possible in one fused call."""
        together: dict[tuple[int, torch.device], list[Tensor]] = defaultdict(list)
        for p in parameters:
            assert p.grad is not None
            if p.grad.is_sparse:
                raise ConfigError(
                    "sparse gradients are not supported; use dense ones (nn.Embedding(sparse=False))"
                )
            state = AdamState(self.state[p])
            adam.advance(state, p.grad, group)
            step_size = adam.step_size(state.step, group)
            if state.is_quantised:
                adam.quantised_update(p, p.grad, state, group, self.codecs(p.device), step_size)
            elif (
                p.dtype == p.grad.dtype
                and local_tensor(p).is_contiguous()
                and adam.fusable(p.grad, state)
            ):
                together[state.step, p.device].append(p)
            else:
                p.add_(adam.direction(p.grad, state, group), alpha=-step_size)
        for (step, _), some in together.items():
            gradients = [p.grad for p in some if p.grad is not None]
            states = [AdamState(self.state[p]) for p in some]
            adam.fused(some, gradients, states, group, adam.step_size(step, group))
        decay(parameters, group)


def decay(parameters: list[Tensor], group: Group) -> None:
    """Do p -= lr · weight_decay · p for all ``parameters``, in place."""
    if parameters and group["weight_decay"] > 0.0:
        torch._foreach_mul_(
            [local_tensor(p) for p in parameters], 1.0 - group["lr"] * group["weight_decay"]
        )


def _kind(p: Tensor, group: Group) -> str | None:
    return projection.kind_of(p.shape, group["proj_type"]) if "rank" in group else None


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
