"""Typed views of the state that an optimizer stores for a parameter.

PyTorch keeps one dictionary per parameter (``optimizer.state[p]``) and saves it as it is. The
classes here are the only place that knows the keys of these dictionaries: a view reads and writes
the dictionary through typed fields and holds nothing itself. The dictionary contains tensors and
plain values only, so that a saved state loads with ``torch.load(..., weights_only=True)``.

An optimizer with further state subclasses :class:`ProjectedState`, adds a :class:`Field` for each
entry, and names the subclass as its ``state_class``.
"""

from __future__ import annotations

from typing import Any, Generic, Literal, TypeVar, overload

import torch
from torch import Tensor

StoredState = dict[str, Any]
Layout = Literal["moment", "basis", "replicated"]
"""How ``fully_shard`` lays a stored matrix out; :func:`lowrank.optim.sharding.placements` says
where each of them lives.
"""

T = TypeVar("T")


class Field(Generic[T]):
    """Read and write one entry of a stored state under the name of the attribute.

    An entry that is absent reads as ``default``. ``layout`` says how a matrix under this key is
    distributed where its parameter is; numbers and vectors stay on every process.
    """

    def __init__(self, default: T, layout: Layout = "replicated") -> None:
        self.default, self.layout = default, layout

    def __set_name__(self, owner: type, name: str) -> None:
        self.key = name

    @overload
    def __get__(self, view: None, owner: type) -> Field[T]: ...

    @overload
    def __get__(self, view: AdamState, owner: type) -> T: ...

    def __get__(self, view: AdamState | None, owner: type) -> Field[T] | T:
        if view is None:
            return self
        value: T = view.stored.get(self.key, self.default)
        return value

    def __set__(self, view: AdamState, value: T) -> None:
        view.stored[self.key] = value


class Moment:
    """View one of Adam's two moments in a stored state.

    ``values`` has the shape of the (projected) gradient: the moment itself, or uint8 codes where it
    is quantised. ``scales`` (blocks,) is float32 and exists for codes alone.
    """

    __slots__ = ("_stored", "key")

    def __init__(self, stored: StoredState, key: str) -> None:
        self._stored, self.key = stored, key

    @property
    def exists(self) -> bool:
        """Whether the moment has been stored."""
        return self.key in self._stored

    @property
    def values(self) -> Tensor:
        """Return the entries, or their codes."""
        found: Tensor = self._stored[self.key]
        return found

    @values.setter
    def values(self, entries: Tensor) -> None:
        self._stored[self.key] = entries

    @property
    def scales(self) -> Tensor | None:
        """Return the largest magnitude of each block of codes; None where nothing is quantised."""
        return self._stored.get(f"{self.key}_scale")

    @scales.setter
    def scales(self, scales: Tensor) -> None:
        self._stored[f"{self.key}_scale"] = scales


class AdamState:
    """View the stored state of a parameter that Adam trains.

    ``step`` counts the updates made, ``exp_avg`` and ``exp_avg_sq`` are the first and second
    moments. PyTorch's own AdamW stores the same keys, its counter as a tensor.
    """

    __slots__ = ("stored",)

    step = Field(0)

    def __init__(self, stored: StoredState) -> None:
        self.stored = stored

    @property
    def exp_avg(self) -> Moment:
        """Return the first moment."""
        return Moment(self.stored, "exp_avg")

    @property
    def exp_avg_sq(self) -> Moment:
        """Return the second moment."""
        return Moment(self.stored, "exp_avg_sq")

    @property
    def moments(self) -> tuple[Moment, Moment]:
        """Return the first and the second moment."""
        return self.exp_avg, self.exp_avg_sq

    @property
    def has_moments(self) -> bool:
        """Whether both moments are stored, as they are after the first update."""
        return all(moment.exists for moment in self.moments)

    @property
    def is_quantised(self) -> bool:
        """Whether the moments are codes of eight bits."""
        return self.exp_avg.scales is not None

    def restart(self) -> None:
        """Set the counter of updates to zero, in place where it is a tensor."""
        step: Any = self.step
        self.stored["step"] = step.zero_() if torch.is_tensor(step) else 0

    @classmethod
    def layout(cls, key: str) -> Layout:
        """Return how the matrix under ``key`` of a stored state is distributed."""
        if key in ("exp_avg", "exp_avg_sq"):
            return "moment"
        field = getattr(cls, key, None)
        return field.layout if isinstance(field, Field) else "replicated"


class ProjectedState(AdamState):
    """View the stored state of a matrix whose moments live in a subspace of its gradient.

    ``basis`` is the basis of a one-sided projection; a two-sided one also has ``basis_2``. Their
    shapes are in :mod:`lowrank.optim.projection`.
    """

    __slots__ = ()

    basis: Field[Tensor | None] = Field(None, layout="basis")
    basis_2: Field[Tensor | None] = Field(None)

    @property
    def bases(self) -> tuple[Tensor, ...]:
        """Return the stored bases; empty before the first decomposition."""
        return tuple(basis for basis in (self.basis, self.basis_2) if basis is not None)

    @bases.setter
    def bases(self, bases: tuple[Tensor, ...]) -> None:
        if len(bases) == 1:
            (self.basis,) = bases
        else:
            self.basis, self.basis_2 = bases

    @property
    def dtype(self) -> torch.dtype | None:
        """Return the precision that gradients are projected in; None before the first basis.

        A loaded state keeps its precision, whatever that of the model.
        """
        return None if self.basis is None else self.basis.dtype


class FiraState(ProjectedState):
    """View the stored state of a matrix that Fira trains.

    ``residual_norm`` () is the norm of the scaled residual at the previous update.
    """

    __slots__ = ()

    residual_norm: Field[Tensor | None] = Field(None)
