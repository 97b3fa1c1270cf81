"""The plan of a study file, and the rows of its study and runs in a store."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lowrank.config import RunConfig, Study, load_study, resolve_runs
from lowrank.config.resolve import content_hash
from lowrank.store import Store, records


@dataclass(frozen=True)
class Plan:
    """A study file that was read, checked and resolved.

    ``file`` is its path, ``root`` the study's folder, ``runs`` its resolved runs.
    """

    study: Study
    file: str
    root: Path
    runs: list[RunConfig]

    @classmethod
    def of(cls, file: str | Path, overrides: Sequence[str] = ()) -> Plan:
        """Return the plan of a study file with ``key=value`` overrides.

        Raises :class:`ConfigError` for a file or an override that is not valid.
        """
        study = load_study(file, overrides)
        return cls(study, str(file), study_root(study), resolve_runs(study, str(file)))

    @property
    def database(self) -> str:
        """URL of the study's own SQLite file, the default store."""
        return f"sqlite:///{self.root / 'lowrank.db'}"


def study_root(study: Study) -> Path:
    """Return the study's folder: checkpoints, its default database and its report."""
    return Path(study.output or f"outputs/{study.name}")


def register(store: Store, plan: Plan) -> tuple[records.Study, list[tuple[RunConfig, records.Run]]]:
    """Store the study's row and a row for each of its runs where they are missing; return them."""
    body = plan.study.model_dump(mode="json")
    root = str(plan.root.resolve())
    row = store.put(
        records.Study(name=plan.study.name, config=body, config_hash=content_hash(body), root=root)
    )
    known = {run.config_hash: run for run in store.find(records.Run, study_id=row.id)}
    runs = []
    for config in plan.runs:
        run = known.get(config.fingerprint()) or store.add(new_run(config, row))
        if run.config != config.model_dump(mode="json"):
            run = store.update(records.Run, run.id, config=config.model_dump(mode="json"))
        runs.append((config, run))
    return row, runs


def new_run(config: RunConfig, study: records.Study) -> records.Run:
    """Return the row of a run that has not been started; it is not stored."""
    from lowrank.methods.base import create

    rate = config.training.learning_rate
    return records.Run(
        study_id=study.id or 0,
        config_hash=config.fingerprint(),
        method=config.method,
        variant=config.variant,
        scale=config.scale,
        seed=config.seed,
        data_seed=config.data_seed,
        init_seed=config.init_seed,
        rank=config.settings.get("rank"),
        config=config.model_dump(mode="json"),
        base_learning_rate=rate,
        effective_learning_rate=rate * create(config.method, config.settings).update_scale,
        total_steps=config.training.updates,
        precision=config.training.precision,
    )


def status_rows(store: Store, plan: Plan) -> Iterator[dict[str, Any]]:
    """Yield a row per run: its status, its last step, and how many rows of results it has."""
    row = store.first(records.Study, name=plan.study.name)
    known = (
        {run.config_hash: run for run in store.find(records.Run, study_id=row.id)} if row else {}
    )
    for config in plan.runs:
        run = known.get(config.fingerprint())
        saved = store.find(records.Checkpoint, run_id=run.id) if run else []
        last = saved[-1] if saved else None
        ids = [c.id for c in saved]
        yield {
            "method": config.method,
            "variant": config.variant,
            "scale": config.scale,
            "seed": config.seed,
            "status": run.status if run else "planned",
            "step": max((c.step for c in saved), default=0),
            "of": config.training.updates,
            "checkpoints": f"{len(saved)}/{len(config.training.checkpoint_steps())}",
            "validation_loss": last.validation_loss if last else None,
            "metric_values": store.count(records.MetricValue, checkpoint_id=ids) if ids else 0,
            "downstream_scores": store.count(records.DownstreamScore, checkpoint_id=ids)
            if ids
            else 0,
            "error": run.error if run else "",
        }
