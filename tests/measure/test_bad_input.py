"""Bad input on the command line: one sentence that names it, exit status 1, and everything else is
measured.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from lowrank import checkpoint
from lowrank.cli.main import run
from lowrank.data.dataset import Dataset
from lowrank.store import records

METRICS = """
- {lens: spectra, variants: [main], settings: {distributions: false}}
- {lens: interpolation, settings: {points: 3, kinds: [methods], align: false}}
- {lens: activations}
"""


def damaged(study: Any, change: Callable[[dict[str, torch.Tensor]], None], **config: Any) -> None:
    """Galore's last checkpoint with other weights (and fields of its configuration); manifest and
    row agree with them.
    """
    row, path = study.store.select(
        "SELECT c.id, c.path FROM checkpoint c JOIN run r ON r.id = c.run_id WHERE r.method = 'galore' AND c.step = 20"
    )[1][0]
    folder = study.root / path
    loaded, state = checkpoint.load(folder), load_file(folder / checkpoint.WEIGHTS)
    change(state)
    loaded.model.config.update(config)
    shutil.rmtree(folder)
    saved = checkpoint.save(folder, loaded.model, replace(loaded.manifest, files={}), state=state)
    with study.store.connection(writes=True) as connection:
        connection.exec_driver_sql(
            "UPDATE checkpoint SET sha256 = ? WHERE id = ?", (saved.weights_sha256, row)
        )


def not_finite(study: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def change(state: dict[str, torch.Tensor]) -> None:
        state["model.layers.1.self_attn.q_proj.weight"][0, 0] = float("nan")

    damaged(study, change)


def another_shape(study: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def change(state: dict[str, torch.Tensor]) -> None:
        for name, W in list(state.items()):
            if ".mlp." in name:
                dim = 1 if "down" in name else 0
                state[name] = torch.cat((W, W.narrow(dim, 0, 8)), dim).contiguous()

    damaged(study, change, intermediate_size=48)


def another_tokenizer(study: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    found = study.store.first(records.Run, method="galore")
    study.store.update(records.Run, found.id, tokenizer_hash="another")


def no_text(study: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    (study.file.parent / "corpus.txt").write_text("a")


def no_token(study: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = Dataset.evaluation_set

    def empty(self: Dataset, *given: Any, **named: Any) -> Any:
        found = whole(self, *given, **named)
        return replace(found, record=replace(found.record, tokens=0))

    monkeypatch.setattr(Dataset, "evaluation_set", empty)


def no_reference(study: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    found = study.store.first(records.Run, method="full_rank")
    study.store.update(records.Run, found.id, status="cancelled")


SHAPES = "the two checkpoints have different shapes (model.layers.0.mlp.down_proj.weight); compare models of one shape"


@pytest.mark.parametrize(
    ("spoil", "words", "counts"),
    [
        (
            not_finite,
            "the weight 'model.layers.1.self_attn.q_proj.weight' is not finite; the run diverged",
            (4, 14),
        ),
        (another_shape, SHAPES, (2, 16)),  # hidden states are of one width still
        (
            another_tokenizer,
            "its tokenizer is not that of the evaluation set; put it into a separate study",
            (5, 13),
        ),
        (no_text, "holds 0 rows of 16 tokens, fewer than the 1 needed; give more text", (8, 10)),
        (
            no_token,
            "the evaluation set of source 'text' scores no token; give documents of two tokens or more",
            (8, 10),
        ),
        (no_reference, "there is no full_rank checkpoint of scale tiny, seed 0, step 10", (3, 5)),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_bad_input_is_reported_and_the_rest_is_measured(
    spoil: Callable[..., None],
    words: str,
    counts: tuple[int, int],
    make_study: Callable[..., Any],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tiny = make_study("full_rank", "galore", metrics=METRICS)
    spoil(tiny, monkeypatch)
    file = tiny.file.with_name("cli.yaml")
    file.write_text(tiny.file.read_text() + f"output: {tiny.root}\n")
    assert run(["measure", str(file), "--db", str(tiny.store.url_masked), "--json"]) == 1
    shown = capsys.readouterr()
    sentences = [line for line in shown.err.splitlines() if line.startswith("failed: ")]
    assert "Traceback" not in shown.err
    assert any(words in sentence for sentence in sentences), sentences
    assert (len(sentences), json.loads(shown.out)[0]["units"]) == counts
    assert all(
        len(re.findall("galore-tiny-s0 step 20", sentence)) <= 2 for sentence in sentences
    ), "the checkpoint is named once"
