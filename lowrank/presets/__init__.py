"""Facts as data: model scales, training recipes and the published values."""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from typing import Any

from lowrank.config.loading import parse_yaml


@cache
def load(name: str) -> dict[str, Any]:
    """The preset file ``name`` (``scales`` or ``recipes``) as nested mappings."""
    value: dict[str, Any] = parse_yaml(files(__package__).joinpath(f"{name}.yaml").read_text(encoding="utf-8"), f"presets/{name}.yaml")
    return value
