"""States that ``galore_torch`` and ``fira`` have saved, brought into the layout of this library."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lowrank.errors import ConfigError
from lowrank.optim.adam import Group
from lowrank.optim.state import ProjectedState, StoredState

RENAMED = {"scaling_grad": "residual_norm"}  # entries of fira's state


def own_layout(state_dict: dict[str, Any], groups: list[Group]) -> dict[str, Any]:
    """Return ``state_dict`` with the bases taken out of the projector objects of these packages.

    Any other state dictionary comes back with the same content. Keys that the saved groups lack are
    filled in from ``groups``. Nothing of these packages is called or imported. Raises
    :class:`ConfigError` for a projector that holds no basis.
    """
    states: dict[int, StoredState] = {}
    for i, state in state_dict["state"].items():
        states[i] = own = {
            RENAMED.get(key, key): value for key, value in state.items() if key != "projector"
        }
        if "projector" in state:
            ProjectedState(own).bases = _bases(state["projector"], i)
    saved = [dict(group) for group in state_dict["param_groups"]]
    for group, ours in zip(saved, groups, strict=False):  # PyTorch reports different numbers
        for key in ours.keys() - {"params", "param_names"}:
            group.setdefault(key, ours[key])
    return {**state_dict, "state": states, "param_groups": saved}


def _bases(projector: Any, parameter: int) -> tuple[Tensor, ...]:
    held = getattr(projector, "ortho_matrix", None)
    bases = tuple(held) if isinstance(held, list | tuple) else (held,)
    if not all(torch.is_tensor(basis) for basis in bases):
        raise ConfigError(
            f"the projector of parameter {parameter} in this state holds no basis; "
            "save the state after the first update"
        )
    return bases
