"""Training end to end on a tiny model: rows, files, resume after a kill at any point, divergence,
bad disks.
"""

from __future__ import annotations

import errno
import math
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from lowrank import checkpoint, files
from lowrank.errors import CheckpointError, ConfigError, DiskError, LowrankError
from lowrank.estimate import estimate
from lowrank.store import Store, records
from lowrank.study import MissingRun, Plan, missing_training, register, run_study, train_run
from lowrank.study import training as training_module
from lowrank.train import loop as loop_module
from lowrank.train import session as session_module
from lowrank.train.loop import Loop


class Killed(BaseException):
    """Stands for SIGKILL: nothing that handles ordinary errors may catch it."""


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def open_store(folder: Path) -> Store:
    folder.mkdir(parents=True, exist_ok=True)
    return Store.open(f"sqlite:///{folder / 'lowrank.db'}", create=True)


def train_plan(plan: Plan, store: Store) -> records.Run:
    """Train the first run of a plan."""
    _, runs = register(store, plan)
    return train_run(store, plan, MissingRun(*runs[0], "planned"), shown=False)


def final_state(store: Store) -> tuple[Any, ...]:
    """What must not depend on how often a run was killed."""
    (run,) = store.find(records.Run)
    saved = [
        (c.step, c.kind, c.sha256, c.validation_loss, c.tokens_seen)
        for c in store.find(records.Checkpoint)
    ]
    curve = [
        (p.step, p.loss, p.gradient_norm, p.learning_rate, p.tokens_seen)
        for p in store.find(records.TrainingLog)
    ]
    return run.status, run.init_hash, run.last_finite_loss, sorted(saved), sorted(curve)


def test_a_run_leaves_rows_and_verified_files(plan: Plan) -> None:
    with open_store(plan.root) as store:
        run = train_plan(plan, store)
        assert (run.status, run.attempts, run.world_size) == ("done", 1, 1)
        saved = store.find(records.Checkpoint, run_id=run.id)
        assert [(c.step, c.kind) for c in saved] == [
            (0, "initial"),
            (4, "training"),
            (8, "training"),
            (12, "final"),
        ]
        for row in saved:
            manifest = checkpoint.verify(plan.root / row.path, row.sha256)
            assert (manifest.step, manifest.bytes) == (row.step, row.bytes)
        assert len({row.sha256 for row in saved}) == 4
        losses = [row.validation_loss or math.inf for row in saved]
        assert losses[-1] < losses[0] - 0.1
        assert saved[-1].tokens_seen == 12 * 4 * 16
        assert [row.step for row in store.find(records.TrainingLog)] == list(range(1, 13))
        assert missing_training(store, plan) == []
        assert list((plan.root / "runs").glob("*/resume")) == []
        model = checkpoint.load(plan.root / saved[-1].path).model
        count = sum(p.numel() for p in model.parameters())
        assert (run.parameters_total, run.parameters_trainable, run.parameter_bytes) == (
            count,
            count,
            4 * count,
        )
        # Two moments and one step counter for each tensor.
        assert run.optimizer_state_bytes == 8 * count + 4 * len(list(model.parameters()))


def test_the_stored_validation_loss_is_the_checkpoints(plan: Plan) -> None:
    """An independent float64 evaluation of the loaded checkpoint gives the stored loss."""
    from lowrank.data import open_data

    with open_store(plan.root) as store:
        train_plan(plan, store)
        row = store.find(records.Checkpoint)[-1]
    model = checkpoint.load(plan.root / row.path, dtype=torch.float64).model
    rows = open_data(plan.runs[0].data, 0).evaluation_set(
        "validation", split="validation", tokens=500
    )
    nats, count = 0.0, 0
    for batch in rows.batches(3):
        log_p = model(batch.input_ids).logits.detach().log_softmax(-1)
        nats -= float(log_p[:, :-1].gather(-1, batch.input_ids[:, 1:, None]).sum())
        count += batch.input_ids[:, 1:].numel()
    assert row.validation_tokens == count
    assert row.validation_loss == pytest.approx(nats / count, rel=1e-6)


