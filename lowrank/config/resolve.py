"""Resolve a study into its runs: presets and overrides are merged, validated and hashed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from lowrank import methods, presets
from lowrank.config.loading import validate, validate_partial
from lowrank.config.schema import Data, MethodEntry, ModelShape, Overrides, Study
from lowrank.errors import ConfigError, UnknownNameError
from lowrank.hashing import content_hash as content_hash
from lowrank.settings import WEIGHTLESS, YOUNGER, Config, Training


class RunConfig(Config):
    """The complete configuration of one training run; stored with the run as JSON."""

    method: str
    variant: str = ""
    scale: str
    seed: int
    init_seed: int
    data_seed: int
    shape: ModelShape
    settings: dict[str, Any]
    data: Data
    training: Training

    def fingerprint(self) -> str:
        """Return the SHA-256 of what can change a bit of the weights on one machine, and nothing
        else.
        """
        body = {
            "method": self.method,
            "init_seed": self.init_seed,
            "data_seed": self.data_seed,
            "shape": self.shape.model_dump(mode="json", exclude={"rank"}),
            "settings": self.settings,
            "data": weight_fields(self.data),
            "training": weight_fields(self.training),
        }
        return content_hash(body)

    @property
    def label(self) -> str:
        """Human-readable name: method, variant, scale and seed."""
        return "-".join(
            part for part in (self.method, self.variant, self.scale, f"s{self.seed}") if part
        )

    @property
    def folder(self) -> str:
        """Name of the run's folder: the label and enough of the hash to distinguish recipes."""
        return f"{self.label}-{self.fingerprint()[:8]}"


def weight_fields(section: Config) -> dict[str, Any]:
    """Return the fields of ``section`` that can change the weights, as JSON values.

    Derived defaults are resolved, so that two ways of writing the same recipe have the same hash.
    """
    fields = type(section).model_fields
    kept = {name for name, info in fields.items() if info.json_schema_extra != WEIGHTLESS}
    kept -= {
        name
        for name, info in fields.items()
        if info.json_schema_extra == YOUNGER and getattr(section, name) == info.default
    }
    body = section.model_dump(mode="json", include=kept)
    if isinstance(section, Training):
        body["warmup_steps"] = section.warmup
        body.pop("warmup_fraction")
    if isinstance(section, Data):
        body.pop("seed")  # resolved into the run's data_seed
        body.pop("order_per_method")
    return body


def known_scales() -> list[str]:
    """Return the names of the built-in scales, sorted."""
    return sorted(presets.load("scales"))


def scale_shape(study: Study, scale: str) -> ModelShape:
    """Return the model shape of a scale: the one in the study, or else the built-in one.

    Raises :class:`UnknownNameError` if neither exists.
    """
    own = study.scales[scale].shape if scale in study.scales else None
    if own is not None:
        return own
    shapes = presets.load("scales")
    if scale not in shapes:
        raise UnknownNameError("scale", scale, shapes)
    return ModelShape.model_validate(shapes[scale])


def scale_seeds(study: Study, scale: str) -> tuple[int, ...]:
    """Return the seeds with which a scale is trained: those of the scale, or else of the study."""
    own = study.scales[scale].seeds
    return study.seeds if own is None else own


def resolve_runs(study: Study, where: str = "study") -> list[RunConfig]:
    """Return all runs of a study in a fixed order: by scale, method, variant and seed.

    Raises :class:`ConfigError` if a recipe is incomplete, or if two runs have the same recipe.
    """
    runs = [
        resolve_run(study, method, entry, label, variant, scale, seed, where)
        for scale in study.scales
        for method, entry in study.methods.items()
        for label, variant in (entry.variants or {"": Overrides()}).items()
        for seed in scale_seeds(study, scale)
    ]
    by_hash: dict[str, RunConfig] = {}
    for run in runs:
        twin = by_hash.setdefault(run.fingerprint(), run)
        if twin is not run:
            raise ConfigError(
                f"{where}: the runs {twin.label} and {run.label} are the same recipe; remove one"
            )
    return runs


def resolve_run(
    study: Study,
    method: str,
    entry: MethodEntry,
    label: str,
    variant: Overrides,
    scale: str,
    seed: int,
    where: str,
) -> RunConfig:
    """Return the configuration of one run, merged from the preset's layers and then the study's.

    Raises :class:`ConfigError` if the merged recipe is incomplete or invalid.
    """
    cls = methods.get(method)
    shape = scale_shape(study, scale)
    own = entry.scales.get(scale, Overrides())
    layers = list(recipe_layers(study.preset, method, scale))
    given: list[Mapping[str, Any]] = [
        {"data": study.data, "training": study.training},
        {"training": study.scales[scale].training},
        entry.model_dump(include={"training", "settings"}),
        own.model_dump(),
        variant.model_dump(),
    ]
    merged = {
        section: merge(layer.get(section) or {} for layer in [*layers, *given])
        for section in ("data", "training", "settings")
    }
    for layer in given:
        validate_partial(
            cls.Settings, layer.get("settings") or {}, where, f"methods.{method}.settings"
        )
    if "learning_rate" not in merged["training"]:
        raise ConfigError(
            f"{where}: the method '{method}' has no learning rate; set methods.{method}.training.learning_rate"
        )
    training = validate(Training, merged["training"], where, f"methods.{method}.training")
    if "rank" in cls.Settings.model_fields and merged["settings"].get("rank") is None:
        merged["settings"]["rank"] = shape.rank
    settings = validate(cls.Settings, merged["settings"], where, f"methods.{method}.settings")
    data = validate(Data, merged["data"], where, "data")
    check_rank(settings, shape, method, scale, where)
    data_seed = seed if data.seed is None else data.seed
    if data.order_per_method:
        data_seed = int(content_hash([data_seed, method])[:12], 16)
    return RunConfig(
        method=method,
        variant=label,
        scale=scale,
        seed=seed,
        init_seed=seed,
        data_seed=data_seed,
        shape=shape,
        settings=settings.model_dump(mode="json"),
        data=data,
        training=training,
    )


def recipe_layers(preset: str, method: str, scale: str) -> Iterable[Mapping[str, Any]]:
    """Yield the layers of a preset's recipe for a method at a scale, the general ones first."""
    recipe = presets.load("recipes")[preset]
    own = recipe["methods"].get(method, {})
    yield recipe["common"]
    yield recipe["scales"].get(scale, {})
    yield own
    yield own.get("scales", {}).get(scale, {})


def merge(layers: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the union of mappings; where keys collide, the later layer wins."""
    merged: dict[str, Any] = {}
    for layer in layers:
        merged.update(layer)
    return merged


def check_rank(settings: Config, shape: ModelShape, method: str, scale: str, where: str) -> None:
    """Raise :class:`ConfigError` if the rank exceeds the smaller side of a layer."""
    rank, smallest = (
        getattr(settings, "rank", None),
        min(shape.hidden_size, shape.intermediate_size),
    )
    if rank is not None and rank > smallest:
        raise ConfigError(
            f"{where}: rank {rank} of method '{method}' is larger than a layer of scale '{scale}' ({smallest}); "
            f"set methods.{method}.settings.rank to at most {smallest}"
        )
