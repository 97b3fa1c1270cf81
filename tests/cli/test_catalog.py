"""``lowrank methods NAME`` and ``lowrank metrics NAME``: one in full, as text and as JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lowrank import methods, metrics
from lowrank.cli.details import allowed, settings_of
from lowrank.cli.main import run

FOLDER = Path(methods.__file__).parent
BUILT_IN = sorted(
    path.stem for path in FOLDER.glob("*.py") if path.stem not in ("__init__", "base")
)


def shown(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert run(words) == 0
    return capsys.readouterr().out


def as_json(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
    (row,) = json.loads(shown(capsys, *words, "--json"))
    return dict(row)


@pytest.mark.parametrize("name", BUILT_IN)
def test_a_method_shows_every_setting_with_its_meaning(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    text, row, cls = (
        shown(capsys, "methods", name),
        as_json(capsys, "methods", name),
        methods.get(name),
    )
    assert [detail["setting"] for detail in row["details"]] == list(cls.Settings.model_fields)
    for detail in row["details"]:
        assert len(detail["meaning"]) > 10, detail
        assert all(
            part in text for part in (detail["setting"], detail["meaning"], detail["allowed"])
        )
        assert row["settings"][detail["setting"]] == detail["default"]
    assert all(fact in text for fact in (cls.family, cls.source, cls.summary))


def test_what_is_listed_is_part_of_what_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    for listed in json.loads(shown(capsys, "methods", "--json")):
        row = as_json(capsys, "methods", listed["method"])
        assert listed.items() <= row.items()
    for listed in json.loads(shown(capsys, "metrics", "--json"))[::7]:
        row = as_json(capsys, "metrics", listed["metric"])
        assert listed.items() <= row.items()


def test_a_metric_shows_its_definition_settings_and_presets(
    capsys: pytest.CaptureFixture[str],
) -> None:
    text = shown(capsys, "metrics", "stable_rank_w")
    lens = metrics.get("spectra")
    (info,) = (info for info in lens.metrics if info.name == "stable_rank_w")
    for fact in (info.definition, info.unit, info.range, info.source, "spectra"):
        assert fact in text
    lines = dict(line.split("  ", 1) for line in text.splitlines() if "  " in line)
    assert lines["revision"].strip() == str(lens.revision)
    assert lines["preset exact"].strip() == "the defaults"
    assert "skip_initial=true" in lines["preset published"]
    assert lines["threshold"].split() == ["0.1", "number", ">", "0"]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["methods", "galor"], "unknown method 'galor'; did you mean 'galore'?"),
        (["metrics", "stable_rank"], "unknown metric 'stable_rank'; did you mean 'stable_rank_"),
        (["metrics", "ccbh", "--lens", "spectra"], "unknown metric 'ccbh'"),
        (["metrics", "spectra"], "'spectra' is a lens, not a metric"),
    ],
)
def test_an_unknown_name_is_one_sentence_and_exit_status_2(
    words: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(words) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith(f"Error: {sentence}")
    assert captured.err.count("\n") == 1


def test_allowed_values_in_words() -> None:
    properties = {
        d["setting"]: d["allowed"] for d in settings_of(metrics.get("landscape").Settings)
    }
    assert properties["directions"] == "integer > 0 or auto"
    assert properties["examples"] == "integer > 0 or none"
    assert properties["components"] == "list of: integer > 0"
    assert properties["grid"] == "mapping"
    assert allowed({"type": "number", "minimum": 0, "exclusiveMaximum": 1}) == "number >= 0 and < 1"
    assert allowed({}) == "any"
