"""A synthetic study with every kind of row, for developing and testing reports and predictors.

The numbers follow simple laws (losses fall as a power of the step and the width, geometry follows
the loss with noise), so that figures look like those of a real study and a predictor has something
to find.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from lowrank.store import Store
from lowrank.store.records import (
    Checkpoint,
    CurvePoint,
    DownstreamItem,
    DownstreamScore,
    EvaluationSet,
    MetricValue,
    Protocol,
    Provenance,
    Record,
    Run,
    SingularValue,
    Study,
    TrainingLog,
)

METHODS = ("full_rank", "galore", "fira", "cola", "sltrain", "relora")
MODULES = ("q", "k", "v", "o", "gate", "up", "down")
TASKS = {
    "continuation": 0.25,
    "minimal_pairs": 0.5,
    "cloze": 0.2,
    "ordering": 0.5,
    "definitions": 0.25,
}
SHARPNESS_K = (1, 5)
ITEMS = 40  # of each task at the last step


@dataclass
class Synthetic:
    """What the study holds; ``lenses`` leaves some out, ``failed`` names a (method, scale, seed)
    that diverged.
    """

    methods: Sequence[str] = METHODS
    scales: dict[str, int] = field(default_factory=lambda: {"nano": 64, "micro": 128})
    seeds: Sequence[int] = (0, 1)
    steps: Sequence[int] = tuple(range(0, 301, 30))
    layers: int = 4
    lenses: frozenset[str] = frozenset(
        {"landscape", "interpolation", "spectra", "activations", "downstream"}
    )
    failed: tuple[str, str, int] | None = ("relora", "micro", 1)
    name: str = "demo"
    shift: float = 0.0  # added to every loss
    singular_values: int = 16


@dataclass
class Built:
    """Rows that later ones refer to."""

    study: Study
    protocols: dict[str, Protocol]
    evaluation: EvaluationSet
    provenance: Provenance
    runs: dict[tuple[str, str, int], Run] = field(default_factory=dict)
    checkpoints: dict[tuple[str, str, int, int], Checkpoint] = field(default_factory=dict)


def fill(store: Store, spec: Synthetic | None = None) -> Built:
    """Write the study into ``store``."""
    spec = spec or Synthetic()
    with store.transaction():
        built = parents(store, spec)
        for scale, width in spec.scales.items():
            for method in spec.methods:
                for seed in spec.seeds:
                    add_run(store, spec, built, method, scale, width, seed)
        store.add_all(values(spec, built))
    return built


def parents(store: Store, spec: Synthetic) -> Built:
    """Study, evaluation set, provenance and protocols."""
    config = {
        "name": spec.name,
        "description": "Six methods at two small scales, synthetic.",
        "preset": "exact",
        "scales": {s: {} for s in spec.scales},
    }
    study = store.add(Study(name=spec.name, config=config, config_hash="c0ffee" * 8))
    evaluation = store.add(
        EvaluationSet(
            name="embedded",
            dataset_fingerprint="d" * 16,
            split="validation",
            seed=0,
            examples=64,
            tokens=8128,
            max_length=128,
            packing=True,
            tokenizer_hash="t" * 16,
            sha256="e5a1" * 16,
        )
    )
    texts = store.add(
        replace(evaluation, id=None, name="metrics", examples=16, tokens=2032, sha256="3e7a" * 16)
    )
    provenance = store.add(
        Provenance(
            hash="p" * 16,
            lowrank_version="0.1.0",
            git_commit="0123456789abcdef",
            device="cpu",
            threads=2,
            library_versions={"torch": "2.13.0", "transformers": "5.23.0", "accelerate": "1.15.0"},
        )
    )
    variants = {
        "landscape": ("exact", "dense", ""),
        "landscape/filter": ("exact/filter", "dense", "filter"),
        "interpolation": ("exact", "dense", ""),
        "spectra": ("exact", "dense", ""),
        "activations": ("exact", "", ""),
        "downstream": ("exact", "", ""),
    }
    protocols = {
        key: store.add(
            Protocol(
                name=name,
                lens=key.partition("/")[0],
                metric_revision=1,
                space=space,
                normalization=normalization,
                evaluation_set_id=None if key in ("spectra", "downstream") else texts.id,
                direction_seed=7 if key.startswith("landscape") else None,
                precision="float32",
                parameters={"primary": dict.fromkeys(TASKS, "acc")}
                if key == "downstream"
                else {"examples": 64},
            )
        )
        for key, (name, space, normalization) in variants.items()
    }
    return Built(study, protocols, evaluation, provenance)


def quality(method: str) -> float:
    """How much worse a method's loss is than the first one's, nats."""
    return {
        "full_rank": 0.0,
        "galore": 0.03,
        "fira": -0.05,
        "cola": 0.01,
        "sltrain": 0.05,
        "relora": 0.22,
    }.get(method, 0.1)


def loss_at(spec: Synthetic, method: str, width: int, seed: int, step: int) -> float:
    """The validation loss that the laws give."""
    noise = np.random.default_rng([width, seed, step, len(method)]).normal(0, 0.012)
    floor = 3.1 + 1.2 * (64 / width) ** 0.4 + quality(method) + spec.shift
    return float(floor + 4.2 * math.exp(-((step / 60) ** 0.7)) + noise * (step > 0))


def add_run(
    store: Store, spec: Synthetic, built: Built, method: str, scale: str, width: int, seed: int
) -> None:
    """One run with its training curve and checkpoints."""
    failed = (method, scale, seed) == spec.failed
    assert built.study.id is not None
    parameters = (
        1000 * width * (1 + METHODS.index(method) if method in METHODS else 3) // 2
        + 12 * width * width * spec.layers
    )
    run = store.add(
        Run(
            study_id=built.study.id,
            config_hash=f"{method}-{scale}-{seed}-{spec.name}",
            method=method,
            scale=scale,
            seed=seed,
            data_seed=seed,
            init_seed=seed,
            status="failed" if failed else "done",
            rank=None if method == "full_rank" else width // 4,
            base_learning_rate=5e-3,
            effective_learning_rate=5e-3,
            total_steps=spec.steps[-1],
            error="the loss of update 141 is not finite" if failed else "",
            failed_step=141 if failed else None,
            last_finite_loss=9.37 if failed else None,
            attempts=1,
            init_hash=f"start-{seed}"
            if method not in ("cola", "sltrain")
            else f"start-{method}-{seed}",
            parameters_total=parameters,
            parameters_trainable=parameters - width * 900 * (method == "relora"),
            parameter_bytes=4 * parameters,
            gradient_bytes=4 * parameters,
            optimizer_state_bytes=8 * parameters // (3 if method in ("galore", "fira") else 1),
            peak_memory_bytes=20 * parameters + 60_000_000,
            train_seconds=41.5 + width / 4 + seed,
            dataset_fingerprint="d" * 16,
            tokenizer_hash="t" * 16,
            provenance_id=built.provenance.id,
        )
    )
    assert run.id is not None
    built.runs[method, scale, seed] = run
    last = 140 if failed else spec.steps[-1]
    generator = np.random.default_rng([seed, width, len(method)])
    store.add_all(
        TrainingLog(
            run_id=run.id,
            step=step,
            loss=loss_at(spec, method, width, seed, step) + float(generator.normal(0, 0.08)),
            tokens_seen=step * 1024,
            learning_rate=5e-3
            * min(1.0, step / 30)
            * (0.55 + 0.45 * math.cos(math.pi * step / spec.steps[-1])),
            gradient_norm=1.5 * step**-0.3 + 0.2,
            tokens_per_second=18_000 / (width / 64) + float(generator.normal(0, 200)),
        )
        for step in range(1, last + 1)
    )
    for step in (s for s in spec.steps if s <= last):
        built.checkpoints[method, scale, seed, step] = store.add(
            Checkpoint(
                run_id=run.id,
                step=step,
                kind="initial" if step == 0 else "final" if step == spec.steps[-1] else "training",
                tokens_seen=step * 1024,
                path=f"runs/{method}-{scale}-{seed}/step-{step}",
                sha256=f"{run.id:04d}{step:06d}" * 6,
                bytes=4 * parameters,
                validation_loss=loss_at(spec, method, width, seed, step),
                validation_tokens=40_000,
                evaluation_set_id=built.evaluation.id,
            )
        )


def values(spec: Synthetic, built: Built) -> Iterator[Record]:
    """Rows of every lens."""
    for key in sorted(built.checkpoints):
        for lens, make in (
            ("landscape", landscape),
            ("interpolation", interpolation),
            ("spectra", spectra),
            ("activations", activations),
            ("downstream", downstream),
        ):
            if lens in spec.lenses:
                yield from make(spec, built, key)


def rng(key: tuple[str, str, int, int], salt: int) -> np.random.Generator:
    """Noise that belongs to one checkpoint."""
    method, scale, seed, step = key
    return np.random.default_rng([salt, seed, step, *method.encode(), *scale.encode()])


def row(
    built: Built,
    key: tuple[str, str, int, int],
    protocol: str,
    metric: str,
    value: float | None,
    **more: object,
) -> MetricValue:
    """A metric value of a checkpoint."""
    checkpoint, found = built.checkpoints[key].id, built.protocols[protocol].id
    assert checkpoint is not None
    assert found is not None
    return MetricValue(
        checkpoint_id=checkpoint,
        protocol_id=found,
        metric=metric,
        value=value,
        provenance_id=built.provenance.id,
        **more,
    )  # type: ignore[arg-type]


def landscape(spec: Synthetic, built: Built, key: tuple[str, str, int, int]) -> Iterator[Record]:
    """Curves and what is read off them."""
    method, scale, seed, step = key
    generator, loss = rng(key, 1), loss_at(spec, method, spec.scales[scale], seed, step)
    for protocol, factor in (("landscape", 1.0), ("landscape/filter", 2.2)):
        sharp = (
            factor
            * 0.02
            * (1 + 3 * math.exp(-step / 80))
            * (1 + 3 * quality(method) + float(generator.normal(0, 0.05)))
        )
        if method == "cola":
            note = "the method has no dense equivalent"
            yield row(built, key, protocol, "sharpness_random", None, note=note)
            yield row(built, key, protocol, "direction_variance", None, note=note)
            continue
        yield row(
            built, key, protocol, "sharpness_random", sharp, standard_error=0.06 * sharp, n=20
        )
        yield row(
            built,
            key,
            protocol,
            "direction_variance",
            sharp**2 * 0.3,
            standard_error=0.03 * sharp**2,
            n=20,
        )
        for k in SHARPNESS_K:
            yield row(built, key, protocol, f"sharpness_pca_{k}", 2.5 * sharp / k)
            yield row(built, key, protocol, f"sigma_pca_{k}", (3 + step / 100) / math.sqrt(k))
        yield from curve(built, key, protocol, "landscape_random", loss, sharp)
    if method != "cola":
        yield from curve(
            built, key, "landscape", "landscape_pca_1", loss, 2.5 * 0.02, directions=None
        )


def curve(
    built: Built,
    key: tuple[str, str, int, int],
    protocol: str,
    name: str,
    loss: float,
    sharp: float,
    directions: int | None = 20,
) -> Iterator[Record]:
    """A parabola with a little asymmetry."""
    checkpoint, found = built.checkpoints[key].id, built.protocols[protocol].id
    assert checkpoint is not None
    assert found is not None
    for position, offset in enumerate(np.linspace(-0.5, 0.5, 11)):
        yield CurvePoint(
            checkpoint_id=checkpoint,
            protocol_id=found,
            curve=name,
            position=position,
            offset_value=float(offset),
            n=directions,
            mean=loss + 9 * sharp * float(offset) ** 2 * (1 + 0.2 * float(offset)),
            variance=sharp * float(offset) ** 2 if directions else None,
        )


def interpolation(
    spec: Synthetic, built: Built, key: tuple[str, str, int, int]
) -> Iterator[Record]:
    """CCBH against the step before; IMBH against the methods before this one and the seeds before
    this one.
    """
    method, scale, seed, step = key
    generator = rng(key, 2)
    before = max((s for s in spec.steps if s < step), default=None)
    if before is not None:
        reference = built.checkpoints[method, scale, seed, before].id
        value = (
            -0.3 * math.exp(-step / 50) + 0.02 * quality(method) + float(generator.normal(0, 0.004))
        )
        note = "of the factors: the method has no dense equivalent" if method == "cola" else ""
        yield row(
            built, key, "interpolation", "ccbh", value, reference_checkpoint_id=reference, note=note
        )
        yield row(
            built,
            key,
            "interpolation",
            "ccbh_excess",
            abs(value) * 0.05,
            reference_checkpoint_id=reference,
            note=note,
        )
        ends = [loss_at(spec, method, spec.scales[scale], seed, s) for s in (before, step)]
        yield from line(built, key, "ccbh", reference, ends, value)
    if method == "cola":
        return
    others = [
        (m, s)
        for m in spec.methods
        for s in spec.seeds
        if m != "cola" and (spec.methods.index(m), s) < (spec.methods.index(method), seed)
    ]
    for other, its_seed in others:
        target = built.checkpoints.get((other, scale, its_seed, step))
        if target is not None and (other == method or its_seed == seed):
            value = (0.2 + step / 80) * (1 - math.exp(-step / 90)) * (
                1.4 if other == method else 1 + quality(method)
            ) + float(generator.normal(0, 0.03))
            yield row(built, key, "interpolation", "imbh", value, reference_checkpoint_id=target.id)
            width = spec.scales[scale]
            ends = [
                loss_at(spec, other, width, its_seed, step),
                loss_at(spec, method, width, seed, step),
            ]
            yield from line(built, key, "imbh", target.id, ends, value)


def line(
    built: Built,
    key: tuple[str, str, int, int],
    name: str,
    reference: int | None,
    ends: list[float],
    rise: float,
) -> Iterator[Record]:
    """The loss from the reference (offset 0) to the checkpoint (offset 1), ``rise`` above the chord
    in the middle.
    """
    checkpoint, found = built.checkpoints[key].id, built.protocols["interpolation"].id
    assert checkpoint is not None
    assert found is not None
    for position, offset in enumerate((0.0, 0.25, 0.5, 0.75, 1.0)):
        yield CurvePoint(
            checkpoint_id=checkpoint,
            reference_checkpoint_id=reference,
            protocol_id=found,
            curve=name,
            position=position,
            offset_value=offset,
            mean=ends[0] + offset * (ends[1] - ends[0]) + 4 * offset * (1 - offset) * rise,
            n=8,
        )


def spectra(spec: Synthetic, built: Built, key: tuple[str, str, int, int]) -> Iterator[Record]:
    """Shape metrics, and the singular values of the last checkpoint."""
    method, scale, _, step = key
    generator, width = rng(key, 3), spec.scales[scale]
    low = 0.55 if method in ("galore", "cola", "relora") else 0.85
    note = (
        "the product of the factors, a linearisation: the method has no dense equivalent"
        if method == "cola"
        else ""
    )
    shapes = {
        "effective_rank": width * low * (1 - 0.3 * (1 - math.exp(-step / 120))),
        "stable_rank": width * low * 0.2 * math.exp(-step / 300),
        "spectral_gap": 0.05 + 0.3 * (1 - math.exp(-step / 150)),
        "threshold_rank": width * low * 0.9,
    }
    for name, value in shapes.items():
        yield row(
            built,
            key,
            "spectra",
            f"{name}_w",
            value * (1 + float(generator.normal(0, 0.02))),
            n=7 * spec.layers,
            note=note,
        )
        if step:
            yield row(
                built,
                key,
                "spectra",
                f"{name}_dw",
                0.4 * value * (1 + float(generator.normal(0, 0.04))),
                n=7 * spec.layers,
                note=note,
            )
    if step:
        yield row(
            built,
            key,
            "spectra",
            "delta_norm",
            4 * math.exp(-step / 200) * (1 + quality(method)),
            note=note,
        )
        yield row(
            built, key, "spectra", "delta_norm_relative", 0.3 * math.exp(-step / 200), note=note
        )
    if step == spec.steps[-1]:
        yield from spectrum(spec, built, key, low)


def spectrum(
    spec: Synthetic, built: Built, key: tuple[str, str, int, int], low: float
) -> Iterator[Record]:
    """Geometric decay with a cut at the method's rank."""
    checkpoint, found = built.checkpoints[key].id, built.protocols["spectra"].id
    assert checkpoint is not None
    assert found is not None
    for matrix in ("w", "dw"):
        for layer in range(spec.layers):
            for m, module in enumerate(MODULES):
                for position in range(spec.singular_values):
                    value = (
                        (2 + 0.2 * m)
                        * math.exp(-position / (spec.singular_values * low))
                        * (0.3 if matrix == "dw" else 1.0)
                        * (1 + 0.05 * layer)
                    )
                    yield SingularValue(
                        checkpoint_id=checkpoint,
                        protocol_id=found,
                        matrix=matrix,
                        layer=layer,
                        module=module,
                        position=position,
                        value=value,
                    )


