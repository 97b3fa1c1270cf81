"""``lowrank methods``, ``lowrank metrics``, ``lowrank scales``: what is registered, with its facts
and defaults.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

from . import details
from .options import database_option, json_option, standard_options
from .output import emit, json_text

if TYPE_CHECKING:
    from lowrank.methods.base import Method
    from lowrank.metrics.base import Lens, MetricInfo


@click.command()
@click.argument("name", required=False)
@json_option
@database_option
@standard_options
def methods(name: str | None, as_json: bool) -> None:
    """List the registered training methods: family, what they do, source, settings with their
    defaults. With NAME, show one in full: every setting with its default, allowed values and
    meaning.

    \b
    Examples:
      lowrank methods
      lowrank methods galore
      lowrank methods --json
    """
    if name is None:
        emit(method_rows(as_json), as_json)
    else:
        row = method_details(name)
        click.echo(json_text([row]) if as_json else details.method_text(row))


@click.command()
@click.argument("name", required=False)
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
def metrics(name: str | None, lenses: tuple[str, ...], as_json: bool) -> None:
    """List the registered metrics: definition, unit, range, source; with --json also the settings
    of their lens under each preset. With NAME, show one metric in full.

    \b
    Examples:
      lowrank metrics
      lowrank metrics stable_rank_w
      lowrank metrics --lens landscape --json
    """
    if name is None:
        emit(metric_rows(lenses, as_json), as_json)
    else:
        row = metric_details(name, lenses)
        click.echo(json_text([row]) if as_json else details.metric_text(row))


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
        row = method_row(name, registry.get(name))
        yield row if complete else {**row, "settings": shown(row["settings"])}


def method_row(name: str, cls: type[Method]) -> dict[str, Any]:
    """Return the facts of a method, its settings as {name: default}."""
    return {
        "method": name,
        "title": cls.title,
        "family": cls.family,
        "summary": cls.summary,
        "dense_equivalent": cls.has_dense,
        "source": cls.source,
        "settings": defaults(cls.Settings),
    }


def method_details(name: str) -> dict[str, Any]:
    """Return a method's row of the list, and ``details`` of each setting.

    Raises UnknownNameError with the nearest name.
    """
    from lowrank import methods as registry

    cls = registry.get(name)
    return {**method_row(name, cls), "details": details.settings_of(cls.Settings)}


def metric_rows(lenses: tuple[str, ...], complete: bool) -> Iterator[dict[str, Any]]:
    """Yield one row per metric; ``complete`` adds revision, default settings and presets."""
    from lowrank import metrics as registry

    for name in lenses or registry.names():
        lens = registry.get(name)
        for info in lens.metrics:
            yield metric_row(name, lens, info, complete)


def metric_row(name: str, lens: type[Lens], info: MetricInfo, complete: bool) -> dict[str, Any]:
    """Return the facts of a metric of the lens ``name``; ``complete`` as in :func:`metric_rows`."""
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
    return row


def metric_details(name: str, lenses: tuple[str, ...] = ()) -> dict[str, Any]:
    """Return a metric's row of the list, and ``details`` of each setting of its lens.

    Raises UnknownNameError with the nearest name.
    """
    lens_name, lens, info = details.find_metric(name, lenses)
    return {
        **metric_row(lens_name, lens, info, complete=True),
        "details": details.settings_of(lens.Settings),
    }


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
