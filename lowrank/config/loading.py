"""Read a study file: YAML in, a validated :class:`Study` out.

An invalid file raises one sentence that names the file, the key and the fix.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, TypeAdapter, ValidationError

from lowrank.config.schema import Data, Study
from lowrank.errors import ConfigError, suggestion
from lowrank.settings import Config, Training
from lowrank.strict_yaml import parse_yaml

C = TypeVar("C", bound=Config)


def read_yaml(path: Path) -> dict[str, Any]:
    """Return the mapping in a YAML file; raise :class:`ConfigError` if it holds anything else."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise ConfigError(f"{path}: no such study file") from error
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read as a study file ({error})") from error
    value = parse_yaml(text, str(path))
    if not isinstance(value, dict):
        raise ConfigError(
            f"{path}: a study file is a mapping of keys, this holds {type(value).__name__}"
        )
    return value


def validate(model: type[C], value: Any, where: str, prefix: str = "") -> C:
    """Return ``value`` validated as a ``model``.

    Raises :class:`ConfigError`: one sentence with ``where``, the dotted key below ``prefix`` and a
    suggestion.
    """
    try:
        return model.model_validate(value)
    except ValidationError as error:
        raise ConfigError(f"{where}: {explain(error, model, prefix)}") from error


def validate_partial(
    model: type[Config], overrides: Mapping[str, Any], where: str, prefix: str
) -> None:
    """Validate the keys and types in ``overrides``, without requiring that all keys are given.

    Raises :class:`ConfigError`, as :func:`validate` does.
    """
    for key, value in overrides.items():
        dotted = f"{prefix}.{key}" if prefix else str(key)
        if key not in model.model_fields:
            raise ConfigError(
                f"{where}: unknown key '{dotted}'{suggestion(str(key), model.model_fields)}"
            )
        info = model.model_fields[key]
        try:
            TypeAdapter(_annotated(info), config={"strict": True}).validate_python(value)
        except ValidationError as error:
            first = error.errors()[0]
            inner = ".".join(str(part) for part in first["loc"])
            raise ConfigError(
                f"{where}: key '{dotted}{'.' + inner if inner else ''}': {_message(first)}"
            ) from error


def explain(error: ValidationError, model: type[BaseModel], prefix: str = "") -> str:
    """Return the first problem of a validation as a clause: which key, what is wrong, what was
    meant.
    """
    problems = error.errors()
    # A misspelt key leaves the right one missing: the misspelling is what the user can see.
    first = next(
        (problem for problem in problems if problem["type"] == "extra_forbidden"), problems[0]
    )
    loc = [str(part) for part in first["loc"]]
    dotted = ".".join([*([prefix] if prefix else []), *loc])
    if first["type"] == "extra_forbidden":
        return f"unknown key '{dotted}'{suggestion(loc[-1], _fields_at(model, loc[:-1]))}"
    if first["type"] == "missing":
        return f"the key '{dotted}' is missing"
    return f"key '{dotted}': {_message(first)}"


def load_study(path: str | Path, overrides: Sequence[str] = ()) -> Study:
    """Return the study in the file ``path``, with ``key.sub=value`` overrides applied.

    Presets are not resolved yet; see :func:`lowrank.config.resolve_runs`. Raises
    :class:`ConfigError`.
    """
    return parse_study(read_yaml(Path(path)), str(path), overrides)


def parse_study(raw: dict[str, Any], where: str, overrides: Sequence[str] = ()) -> Study:
    """Return the study that the mapping ``raw`` describes, as :func:`load_study` does for a file.

    ``where`` names the mapping in error messages.
    """
    for override in overrides:
        _apply(raw, override)
    for section in ("methods", "scales"):
        raw[section] = _named(raw.get(section), section, where)
    raw["metrics"] = [{"lens": m} if isinstance(m, str) else m for m in raw.get("metrics") or []]
    study = validate(Study, raw, where)
    check_sections(study, where)
    return study


def check_sections(study: Study, where: str) -> None:
    """Validate the override sections of a study against the sections that they override."""
    validate_partial(Data, study.data, where, "data")
    validate_partial(Training, study.training, where, "training")
    check_seeds(study.seeds, where, "seeds")
    for name, scale in study.scales.items():
        validate_partial(Training, scale.training, where, f"scales.{name}.training")
        check_seeds(scale.seeds, where, f"scales.{name}.seeds")
    for name, entry in study.methods.items():
        validate_partial(Training, entry.training, where, f"methods.{name}.training")
        for kind, group in (("scales", entry.scales), ("variants", entry.variants)):
            for label, part in group.items():
                validate_partial(
                    Training, part.training, where, f"methods.{name}.{kind}.{label}.training"
                )


def check_seeds(seeds: Sequence[int] | None, where: str, key: str) -> None:
    """Raise :class:`ConfigError` unless ``seeds`` holds at least one seed and no duplicates.

    None is accepted; it stands for the seeds of the study.
    """
    if seeds is not None and (not seeds or len(set(seeds)) < len(seeds)):
        raise ConfigError(
            f"{where}: '{key}' must name at least one seed, each of them once (given: {list(seeds)})"
        )


def _annotated(info: Any) -> Any:
    from typing import Annotated

    return Annotated[(info.annotation, *info.metadata)] if info.metadata else info.annotation


def _message(problem: Any) -> str:
    text = problem["msg"][0].lower() + problem["msg"][1:]
    return f"{text} (given: {problem['input']!r})"


def _fields_at(model: Any, loc: Sequence[str]) -> list[str]:
    """Return the field names of the section at the path ``loc``, for suggestions."""
    for part in loc:
        if isinstance(model, type) and issubclass(model, BaseModel) and part in model.model_fields:
            model = _inner(model.model_fields[part].annotation)
    return (
        list(model.model_fields) if isinstance(model, type) and issubclass(model, BaseModel) else []
    )


def _inner(annotation: Any) -> Any:
    """Return the section class inside ``dict[str, X]``, ``tuple[X, …]`` or ``X | None``."""
    arguments = [
        a
        for a in getattr(annotation, "__args__", ())
        if isinstance(a, type) and issubclass(a, BaseModel)
    ]
    return arguments[-1] if arguments else annotation


def _named(value: Any, section: str, where: str) -> dict[str, Any]:
    """Return ``[a, b]`` or ``{a: {...}, b: null}`` as a mapping from name to entry."""
    if isinstance(value, list) and all(isinstance(name, str) for name in value):
        if len(set(value)) != len(value):
            raise ConfigError(f"{where}: the list '{section}' names an entry twice")
        value = {name: {} for name in value}
    if not isinstance(value, dict) or not value:
        raise ConfigError(
            f"{where}: '{section}' must be a list of names or a mapping from names to entries that is not empty"
        )
    return {str(name): {} if entry is None else entry for name, entry in value.items()}


def _apply(raw: dict[str, Any], override: str) -> None:
    """Apply an override ``a.b=value`` to a raw study, in place."""
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise ConfigError(f"--set {override}: expected key.sub=value")
    *parents, last = key.split(".")
    section: Any = raw
    for part in parents:
        inner = section.setdefault(part, {}) if isinstance(section, dict) else None
        if isinstance(inner, list) and all(isinstance(name, str) for name in inner):
            inner = section[part] = {name: {} for name in inner}
        if inner is None and isinstance(section, dict):
            inner = section[part] = {}
        if not isinstance(inner, dict):
            raise ConfigError(f"--set {override}: '{part}' is not a section of the study file")
        section = inner
    section[last] = parse_yaml(text, f"--set {override}")
