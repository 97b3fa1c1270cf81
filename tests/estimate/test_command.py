"""``lowrank estimate``: selection, options, formats, errors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lowrank import methods
from lowrank.cli import main

KEYS = {
    "parameters_total",
    "parameters_trainable",
    "weight_bytes",
    "gradient_bytes",
    "optimizer_state_bytes",
    "activation_bytes",
    "peak_bytes",
    "flops_per_token",
    "checkpoint_bytes",
}


@pytest.fixture
def ask(capsys: pytest.CaptureFixture[str]) -> Any:
    def call(*arguments: str, status: int = 0) -> Any:
        assert main.run(["estimate", *arguments]) == status
        captured = capsys.readouterr()
        return (
            captured.err
            if status
            else json.loads(captured.out)
            if "--json" in arguments
            else captured.out
        )

    return call


def test_one_method_at_one_published_scale(ask: Any) -> None:
    (row,) = ask(
        "--method",
        "galore",
        "--scale",
        "60m",
        "--micro-batch-size",
        "2",
        "--max-length",
        "32",
        "--json",
    )
    assert row.keys() >= KEYS
    assert (row["vocabulary_size"], row["rank"], row["micro_batch_size"]) == (32_000, 128, 2)
    assert (row["parameters_total"], row["weight_bytes"], row["gradient_bytes"]) == (
        58_073_600,
        4 * 58_073_600,
        4 * 58_073_600,
    )


def test_all_methods_when_none_is_named(ask: Any) -> None:
    rows = ask(
        "--scale",
        "nano",
        "--micro-batch-size",
        "1",
        "--max-length",
        "8",
        "--vocabulary-size",
        "100",
        "--json",
    )
    assert [row["method"] for row in rows] == methods.names()
    assert {row["vocabulary_size"] for row in rows} == {100}


def test_options_change_the_configuration(ask: Any) -> None:
    base = [
        "--method",
        "full_rank",
        "--scale",
        "nano",
        "--vocabulary-size",
        "100",
        "--max-length",
        "64",
        "--json",
    ]
    (plain,), (half,), (saving,), (pair,), (wide,) = (
        ask(*base, *more)
        for more in (
            [],
            ["--precision", "pure_bfloat16"],
            ["--gradient-checkpointing"],
            ["--micro-batch-size", "3"],
            ["--set", "methods.full_rank.training.batch_size=16"],
        )
    )
    assert 2 * half["weight_bytes"] == plain["weight_bytes"]
    assert saving["activation_bytes"] < plain["activation_bytes"] / 3
    assert (plain["micro_batch_size"], pair["micro_batch_size"], wide["micro_batch_size"]) == (
        8,
        3,
        16,
    )
    assert pair["activation_bytes"] < plain["activation_bytes"] < wide["activation_bytes"]


def test_the_published_preset_is_pure_bfloat16_on_c4(ask: Any) -> None:
    (row,) = ask(
        "--method",
        "cola",
        "--scale",
        "nano",
        "--preset",
        "published",
        "--micro-batch-size",
        "1",
        "--json",
    )
    assert (row["precision"], row["vocabulary_size"], row["max_length"]) == (
        "pure_bfloat16",
        32_000,
        256,
    )


def test_runs_of_a_study_file_once_for_all_seeds(ask: Any, tmp_path: Path) -> None:
    file = tmp_path / "study.yaml"
    file.write_text(
        "name: s\nmethods: {full_rank: {}, cola: {variants: {thin: {settings: {rank: 2}}, thick: {settings: {rank: 9}}}}}\n"
        "scales: [nano]\nseeds: [0, 1, 2]\ndata: {vocabulary_size: 300, max_length: 8}\n"
    )
    rows = ask(str(file), "--json")
    assert [(row["method"], row["variant"], row["rank"]) for row in rows] == [
        ("full_rank", "", None),
        ("cola", "thin", 2),
        ("cola", "thick", 9),
    ]
    assert {row["vocabulary_size"] for row in rows} == {300}
    table = ask(str(file), "--method", "cola")
    assert "thick" in table
    assert "peak_mib" in table
    assert "full_rank" not in table


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--method", "galor"], "galore"),
        (["--scale", "61m"], "60m"),
        (["--method", "cola", "--scale", "nano", "--set", "methods.cola.settings.rnk=3"], "rank"),
        (
            ["--method", "cola", "--scale", "nano", "--set", "methods.cola.settings.rank=300"],
            "larger than a layer",
        ),
        (["no-such-file.yaml"], "no such study file"),
        (
            ["--method", "cola", "--scale", "nano", "--set", "data.tokenizer=mine"],
            "--vocabulary-size",
        ),
    ],
)
def test_errors_are_one_sentence(ask: Any, arguments: list[str], words: str) -> None:
    message = ask(*arguments, status=2)
    assert words in message
    assert "Traceback" not in message
