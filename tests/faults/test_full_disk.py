"""A disk that is really full: one sentence, nothing half-written, and the same numbers when there
is room again.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lowrank import checkpoint
from lowrank.cli.main import run
from lowrank.store import Store, records, retry
from lowrank.store.copy import differences
from lowrank.work.writer import RunWriter


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Mount a file system of four megabytes in memory."""
    place = tmp_path_factory.mktemp("disk")
    if not shutil.which("mount"):
        pytest.skip("there is no command mount")
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", place],
        capture_output=True,
        text=True,
        check=False,
    )
    if mounted.returncode:
        pytest.skip(
            f"a small file system cannot be mounted here ({mounted.stderr.strip()}); it takes root"
        )
    yield place
    subprocess.run(["umount", "-l", place], check=True)


@pytest.fixture(scope="module")
def home(
    tmp_path_factory: pytest.TempPathFactory, disk: Path, tiny_study: Callable[[Path, Path], Path]
) -> Path:
    """A study whose folder is on the small disk, its cache elsewhere, and its rows as they should
    be.
    """
    home = tmp_path_factory.mktemp("home")
    tiny_study(home, disk / "out")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LOWRANK_CACHE", str(home / "cache"))
        assert (
            run(["study", "run", str(home / "tiny.yaml"), "--only", "train", "--only", "measure"])
            == 0
        )
    with Store.open(disk / "out" / "lowrank.db"):
        pass
    shutil.copytree(disk / "out", home / "expected")
    return home


ROWS_ONLY = ("--only", "train", "--only", "measure")


@pytest.mark.parametrize(
    ("room", "stages"),
    [(60_000, ROWS_ONLY), (480_000, ROWS_ONLY), (620_000, ROWS_ONLY), (1_000_000, ())],
)
def test_a_full_disk_is_reported_and_costs_nothing(
    disk: Path,
    home: Path,
    room: int,
    stages: tuple[str, ...],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("LOWRANK_CACHE", str(home / "cache"))
    monkeypatch.setattr(
        retry.with_retry, "__defaults__", (0.2,)
    )  # not the minute that a database may be away
    monkeypatch.setattr(RunWriter.__init__, "__defaults__", (0.2,))
    shutil.rmtree(disk / "out")
    filler, free = disk / "filler", os.statvfs(disk)
    filler.write_bytes(bytes(free.f_bavail * free.f_frsize - room))
    assert run(["study", "run", str(home / "tiny.yaml"), *stages]) == 1
    err = capsys.readouterr().err
    assert "Traceback" not in err
    assert any(word in err for word in ("disk is full", "No space left on device"))
    filler.unlink()
    saved = [path for path in (disk / "out").rglob("step_*") if path.parent.name == "checkpoints"]
    assert all(checkpoint.verify(path) for path in saved)
    assert run(["study", "run", str(home / "tiny.yaml"), *stages]) == 0, capsys.readouterr().err
    with (
        Store.open(home / "expected" / "lowrank.db") as expected,
        Store.open(disk / "out" / "lowrank.db") as found,
    ):
        assert [line for line in differences(expected, found) if not line.startswith("study")] == []
        assert found.count(records.WorkUnit) == 0
    assert stages or (disk / "out" / "report" / "index.html").exists()
    assert not list((disk / "out").rglob("*.tmp"))