def activations(spec: Synthetic, built: Built, key: tuple[str, str, int, int]) -> Iterator[Record]:
    """Similarity to the first method, layer by layer."""
    method, scale, seed, step = key
    target = built.checkpoints.get((spec.methods[0], scale, seed, step))
    if target is None:
        return
    away = (
        0.0 if method == spec.methods[0] else (0.15 + quality(method)) * (1 - math.exp(-step / 70))
    )
    by_layer = {layer: away * (layer + 2) / (spec.layers + 1) for layer in range(-1, spec.layers)}
    for layer, distance in [*by_layer.items(), (-2, float(np.mean(list(by_layer.values()))))]:
        common = {"layer": layer, "reference_checkpoint_id": target.id, "n": 8128}
        yield row(built, key, "activations", "activation_cka", 1 - 0.8 * distance, **common)
        yield row(
            built, key, "activations", "activation_cka_debiased", 1 - 0.95 * distance, **common
        )
        yield row(built, key, "activations", "activation_cosine", 1 - 0.7 * distance, **common)
        yield row(
            built,
            key,
            "activations",
            "activation_l2",
            6 * distance,
            standard_error=0.02 * distance,
            **common,
        )


def downstream(spec: Synthetic, built: Built, key: tuple[str, str, int, int]) -> Iterator[Record]:
    """Scores that rise as the loss falls."""
    method, scale, seed, step = key
    generator, loss = rng(key, 5), loss_at(spec, method, spec.scales[scale], seed, step)
    checkpoint, found = built.checkpoints[key].id, built.protocols["downstream"].id
    assert checkpoint is not None
    assert found is not None
    for place, (task, chance) in enumerate(TASKS.items()):
        score = min(
            0.97,
            max(
                0.02,
                chance
                + 0.08 * (8.3 - loss) * (1.2 if task == "minimal_pairs" else 0.6)
                + float(generator.normal(0, 0.015)),
            ),
        )
        common = {
            "checkpoint_id": checkpoint,
            "protocol_id": found,
            "task": task,
            "n": 300,
            "task_version": "1",
            "harness_version": "0.4.13",
            "provenance_id": built.provenance.id,
            "category": ("commonsense", "grammar", "language", "grammar", "knowledge")[place],
        }
        yield DownstreamScore(
            **common,
            metric="acc",
            value=score,
            standard_error=math.sqrt(score * (1 - score) / 300),
            chance=chance,
        )  # type: ignore[arg-type]
        yield DownstreamScore(**common, metric="margin", value=loss * -0.1, standard_error=0.02)  # type: ignore[arg-type]
        if step == spec.steps[-1]:
            ease = np.random.default_rng([place, seed]).uniform(
                size=ITEMS
            )  # of the items, the same for every method
            for item, value in enumerate(ease < score):
                yield DownstreamItem(
                    checkpoint_id=checkpoint,
                    protocol_id=found,
                    task=task,
                    metric="acc",
                    item=f"item{item}",
                    value=float(value),
                )
