"""A flipped byte or a cut in any file of a study: one sentence that names it, or the same numbers
as without; never others.
"""

from __future__ import annotations

import fnmatch
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lowrank.cli.main import run
from lowrank.store import Store, records
from lowrank.store.copy import differences
from lowrank.train.session import Session

STEP = "out/runs/*/checkpoints/step_00000002"
# Every kind of file that a study has while a run is under way, and the number of bytes at which
# each is damaged: None, half of it.
KINDS: dict[str, bytes | None] = {
    "cache/surveys/*.json": b'"documents": ',
    "cache/tokenizers/*/lowrank.json": b'"size": ',
    "cache/tokenizers/*/tokenizer.json": b'"merges"',
    "cache/tokenizers/*/tokenizer_config.json": None,
    "cache/tokens/text-train-*/index.json": b'"tokens": ',
    "cache/tokens/text-train-*/00000.tokens.npy": None,
    "cache/tokens/text-train-*/00000.ends.npy": None,
    "cache/tokens/text-validation-*/index.json": b'"tokens": ',
    "cache/tokens/text-validation-*/00000.tokens.npy": None,
    "cache/tokens/text-validation-*/00000.ends.npy": None,
    f"{STEP}/config.json": b'"hidden_size": ',
    f"{STEP}/generation_config.json": None,
    f"{STEP}/manifest.json": b'"validation_loss": ',
    f"{STEP}/model.safetensors": None,
    f"{STEP}/tokenizer.json": None,
    f"{STEP}/tokenizer_config.json": None,
    "out/runs/*/resume/step_*/loop.json": b'"tokens_seen": ',
    "out/runs/*/resume/step_*/state.pt": None,
    "out/lowrank.db": None,
    "out/logs/lowrank.log": None,
}
EMPTY = [
    "*/lock",
    "*.lock",
    "*.db-wal",
    "*.db-shm",
]  # empty, or taken into the database when it was closed


@pytest.fixture(scope="module")
def interrupted(
    tmp_path_factory: pytest.TempPathFactory, tiny_study: Callable[[Path, Path], Path]
) -> Iterator[tuple[Path, Path]]:
    """Return a study whose only run was stopped midway (with a resume point), and the same study
    run to its end.
    """
    folder = tmp_path_factory.mktemp("damage")
    home, whole = folder / "home", folder / "whole"
    home.mkdir()
    tiny_study(home, home / "out")
    step = Session._make

    def stop(self: Session, update: int) -> None:
        if update == 4:
            raise KeyboardInterrupt
        step(self, update)

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LOWRANK_CACHE", str(home / "cache"))
        patch.setattr(Session, "_make", stop)
        assert run(["study", "run", str(home / "tiny.yaml"), "--only", "train"]) == 130
        patch.setattr(Session, "_make", step)
        with (
            Store.open(home / "out" / "lowrank.db") as store,
            store.connection(writes=True) as connection,
        ):
            connection.exec_driver_sql(
                "DELETE FROM checkpoint WHERE step = 2"
            )  # so that its manifest is all that is known of it
        shutil.copytree(home, whole)
        go_on(home)
        home.rename(folder / "finished")
        shutil.copytree(whole, home)
        yield home, folder / "finished"


def go_on(home: Path) -> int:
    return run(["study", "run", str(home / "tiny.yaml"), "--only", "train", "--only", "measure"])


@pytest.fixture
def home(interrupted: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Copy the interrupted study to the path that it knows, to be damaged."""
    home, _ = interrupted
    kept = home.with_name("kept")
    shutil.copytree(home, kept)
    monkeypatch.setenv("LOWRANK_CACHE", str(home / "cache"))
    yield home
    shutil.rmtree(home)
    kept.rename(home)


def test_every_kind_of_file_is_damaged_here(interrupted: tuple[Path, Path]) -> None:
    home, _ = interrupted
    files = [
        path.relative_to(home).as_posix() for path in sorted(home.rglob("*")) if path.is_file()
    ]
    own = [
        name
        for name in files
        if name not in ("corpus.txt", "tiny.yaml") and "step_00000000" not in name
    ]
    known = [*KINDS, *EMPTY]
    assert [name for name in own if not any(fnmatch.fnmatch(name, kind) for kind in known)] == []
    assert [kind for kind in KINDS if not fnmatch.filter(files, kind)] == []


def flip(path: Path, after: bytes | None) -> None:
    """Change one byte: the first digit after ``after`` into another digit, or the lowest bit in the
    middle.
    """
    body = bytearray(path.read_bytes())
    if after is None or not body[body.index(after) + len(after) :][:1].isdigit():
        place = len(body) // 2 if after is None else body.index(after) + len(after) + 8
        body[place] ^= 1
    else:
        place = body.index(after) + len(after)
        body[place] = ord("1") if body[place] != ord("1") else ord("2")
    path.write_bytes(bytes(body))


@pytest.mark.parametrize("how", ["flip", "cut"])
@pytest.mark.parametrize("kind", KINDS)
def test_damage_is_reported_or_does_no_harm(
    home: Path,
    interrupted: tuple[Path, Path],
    capsys: pytest.CaptureFixture[str],
    kind: str,
    how: str,
) -> None:
    (path,) = (
        found
        for found in home.rglob("*")
        if fnmatch.fnmatch(found.relative_to(home).as_posix(), kind)
    )
    if how == "cut":
        os.truncate(path, path.stat().st_size // 2)
    elif kind.endswith(".db"):  # a page: a bit inside a number is beyond what SQLite can notice
        body = bytearray(path.read_bytes())
        body[4096:8192] = bytes(4096)
        path.write_bytes(bytes(body))
    else:
        flip(path, KINDS[kind])
    status = go_on(home)
    err = capsys.readouterr().err
    assert "Traceback" not in err
    reported = [line for line in err.splitlines() if path.name in line or path.parent.name in line]
    if status:
        assert status == 1
        assert reported, err
    if not kind.endswith(".db"):
        with (
            Store.open(interrupted[1] / "out" / "lowrank.db") as expected,
            Store.open(home / "out" / "lowrank.db") as found,
        ):
            lines = [
                line
                for line in differences(expected, found)
                if not line.startswith(("run ", "work_unit", "provenance"))
            ]
            wrong = [line for line in lines if "only in the first store" not in line]
            assert wrong == []
            assert lines == [] or status == 1, lines
            assert found.count(records.Run, status="done") == 1 or status == 1
