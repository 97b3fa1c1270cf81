"""``lowrank estimate``: parameters, memory and floating-point operations of runs, before they
run.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import click

from lowrank.errors import UnknownNameError

from .options import database_option, json_option, standard_options
from .output import emit

PUBLISHED_VOCABULARY, PUBLISHED_WIDTH = (
    32_000,
    512,
)  # rows of the embedding from this hidden size on
MEBI, MEGA = 2**20, 10**6


@click.command()
@click.argument("file", required=False, type=click.Path(dir_okay=False, path_type=Path))
@click.option(
    "--method",
    "methods",
    multiple=True,
    metavar="NAME",
    help="Only this method; may be given several times.",
)
@click.option(
    "--scale",
    "scales",
    multiple=True,
    metavar="NAME",
    help="Only this scale; may be given several times.",
)
@click.option(
    "--preset",
    type=click.Choice(["exact", "published"]),
    help="Recipes (default: those of FILE, else exact).",
)
@click.option(
    "--vocabulary-size",
    type=click.IntRange(min=1),
    metavar="N",
    help="Rows of the embedding (default: that of FILE; without FILE 32000 for the published scales, 4096 for smaller ones).",
)
@click.option("--max-length", type=click.IntRange(min=2), metavar="N", help="Tokens per row.")
@click.option(
    "--micro-batch-size",
    type=click.IntRange(min=1),
    metavar="N",
    help="Rows per forward pass (default: the recipe's).",
)
@click.option(
    "--precision",
    type=click.Choice(["float32", "bfloat16_autocast", "pure_bfloat16"]),
    help="Weights and arithmetic.",
)
@click.option(
    "--gradient-checkpointing",
    is_flag=True,
    help="Keep one activation per block and recompute the others.",
)
@click.option(
    "--device",
    type=click.Choice(["cpu", "cuda"]),
    help="Whose peak: resident memory of a process, or a GPU's allocator (default: that of this machine).",
)
@click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="KEY=VALUE",
    help="Override a key of a study file, such as methods.galore.settings.rank=64.",
)
@json_option
@database_option
@standard_options
def estimate(
    file: Path | None,
    methods: tuple[str, ...],
    scales: tuple[str, ...],
    preset: str | None,
    vocabulary_size: int | None,
    max_length: int | None,
    micro_batch_size: int | None,
    precision: str | None,
    gradient_checkpointing: bool,
    device: str | None,
    overrides: tuple[str, ...],
    as_json: bool,
) -> None:
    """Estimate parameters, memory and floating-point operations of runs.

    The runs are those of a study FILE, or any method at any scale. Nothing is trained and nothing
    is written. Bytes of weights, gradients and optimizer state are exact; docs/memory.md states the
    accuracy of the peak. The table is in MiB and millions of operations; --json prints plain
    numbers.

    \b
    Examples:
      lowrank estimate --method galore --scale 350m --micro-batch-size 16 --gradient-checkpointing
      lowrank estimate --scale 60m --json
      lowrank estimate studies/demo.yaml
    """
    checkpointing = gradient_checkpointing or None
    training = {
        "micro_batch_size": micro_batch_size,
        "precision": precision,
        "gradient_checkpointing": checkpointing,
    }
    configs = select_configs(
        file, methods, scales, [*([f"preset={preset}"] if preset else []), *overrides]
    )
    rows = list(
        estimate_rows(
            [with_options(config, training, max_length) for config in configs],
            vocabulary_size,
            file is None,
            device,
        )
    )
    emit(rows if as_json else [readable(row) for row in rows], as_json)


def select_configs(
    file: Path | None, methods: Sequence[str], scales: Sequence[str], overrides: Sequence[str]
) -> list[Any]:
    """Return the configurations to estimate, one for all seeds.

    They are runs of the study file, or the recipes of the methods at the scales.
    """
    from lowrank import methods as registry
    from lowrank.config import load_study, parse_study, resolve_runs
    from lowrank.config.resolve import known_scales

    if file is None:
        raw = {
            "name": "estimate",
            "methods": list(methods or registry.names()),
            "scales": list(scales or known_scales()),
            "training": {
                "learning_rate": 1e-3
            },  # has no effect here, but a method without a recipe needs one
        }
        study = parse_study(raw, "lowrank estimate", overrides)
    else:
        study = load_study(file, overrides)
        for what, wanted, have in (
            ("method", methods, study.methods),
            ("scale", scales, study.scales),
        ):
            for name in wanted:
                if name not in have:
                    raise UnknownNameError(f"{what} of {file}", name, have)
    runs = resolve_runs(study, str(file or "lowrank estimate"))
    first = {(run.scale, run.method, run.variant): run for run in reversed(runs)}
    return [
        run
        for run in reversed(first.values())
        if run.method in (methods or study.methods) and run.scale in (scales or study.scales)
    ]


def with_options(config: Any, training: dict[str, Any], max_length: int | None) -> Any:
    """Return ``config`` changed by the options.

    The batch size is rounded up to a multiple of the rows per forward pass.
    """
    given = {key: value for key, value in training.items() if value is not None}
    rows = given.get("micro_batch_size", 1)
    given["batch_size"] = -(-config.training.batch_size // rows) * rows
    data = {} if max_length is None else {"max_length": max_length}
    return config.model_copy(
        update={
            "training": config.training.model_copy(update=given),
            "data": config.data.model_copy(update=data),
        }
    )


def estimate_rows(
    configs: Sequence[Any], vocabulary_size: int | None, published: bool, device: Any
) -> Iterator[dict[str, Any]]:
    """Yield one row per configuration."""
    from lowrank.estimate import default_device, expected_vocabulary
    from lowrank.estimate import estimate as estimate_run
    from lowrank.progress import progress_bar
    from lowrank.train.loop import split_batch

    for config in progress_bar(
        configs, desc="estimate", unit="run", disable=len(configs) < 2, leave=False
    ):
        rows = vocabulary_size
        if rows is None:
            wide = (
                published
                and config.data.vocabulary_size is None
                and config.shape.hidden_size >= PUBLISHED_WIDTH
            )
            rows = PUBLISHED_VOCABULARY if wide else expected_vocabulary(config)
        yield {
            "method": config.method,
            "variant": config.variant,
            "scale": config.scale,
            "rank": config.settings.get("rank"),
            "vocabulary_size": rows,
            "max_length": config.data.max_length,
            "micro_batch_size": split_batch(config.training, processes=1)[1],
            "precision": config.training.precision,
            "gradient_checkpointing": config.training.gradient_checkpointing,
            "device": device or default_device(),
            **estimate_run(config, rows, device).row(),
        }


def readable(row: dict[str, Any]) -> dict[str, Any]:
    """Return a row for people: MiB for bytes, millions for operations.

    Columns that are the same for all rows are left out.
    """
    found = {
        key: row[key]
        for key in (
            "method",
            "variant",
            "scale",
            "rank",
            "micro_batch_size",
            "max_length",
            "vocabulary_size",
        )
    }
    found |= {"parameters": row["parameters_total"], "trained": row["parameters_trainable"]}
    for name in ("weight", "gradient", "optimizer_state", "activation", "peak", "checkpoint"):
        found[f"{name}_mib"] = round(row[f"{name}_bytes"] / MEBI, 1)
    return {**found, "mflops_per_token": round(row["flops_per_token"] / MEGA, 1)}
