"""Study files: layers, strictness and one-sentence errors."""

from __future__ import annotations

from pathlib import Path

import pytest

from lowrank.config import RunConfig, Training, load_study, resolve_runs
from lowrank.config.resolve import weight_fields
from lowrank.errors import ConfigError, UsageError

STUDY = """
name: tiny
methods: [full_rank]
scales: [nano]
seeds: [0, 1]
training: {steps: 40, learning_rate: 1e-3}
data: {max_length: 64}
metrics: [spectra]
"""


@pytest.fixture
def study_file(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.yaml"
    path.write_text(STUDY)
    return path


def runs(path: Path, *overrides: str) -> list[RunConfig]:
    return resolve_runs(load_study(path, overrides), str(path))


def test_later_layers_override_earlier_ones(study_file: Path) -> None:
    (run, _) = runs(
        study_file,
        "methods.full_rank.training.learning_rate=0.5",
        "methods.full_rank.scales.nano.training.steps=7",
    )
    assert run.training.learning_rate == 0.5  # the method's entry over the study's section
    assert run.training.steps == 7  # the method's scale over both
    assert run.training.min_lr_ratio == 0.1  # the preset's
    assert run.shape.hidden_size == 64


def test_exponents_without_a_dot_are_numbers(study_file: Path) -> None:
    assert runs(study_file)[0].training.learning_rate == pytest.approx(1e-3)


@pytest.mark.parametrize(
    ("override", "changes"),
    [
        ("training.learning_rate=2e-3", True),
        ("training.steps=41", True),
        ("training.micro_batch_size=4", True),
        ("training.warmup_steps=3", True),
        ("data.max_length=32", True),
        ("training.precision=bfloat16_autocast", True),
        ("training.warmup_steps=4", False),  # equal to warmup_fraction 0.1 of 40
        ("training.checkpoint_every=5", False),
        ("training.log_every=9", False),
        ("training.gradient_checkpointing=true", False),
        ("training.per_layer_updates=true", False),
        ("training.state_bits=8", True),
        ("training.trackers=[tensorboard]", False),
        ("data.validation_tokens=100", False),
        ("description=other", False),
        ("metrics=[]", False),
        ("seeds=[0, 1, 2]", False),
    ],
)
def test_the_hash_covers_what_changes_the_weights_and_nothing_else(
    study_file: Path, override: str, changes: bool
) -> None:
    assert (
        runs(study_file)[0].fingerprint() != runs(study_file, override)[0].fingerprint()
    ) is changes


def test_a_younger_field_at_its_default_keeps_stored_hashes() -> None:
    assert "state_bits" not in weight_fields(Training(learning_rate=1.0))
    assert weight_fields(Training(learning_rate=1.0, state_bits=8))["state_bits"] == 8


def test_seeds_make_different_runs(study_file: Path) -> None:
    first, second = runs(study_file)
    assert first.fingerprint() != second.fingerprint()
    assert (first.init_seed, second.init_seed, first.data_seed, second.data_seed) == (0, 1, 0, 1)


def test_a_scale_may_override_the_seeds(study_file: Path) -> None:
    found = runs(study_file, "scales={nano: {seeds: [3]}, micro: {}}")
    assert [(run.scale, run.seed) for run in found] == [("nano", 3), ("micro", 0), ("micro", 1)]


def test_a_data_seed_of_the_study_fixes_the_order_for_all_seeds(study_file: Path) -> None:
    assert {run.data_seed for run in runs(study_file, "data.seed=42")} == {42}


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("training.stepz=3", ("unknown key 'training.stepz'", "did you mean 'steps'")),
        ("training.steps=abc", ("training.steps", "integer", "'abc'")),
        ("training.steps=1.5", ("training.steps", "integer")),
        ("training.steps=true", ("training.steps", "integer")),
        ("seeds=[]", ("'seeds' must name at least one seed",)),
        ("scales.nano.seeds=[1, 1]", ("'scales.nano.seeds'", "each of them once", "[1, 1]")),
        ("training.steps=0", ("training.steps", "greater than 0")),
        ("training.betas=[0.9]", ("training.betas",)),
        ("data.layout=woven", ("data.layout", "'packed' or 'padded'")),
        ("data.sorce=x", ("unknown key 'data.sorce'", "did you mean 'source'")),
        ("nme=x", ("unknown key 'nme'", "did you mean 'name'")),
        ("name=a/b", ("key 'name'",)),
        ("methods.full_rankk={}", ("unknown method 'full_rankk'", "did you mean 'full_rank'")),
        ("scales.nanoo={}", ("unknown scale 'nanoo'", "did you mean 'nano'")),
        ("methods.full_rank.settings.rank=3", ("unknown key 'methods.full_rank.settings.rank'",)),
        (
            "methods.full_rank.scales.nano.training.step=3",
            ("methods.full_rank.scales.nano.training.step", "did you mean 'steps'"),
        ),
        ("metrics=[{lenz: spectra}]", ("unknown key 'metrics.0.lenz'", "did you mean 'lens'")),
        ("methods=[]", ("'methods'", "not empty")),
        ("preset=papre", ("key 'preset'",)),
        ("methods.galore={settings: {rank: 4096}}", ("rank 4096", "galore", "nano", "at most 64")),
    ],
)
def test_bad_input_names_file_key_and_fix(
    study_file: Path, override: str, words: tuple[str, ...]
) -> None:
    with pytest.raises(UsageError) as caught:
        runs(study_file, override)
    for word in words:
        assert word in str(caught.value)
    assert caught.value.exit_status == 2
    if not str(caught.value).startswith("unknown"):
        assert str(study_file) in str(caught.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("name: [", "line"),
        ("- a\n- b\n", "mapping"),
        ("name: x\nname: y\n", "given twice"),
        ("name: x\nmethods: [full_rank]\n", "scales"),
        ("name: x\nmethods: [full_rank, full_rank]\nscales: [nano]\n", "twice"),
    ],
)
def test_broken_files_are_errors(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "broken.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=words):
        load_study(path)
    with pytest.raises(ConfigError, match="no such study file"):
        load_study(tmp_path / "absent.yaml")


def test_variants_are_separate_runs_and_duplicates_are_errors(study_file: Path) -> None:
    found = runs(
        study_file,
        "methods.full_rank.variants={a: {training: {learning_rate: 0.1}}, b: {training: {learning_rate: 0.2}}}",
    )
    assert [(run.variant, run.training.learning_rate) for run in found if run.seed == 0] == [
        ("a", 0.1),
        ("b", 0.2),
    ]
    with pytest.raises(ConfigError, match="same recipe"):
        runs(study_file, "methods.full_rank.variants={a: {}, b: {}}")


def test_a_study_may_define_a_scale(study_file: Path) -> None:
    shape = "{hidden_size: 32, intermediate_size: 48, num_hidden_layers: 1, num_attention_heads: 2, rank: 8}"
    assert runs(study_file, "scales.mine={shape: " + shape + "}")[-1].shape.hidden_size == 32


def test_the_published_preset_has_the_published_recipe(study_file: Path) -> None:
    study = load_study(
        study_file, ["preset=published", "scales=[60m]", "training={}", "data={}", "seeds=[0]"]
    )
    (run,) = resolve_runs(study)
    training = run.training
    assert (training.steps, training.warmup, training.batch_size, training.learning_rate) == (
        10_000,
        1_000,
        512,
        1e-3,
    )
    assert (training.precision, training.extra_updates, training.schedule_lag) == (
        "pure_bfloat16",
        1,
        1,
    )
    assert (run.data.source, run.data.layout, run.data.max_length) == ("c4", "padded", 256)
    assert training.checkpoint_steps()[1] == 1_000