def test_the_same_work_asked_for_twice_is_done_once(plan: Plan) -> None:
    with open_store(plan.root) as store:
        assert run_study(store, plan, only="train").done == {"train": 1}
        before = final_state(store)
        assert run_study(store, plan, only="train").done == {"train": 0}
        assert final_state(store) == before
        assert store.find(records.Run)[0].attempts == 1


def kill_at(
    monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, nth: int, after: bool = False
) -> None:
    """Die at the ``nth`` call of ``owner.name``, before it or right after it."""
    real: Callable[..., Any] = getattr(owner, name)
    calls = 0

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == nth and not after:
            raise Killed
        result = real(*args, **kwargs)
        if calls == nth:
            raise Killed
        return result

    monkeypatch.setattr(owner, name, wrapped)


MOMENTS = [
    (session_module, "write_snapshot", 1, False),
    (session_module, "write_snapshot", 2, True),
    (checkpoint, "save", 1, False),
    (checkpoint, "save", 2, False),
    (checkpoint, "save", 3, True),
    (checkpoint, "write_weights", 2, True),
    (loop_module.Loop, "update", 1, False),
    (loop_module.Loop, "update", 7, False),
    (loop_module.Loop, "settle", 4, True),
    (Store, "forget_training_log", 1, True),
    (Store, "add_all", 2, True),
    (session_module.Session, "_record_checkpoint", 2, False),
    (training_module, "clear_resume_points", 1, False),
]


@pytest.mark.parametrize(
    ("owner", "name", "nth", "after"),
    MOMENTS,
    ids=[f"{m[1]}-{m[2]}-{'after' if m[3] else 'before'}" for m in MOMENTS],
)
def test_killed_and_resumed_is_bit_identical(
    plan: Plan, tmp_path: Path, owner: Any, name: str, nth: int, after: bool
) -> None:
    with open_store(plan.root) as store:
        train_plan(plan, store)
        expected = final_state(store)
    again = replace(plan, root=tmp_path / "killed")
    with open_store(again.root) as store:
        with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
            kill_at(patch, owner, name, nth, after)
            train_plan(again, store)
        train_plan(again, store)
        assert final_state(store) == expected
        assert not list(again.root.rglob("*.tmp"))


