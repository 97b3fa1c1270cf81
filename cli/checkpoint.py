"""``lowrank checkpoint``: list, verify, export and import checkpoints."""

from __future__ import annotations

from pathlib import Path

import click

from lowrank.errors import CheckpointError, UsageError
from lowrank.store import Store, records

from .options import (
    database_option,
    json_option,
    log_to,
    open_store,
    standard_options,
    study_names,
)
from .output import emit

COLUMNS = (
    "id",
    "study",
    "method",
    "variant",
    "scale",
    "seed",
    "step",
    "kind",
    "validation_loss",
    "bytes",
    "path",
)


@click.group()
@standard_options
def checkpoint() -> None:
    """Checkpoints: list, verify, export, import."""


@checkpoint.command("list")
@click.option("--study", "study_name", help="Only the checkpoints of this study.")
@click.option("--run", "run_id", type=int, help="Only the checkpoints of this run.")
@json_option
@database_option
@standard_options
def list_checkpoints(study_name: str | None, run_id: int | None, as_json: bool) -> None:
    """List checkpoints, one per row.

    \b
    Example:
      lowrank checkpoint list --study demo --db sqlite:///outputs/demo/lowrank.db
    """
    with open_store(read_only=True) as store:
        studies = study_names(store, study_name)
        runs = {
            row.id: row
            for row in store.find(records.Run)
            if study_name in (None, studies[row.study_id]) and run_id in (None, row.id)
        }
        rows = []
        for saved in store.find(records.Checkpoint, run_id=list(runs)):
            run = runs[saved.run_id]
            rows.append(
                {
                    "id": saved.id,
                    "study": studies[run.study_id],
                    "method": run.method,
                    "variant": run.variant,
                    "scale": run.scale,
                    "seed": run.seed,
                    "step": saved.step,
                    "kind": saved.kind,
                    "validation_loss": saved.validation_loss,
                    "bytes": saved.bytes,
                    "path": saved.path,
                }
            )
    emit(rows, as_json, COLUMNS)


@checkpoint.command()
@click.argument("checkpoint_ids", type=int, nargs=-1)
@click.option(
    "--root",
    type=click.Path(file_okay=False, path_type=Path),
    help="The study's folder, if it has moved.",
)
@json_option
@database_option
@standard_options
def verify(checkpoint_ids: tuple[int, ...], root: Path | None, as_json: bool) -> int:
    """Compare the files of checkpoints with their manifests and the database.

    Without ids, all checkpoints are verified. Exit status 1 if one is damaged.

    \b
    Example:
      lowrank checkpoint verify --db sqlite:///outputs/demo/lowrank.db
    """
    from lowrank.checkpoint import verify as verify_folder

    with open_store(read_only=True) as store:
        chosen = (
            [_checkpoint(store, i) for i in checkpoint_ids]
            if checkpoint_ids
            else store.find(records.Checkpoint)
        )
        rows = []
        for saved in chosen:
            problem = ""
            try:
                verify_folder(folder(store, saved, root), saved.sha256)
            except CheckpointError as error:
                problem = str(error)
            rows.append({"id": saved.id, "path": saved.path, "ok": not problem, "problem": problem})
    emit(rows, as_json, ("id", "path", "ok", "problem"))
    return 0 if all(row["ok"] for row in rows) else 1


@checkpoint.command()
@click.argument("source")
@click.argument("target", type=click.Path(path_type=Path))
@click.option(
    "--native",
    is_flag=True,
    help="Write lowrank's own architecture, as trained, instead of a plain LLaMA.",
)
@click.option(
    "--root",
    type=click.Path(file_okay=False, path_type=Path),
    help="The study's folder, if it has moved.",
)
@database_option
@standard_options
def export(source: str, target: Path, native: bool, root: Path | None) -> None:
    """Write SOURCE as a plain Hugging Face LLaMA directory to the new folder TARGET.

    SOURCE is the id of a checkpoint, or its folder.

    \b
    Examples:
      lowrank checkpoint export outputs/demo/runs/…/checkpoints/step_00000300 my-model
      lowrank checkpoint export 12 model --db sqlite:///outputs/demo/lowrank.db
    """
    from lowrank.export import export as write

    if not source.isdigit():
        write(Path(source), target, native)
    else:
        with open_store(read_only=True) as store:
            saved = _checkpoint(store, int(source))
            write(folder(store, saved, root), target, native, saved.sha256)
    click.echo(str(target))


@checkpoint.command("import")
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
@click.argument("source", type=click.Path(file_okay=False, path_type=Path))
@click.option("--scale", required=True, help="Scale under which it is compared; any name.")
@click.option("--method", default="full_rank", show_default=True, help="Method that trained it.")
@click.option("--seed", type=int, default=0, show_default=True, help="Seed that trained it.")
@click.option(
    "--step",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help="Optimizer updates that it was trained for.",
)
@click.option(
    "--tokens",
    "tokens_seen",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help="Tokens that it was trained on.",
)
@click.option("--rank", type=click.IntRange(min=1), help="Rank of a low-rank method.")
@click.option(
    "--name",
    help="Distinguishes its run from others of the method and scale; default: the name of SOURCE.",
)
@database_option
@standard_options
def import_command(
    file: Path,
    source: Path,
    scale: str,
    method: str,
    seed: int,
    step: int,
    tokens_seen: int,
    rank: int | None,
    name: str | None,
) -> None:
    """Import the Hugging Face LLaMA directory SOURCE (safetensors) as a run of the study FILE.

    The run is then measured and evaluated like any other. The files are copied. Import several
    checkpoints of one run under one --name, each with its --step. Metrics and tasks that use text
    require that the study's data has the tokenizer of the checkpoint (data.tokenizer).

    \b
    Example:
      lowrank checkpoint import studies/demo.yaml models/llama-60m --scale 60m --step 10000
    """
    from lowrank.foreign import Origin, import_checkpoint
    from lowrank.study import Plan, register

    plan = Plan.of(file)
    origin = Origin(method, scale, seed, name or source.resolve().name, step, tokens_seen, rank)
    with open_store(plan.database, create=True) as store:
        log_to(plan.root)
        study, _ = register(store, plan)
        saved = import_checkpoint(store, study, plan.root, source, origin)
    click.echo(f"checkpoint {saved.id} of run {saved.run_id}: {saved.path}")


def folder(store: Store, saved: records.Checkpoint, root: Path | None = None) -> Path:
    """Return the folder of a checkpoint.

    Raises :class:`CheckpointError` if its path leads outside the study's folder.
    """
    study = store.get(records.Study, store.get(records.Run, saved.run_id).study_id)
    base = (root or Path(study.root)).resolve()
    found = (base / saved.path).resolve()
    if not found.is_relative_to(base):
        raise CheckpointError(
            f"checkpoint {saved.id}: its path '{saved.path}' leads outside the study's folder; restore a backup of the database"
        )
    return found


def _checkpoint(store: Store, checkpoint_id: int) -> records.Checkpoint:
    found = store.first(records.Checkpoint, id=checkpoint_id)
    if found is None:
        raise UsageError(
            f"the store has no checkpoint {checkpoint_id}; list them with lowrank checkpoint list"
        )
    return found
