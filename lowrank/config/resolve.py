"""From a study to its runs: presets and overrides laid over one another, resolved and hashed."""

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
    """Everything that one training run does; stored with it as JSON."""

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
        """SHA-256 over what can change a bit of the weights on one machine, and nothing else."""
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
        """A readable name: method, variant, scale and seed."""
        return "-".join(
            part for part in (self.method, self.variant, self.scale, f"s{self.seed}") if part
        )

    @property
    def folder(self) -> str:
        """Name of the run's folder: the label and enough of the hash to tell recipes apart."""
        return f"{self.label}-{self.fingerprint()[:8]}"


def weight_fields(section: Config) -> dict[str, Any]:
    """The fields of a section that can change the weights; derived defaults are resolved, so that
    spelling is no difference.
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
    """Names of the built-in scales."""
    return sorted(presets.load("scales"))


def scale_shape(study: Study, scale: str) -> ModelShape:
    """The shape of a scale: the study's own or a built-in one."""
    own = study.scales[scale].shape if scale in study.scales else None
    if own is not None:
        return own
    shapes = presets.load("scales")
    if scale not in shapes:
        raise UnknownNameError("scale", scale, shapes)
    return ModelShape.model_validate(shapes[scale])


def scale_seeds(study: Study, scale: str) -> tuple[int, ...]:
    """The seeds that a scale is trained with: its own or the study's."""
    own = study.scales[scale].seeds
    return study.seeds if own is None else own


def resolve_runs(study: Study, where: str = "study") -> list[RunConfig]:
    """All runs of a study in a fixed order: scale, method, variant, seed."""
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
    """One run: the preset's layers, then the study's, the later winning."""
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
    """The layers of a preset's recipe for a method at a scale."""
    recipe = presets.load("recipes")[preset]
    own = recipe["methods"].get(method, {})
    yield recipe["common"]
    yield recipe["scales"].get(scale, {})
    yield own
    yield own.get("scales", {}).get(scale, {})


def merge(layers: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Later layers win, key by key."""
    merged: dict[str, Any] = {}
    for layer in layers:
        merged.update(layer)
    return merged


def check_rank(settings: Config, shape: ModelShape, method: str, scale: str, where: str) -> None:
    """A rank larger than a layer's smaller side is an error before anything is trained."""
    rank, smallest = (
        getattr(settings, "rank", None),
        min(shape.hidden_size, shape.intermediate_size),
    )
    if rank is not None and rank > smallest:
        raise ConfigError(
            f"{where}: rank {rank} of method '{method}' is larger than a layer of scale '{scale}' ({smallest}); "
            f"set methods.{method}.settings.rank to at most {smallest}"
        )