def test_a_loss_that_is_not_finite_is_a_result(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    real, calls = loop_module.summed_nats, 0

    def poisoned(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        nonlocal calls
        calls += 1
        return real(logits, labels) * (math.nan if calls == 6 else 1.0)

    monkeypatch.setattr(loop_module, "summed_nats", poisoned)
    with open_store(plan.root) as store:
        outcome = run_study(store, plan, only="train")
        assert outcome.failures == []
        assert "diverged" in outcome.notes[0]
        (run,) = store.find(records.Run)
        curve = store.find(records.TrainingLog)
        assert (run.status, run.failed_step) == ("failed", 6)
        assert run.last_finite_loss == curve[-1].loss
        assert "loss is nan at update 6" in run.error
        monkeypatch.undo()
        assert run_study(store, plan, only="train").done == {
            "train": 0
        }  # a result is not tried again unasked
        assert run_study(store, plan, only="train", retry_failed=True).done == {"train": 1}
        assert store.find(records.Run)[0].status == "done"


@pytest.mark.parametrize("per_layer", ["false", "true"])
def test_a_gradient_that_is_not_finite_is_a_result_and_named(
    study_file: Path, per_layer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = Plan.of(study_file, [f"training.per_layer_updates={per_layer}"])
    real = Loop.__init__
    models = []

    def poisoned(self: Loop, *arguments: Any) -> None:
        real(self, *arguments)
        models.append(self.model)
        self.model.model.layers[0].mlp.up_proj.weight.register_hook(
            lambda gradient: gradient.fill_(math.inf)
        )

    monkeypatch.setattr(Loop, "__init__", poisoned)
    with open_store(plan.root) as store:
        run = train_plan(plan, store)
        assert (run.status, run.failed_step) == ("failed", 1)
        assert (
            "gradient norm is inf at update 1 (in model.layers.0.mlp.up_proj.weight); last"
            in run.error
        )
    assert all(torch.isfinite(p).all() for p in models[0].parameters())


def test_updates_within_the_backward_pass_change_no_bit_of_curve_and_weights(
    study_file: Path, tmp_path: Path
) -> None:
    states = []
    for per_layer in ("false", "true"):
        plan = Plan.of(
            study_file,
            [f"training.per_layer_updates={per_layer}", f"output={tmp_path / per_layer}"],
        )
        with open_store(plan.root) as store:
            run = train_plan(plan, store)
            states.append(final_state(store))
    assert states[0] == states[1]
    assert run.gradient_bytes == 300 * 16 * 4  # the embedding's, the largest


@pytest.mark.parametrize(
    ("overrides", "reason"),
    [
        (["training.max_grad_norm=1.0"], "clipping"),
        (["training.micro_batch_size=2"], "accumulation"),
        (["training.compile=true"], "compiled"),
    ],
)
def test_what_updates_within_the_backward_pass_exclude(
    study_file: Path, overrides: list[str], reason: str
) -> None:
    plan = Plan.of(study_file, ["training.per_layer_updates=true", *overrides])
    with (
        open_store(plan.root) as store,
        pytest.raises(ConfigError, match=rf"per_layer_updates cannot be had here: .*{reason}"),
    ):
        train_plan(plan, store)
    with pytest.raises(ConfigError, match=reason):
        estimate(plan.runs[0])


def test_a_full_disk_is_one_sentence_and_loses_nothing(plan: Plan, tmp_path: Path) -> None:
    with open_store(plan.root) as store:
        train_plan(plan, store)
        expected = final_state(store)
    again = replace(plan, root=tmp_path / "full")
    with open_store(again.root) as store:
        with pytest.MonkeyPatch.context() as patch:
            real, calls = files.sync, 0

            def full(path: Path) -> None:
                nonlocal calls
                calls += 1
                if calls == 12:
                    raise OSError(errno.ENOSPC, "No space left on device")
                real(path)

            patch.setattr(files, "sync", full)
            with pytest.raises(DiskError, match=r"No space left on device.*free the disk"):
                run_study(store, again, only="train")
        assert store.find(records.Run)[0].status == "running"  # as after a kill: nothing has failed
        assert store.count(records.WorkUnit) == 0
        assert not list(again.root.rglob("*.tmp"))
        run_study(store, again, only="train")
        assert final_state(store) == expected


@pytest.mark.parametrize("name", [checkpoint.WEIGHTS, "config.json"])
def test_a_flipped_byte_is_named(plan: Plan, name: str) -> None:
    with open_store(plan.root) as store:
        train_plan(plan, store)
        row = store.find(records.Checkpoint)[-1]
    path = plan.root / row.path / name
    body = bytearray(path.read_bytes())
    body[len(body) // 2] ^= 1
    path.write_bytes(bytes(body))
    with pytest.raises(CheckpointError, match=name):
        checkpoint.load(plan.root / row.path, row.sha256)


def test_a_damaged_resume_point_is_named(plan: Plan) -> None:
    with open_store(plan.root) as store:
        with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
            kill_at(patch, loop_module.Loop, "update", 9)
            train_plan(plan, store)
        (state,) = plan.root.rglob("state.pt")
        state.write_bytes(state.read_bytes()[:-7])
        with pytest.raises(CheckpointError, match=r"damaged resume point.*delete it"):
            train_plan(plan, store)


def test_a_corpus_that_changed_under_a_run_is_an_error(study_file: Path, tmp_path: Path) -> None:
    corpus = tmp_path / "own.txt"
    corpus.write_text(
        (
            Plan.of(study_file).runs[0].data.path
            and Path(str(Plan.of(study_file).runs[0].data.path)).read_text()
        )
        or ""
    )
    plan = Plan.of(study_file, [f"data.path={corpus}"])
    with open_store(plan.root) as store:
        with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
            kill_at(patch, loop_module.Loop, "update", 6)
            train_plan(plan, store)
        corpus.write_text(
            corpus.read_text() + "\n\none more document that nobody has seen before\n"
        )
        with pytest.raises(LowrankError, match="changed since the run began"):
            train_plan(plan, store)


def test_two_processes_do_not_train_one_run(plan: Plan) -> None:
    import filelock

    with open_store(plan.root) as store:
        _, runs = register(store, plan)
        folder = plan.root / "runs" / plan.runs[0].folder
        folder.mkdir(parents=True)
        with (
            filelock.FileLock(folder / "train.lock"),
            pytest.raises(LowrankError, match="another process is training this run"),
        ):
            train_run(store, plan, MissingRun(*runs[0], "planned"), shown=False)


def curve(plan: Plan, root: Path) -> list[float]:
    with open_store(root) as store:
        train_plan(replace(plan, root=root), store)
        return [point.loss for point in store.find(records.TrainingLog)]


@pytest.mark.parametrize(
    ("override", "tolerance"),
    [
        ("training.micro_batch_size=1", 2e-6),
        ("training.gradient_checkpointing=true", 0.0),
        ("training.precision=bfloat16_autocast", 0.03),
        ("training.precision=pure_bfloat16", 0.1),
        ("training.loss_average=micro_batches", 2e-6),
        pytest.param(
            "training.compile=true",
            2e-6,
            marks=pytest.mark.skipif(not shutil.which("g++"), reason="no C++ compiler"),
        ),
    ],
)
def test_variations_that_must_not_move_the_curve(
    study_file: Path, tmp_path: Path, override: str, tolerance: float
) -> None:
    plain = curve(Plan.of(study_file), tmp_path / "plain")
    varied = curve(Plan.of(study_file, [override]), tmp_path / "varied")
    assert varied == pytest.approx(plain, rel=tolerance, abs=0.0)
    if "precision" in override:
        assert varied != plain


def test_compiling_without_a_compiler_is_one_sentence(
    study_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(
        ConfigError,
        match=r"training\.compile needs a C\+\+ compiler and 'no-such-compiler' is not installed",
    ):
        curve(Plan.of(study_file, ["training.compile=true"]), tmp_path)


def test_padded_rows_are_averaged_over_tokens(study_file: Path, tmp_path: Path) -> None:
    """With padding, accumulation by tokens does not depend on the micro-batch; the published mean
    of means does.
    """

    def first(*overrides: str) -> float:
        return curve(
            Plan.of(
                study_file,
                ["data.layout=padded", "data.max_length=160", "training.steps=1", *overrides],
            ),
            tmp_path / "-".join(overrides or ("all",)),
        )[0]

    assert first("training.micro_batch_size=1") == pytest.approx(first(), rel=1e-6)
    published = first("training.micro_batch_size=1", "training.loss_average=micro_batches")
    assert published != pytest.approx(first(), rel=1e-7)


def test_the_published_validation_loss_is_one_batch_short(study_file: Path, tmp_path: Path) -> None:
    def initial(override: str) -> float:
        plan = replace(
            Plan.of(study_file, ["training.steps=1", "training.evaluation_batch_size=4", override]),
            root=tmp_path / override,
        )
        with open_store(plan.root) as store:
            train_plan(plan, store)
            row = store.find(records.Checkpoint, step=0)[0]
            return row.validation_loss or math.nan

    exact, published = (
        initial("training.validation_average=tokens"),
        initial("training.validation_average=published"),
    )
    batches = math.ceil(math.ceil(500 / 15) / 4)
    assert published == pytest.approx(exact * batches / (batches + 1), rel=0.02)


def test_trackers_of_accelerate_on_request(study_file: Path) -> None:
    plan = Plan.of(study_file, ["training.trackers=[tensorboard]", "training.steps=2"])
    with open_store(plan.root) as store:
        assert train_plan(plan, store).status == "done"
    (events,) = plan.root.rglob("events.out.tfevents*")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    seen = EventAccumulator(str(events.parent)).Reload().Scalars("loss")
    assert [point.step for point in seen] == [1, 2]
    plan = Plan.of(study_file, ["training.trackers=[tensorbord]", "training.steps=3"])
    with (
        open_store(plan.root) as store,
        pytest.raises(LowrankError, match="not installed; did you mean 'tensorboard'"),
    ):
        train_plan(plan, store)
