"""One method or one metric in full, for ``lowrank methods NAME`` and ``lowrank metrics NAME``."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from lowrank.errors import UnknownNameError, UsageError

from .output import Row, table_text

if TYPE_CHECKING:
    from lowrank.metrics.base import Lens, MetricInfo

BOUNDS = {"exclusiveMinimum": ">", "minimum": ">=", "exclusiveMaximum": "<", "maximum": "<="}


def settings_of(settings: type[Any]) -> list[dict[str, Any]]:
    """Describe every field of a settings class: name, default, allowed values, meaning."""
    schema = settings.model_json_schema()
    return [
        {
            "setting": name,
            "default": field.get("default", "required"),
            "allowed": allowed(field),
            "meaning": field.get("description", ""),
        }
        for name, field in schema.get("properties", {}).items()
    ]


def allowed(field: Mapping[str, Any]) -> str:
    """Return the values that a field of a JSON schema may have, in words."""
    if "anyOf" in field:
        return " or ".join(allowed(choice) for choice in field["anyOf"])
    if "const" in field or "enum" in field:
        return ", ".join(map(str, field.get("enum", [field.get("const")])))
    if "$ref" in field:
        return "mapping"
    if field.get("type") == "array":
        return f"list of: {allowed(field['items'])}" if "items" in field else "list"
    kind = {"null": "none", "boolean": "true, false"}.get(field.get("type", ""), field.get("type"))
    bounds = [f"{sign} {field[key]:g}" for key, sign in BOUNDS.items() if key in field]
    return " ".join([kind or "any", " and ".join(bounds)]).strip()


def method_text(row: Row) -> str:
    """Write a method's row, with its settings under ``details``, for people."""
    facts = {
        "family": row["family"],
        "source": row["source"],
        "dense equivalent": "yes" if row["dense_equivalent"] else "no",
    }
    return "\n".join(
        [
            f"{row['method']}: {row['title']}",
            row["summary"],
            "",
            *aligned(facts),
            "",
            setting_table(row["details"]),
        ]
    )


def metric_text(row: Row) -> str:
    """Write a metric's row, with the settings of its lens under ``details``, for people."""
    facts = {
        "definition": row["definition"],
        "unit": row["unit"],
        "range": row["range"],
        "better": row["better"] or "neither way",
        "source": row["source"],
        "lens": row["lens"],
        "revision": row["revision"],
        **{f"preset {name}": changes(found) for name, found in variants(row["presets"]).items()},
    }
    return "\n".join([row["metric"], "", *aligned(facts), "", setting_table(row["details"])])


def variants(
    presets: Mapping[str, Mapping[str, Mapping[str, Any]]],
) -> dict[str, Mapping[str, Any]]:
    """Return the settings of each variant of each preset, named as protocols are."""
    return {
        preset if label == "main" else f"{preset}/{label}": settings
        for preset, labels in presets.items()
        for label, settings in labels.items()
    }


def changes(settings: Mapping[str, Any]) -> str:
    """Write the settings that a variant changes in one line."""
    return ", ".join(f"{name}={plain(v)}" for name, v in settings.items()) or "the defaults"


def setting_table(details: Iterable[Row]) -> str:
    """Write settings as a table; columns in which nothing stands are left out."""
    rows = [{**row, "default": plain(row["default"])} for row in details]
    if not rows:
        return "no settings of its own"
    return table_text(rows, [name for name in rows[0] if any(row[name] != "" for row in rows)])


def aligned(facts: Mapping[str, Any]) -> list[str]:
    """Write facts one a line, their values below one another."""
    width = max(map(len, facts))
    return [f"{name:<{width}}  {value}" for name, value in facts.items()]


def plain(value: Any) -> str:
    """Write a setting's value as a study file has it."""
    return value if isinstance(value, str) else "none" if value is None else json.dumps(value)


def find_metric(name: str, lenses: Iterable[str]) -> tuple[str, type[Lens], MetricInfo]:
    """Return (lens name, lens, description) of a metric of ``lenses``.

    Raises UnknownNameError with the nearest metric, and UsageError for the name of a lens.
    """
    from lowrank import metrics as registry

    known = [
        (lens, registry.get(lens), info)
        for lens in lenses or registry.names()
        for info in registry.get(lens).metrics
    ]
    for found in known:
        if found[2].name == name:
            return found
    if name in registry.names():
        raise UsageError(
            f"'{name}' is a lens, not a metric; list its metrics with: lowrank metrics --lens {name}"
        )
    raise UnknownNameError("metric", name, [info.name for _, _, info in known])
