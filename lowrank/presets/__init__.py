"""Facts as data: model scales, training recipes and published values."""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from typing import Any

from lowrank.strict_yaml import parse_yaml


@cache
def load(name: str) -> dict[str, Any]:
    """Return the preset file ``name`` (``scales`` or ``recipes``) as nested mappings."""
    text = files(__package__).joinpath(f"{name}.yaml").read_text(encoding="utf-8")
    value: dict[str, Any] = parse_yaml(text, f"presets/{name}.yaml")
    return value
