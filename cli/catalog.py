"""``lowrank methods``, ``lowrank metrics``, ``lowrank scales``: everything registered, with its
facts and defaults.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import click

from .options import database_option, json_option, standard_options
from .output import emit


@click.command()
@json_option
@database_option
@standard_options
def methods(as_json: bool) -> None:
    """List the training methods: family, summary, source, settings with their defaults.

    \b
    Example:
      lowrank methods --json
    """
    emit(method_rows(as_json), as_json)


@click.command()
@click.option(
    "--lens",
    "lenses",
    multiple=True,
    metavar="NAME",
    help="Only this lens; may be given several times.",
)
@json_option
@database_option
@standard_options
def metrics(lenses: tuple[str, ...], as_json: bool) -> None:
    """List the metrics: definition, unit, range, source, and the settings of their lens under each
    preset.

    \b
    Examples:
      lowrank metrics
      lowrank metrics --lens landscape --json
    """
    emit(metric_rows(lenses, as_json), as_json)


@click.command()
@json_option
@database_option
@standard_options
def scales(as_json: bool) -> None:
    """List the model scales: shape, default rank, parameters of the seven matrices of all blocks.

    \b
    Example:
      lowrank scales
    """
    emit(scale_rows(), as_json)


def method_rows(complete: bool) -> Iterator[dict[str, Any]]:
    """Yield one row per method; ``complete`` keeps settings as an object instead of text."""
    from lowrank import methods as registry

    for name in registry.names():
        cls = registry.get(name)
        settings = defaults(cls.Settings)
        yield {
            "method": name,
            "title": cls.title,
            "family": cls.family,
            "summary": cls.summary,
            "dense_equivalent": cls.has_dense,
            "source": cls.source,
            "settings": settings if complete else shown(settings),
        }


def metric_rows(lenses: tuple[str, ...], complete: bool) -> Iterator[dict[str, Any]]:
    """Yield one row per metric, lens by lens; ``complete`` adds revision, default settings and
    presets.
    """
    from lowrank import metrics as registry

    for name in lenses or registry.names():
        lens = registry.get(name)
        for info in lens.metrics:
            row: dict[str, Any] = {
                "metric": info.name,
                "lens": name,
                "definition": info.definition,
                "unit": info.unit,
                "range": info.range,
                "better": info.better,
                "source": info.source,
            }
            if complete:
                row |= {
                    "revision": lens.revision,
                    "defaults": defaults(lens.Settings),
                    "presets": _plain(lens.presets),
                }
            yield row


def scale_rows() -> Iterator[dict[str, Any]]:
    """Yield one row per scale."""
    from lowrank import presets
    from lowrank.config import ModelShape

    for name, values in presets.load("scales").items():
        shape = ModelShape.model_validate(values)
        matrices = shape.num_hidden_layers * (
            4 * shape.hidden_size**2 + 3 * shape.hidden_size * shape.intermediate_size
        )
        yield {"scale": name, **shape.model_dump(), "matrix_parameters": matrices}


def defaults(settings: type[Any]) -> dict[str, Any]:
    """Return {setting: default}; a setting without a default is required."""
    return {
        name: "required"
        if info.is_required()
        else _plain(info.get_default(call_default_factory=True))
        for name, info in settings.model_fields.items()
    }


def shown(settings: dict[str, Any]) -> str:
    """Return settings in one line."""
    return ", ".join(
        f"{name}={value if isinstance(value, str) else json.dumps(value)}"
        for name, value in settings.items()
    )


def _plain(value: Any) -> Any:
    """Return a value as JSON values."""
    return json.loads(
        json.dumps(value, default=lambda v: v.model_dump() if hasattr(v, "model_dump") else str(v))
    )
