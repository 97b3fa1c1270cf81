"""Files and folders are whole or not there, whatever happens while they are written."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lowrank import checkpoint, files
from lowrank.cli import output
from lowrank.data import cache
from lowrank.errors import DataError, DiskError, LowrankError

# Writes a target as argv says, and is killed at its n-th call that reaches the disk.
VICTIM = """
import os, signal, sys
from pathlib import Path
from lowrank import files
kind, target, last = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
calls = 0
def deadly(call):
    def called(*arguments):
        global calls
        if calls == last:
            os.kill(os.getpid(), signal.SIGKILL)
        calls += 1
        return call(*arguments)
    return called
for name in ("fsync", "rename", "replace"):
    setattr(os, name, deadly(getattr(os, name)))
files.swapped = deadly(files.swapped)
if kind == "file":
    with files.atomic_file(target) as file:
        file.write(b"new")
        deadly(file.flush)()
else:
    with files.atomic_folder(target, replace=kind == "replaced") as folder:
        (folder / "a").write_text("new")
        deadly((folder / "below").mkdir)()
        (folder / "below" / "b").write_text("new")
"""
KINDS = ("file", "folder", "replaced")
CASES = [("file", None), ("file", "old"), ("folder", None), ("replaced", None), ("replaced", "old")]


def write(kind: str, target: Path, text: str) -> None:
    """Write ``text`` as the victim writes "new"."""
    if kind == "file":
        with files.atomic_file(target) as file:
            file.write(text.encode())
        return
    with files.atomic_folder(target, replace=kind == "replaced") as folder:
        (folder / "a").write_text(text)
        (folder / "below").mkdir()
        (folder / "below" / "b").write_text(text)


def content(target: Path) -> str | None:
    """The text of a target that is whole, None where there is none."""
    if target.is_file():
        return target.read_text()
    if not target.exists():
        return None
    found = {path.relative_to(target).as_posix() for path in target.rglob("*")}
    assert found == {"a", "below", "below/b"}
    a, b = (target / "a").read_text(), (target / "below" / "b").read_text()
    assert a == b
    return a


def beside(target: Path) -> list[str]:
    """Names in the folder of a target but its own."""
    return sorted(path.name for path in target.parent.iterdir() if path != target)


@pytest.mark.parametrize(("kind", "old"), CASES)
def test_a_kill_at_any_moment_leaves_old_content_or_new(
    kind: str, old: str | None, tmp_path: Path
) -> None:
    seen: list[str | None] = []
    for calls in range(20):
        target = tmp_path / str(calls) / "target"
        target.parent.mkdir()
        if old:
            write(kind, target, old)
        arguments = [sys.executable, "-c", VICTIM, kind, str(target), str(calls)]
        ended = subprocess.run(arguments, check=False).returncode
        if ended == 0:
            break
        assert ended == -signal.SIGKILL
        seen.append(content(target))
        left = beside(target)
        assert all(name.startswith(".target.") and name.endswith(".tmp") for name in left)
        write("file" if kind == "file" else "replaced", target, "again")
        assert content(target) == "again"
        files.forget_unfinished(tmp_path)
        assert [name for name in beside(target) if kind != "file"] == []
    # at least: within the block, before the flush, before the rename
    assert len(seen) >= 3
    assert seen[:3] == [old] * 3
    assert set(seen) <= {old, "new"}
    assert content(target) == "new"


@pytest.mark.parametrize(("kind", "old"), CASES)
def test_an_error_at_any_moment_leaves_old_content_or_new_and_nothing_else(
    kind: str, old: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target, failures = tmp_path / "target", 0
    for last in range(20):
        if target.is_dir():
            files.shutil.rmtree(target)
        target.unlink(missing_ok=True)
        if old:
            write(kind, target, old)
        calls, renamed = 0, False

        def failing(call: Callable[..., Any], names: bool, last: int = last) -> Callable[..., Any]:
            def called(*arguments: Any) -> Any:
                nonlocal calls, renamed
                calls += 1
                if calls > last:
                    raise OSError(errno.ENOSPC, "No space left on device")
                renamed = renamed or names
                return call(*arguments)

            return called

        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", failing(os.fsync, False))
            patch.setattr(os, "rename", failing(os.rename, True))
            patch.setattr(os, "replace", failing(os.replace, True))
            patch.setattr(files, "swapped", failing(files.swapped, True))
            try:
                write(kind, target, "new")
            except OSError:
                failures += 1
            else:
                break
        assert content(target) == ("new" if renamed else old)
        assert beside(target) == []
    assert failures >= 2
    assert content(target) == "new"


@pytest.mark.parametrize("kind", KINDS)
def test_an_exception_within_the_block_leaves_nothing(kind: str, tmp_path: Path) -> None:
    target = tmp_path / "target"
    place: Any = files.atomic_file(target) if kind == "file" else files.atomic_folder(target)
    with pytest.raises(KeyboardInterrupt), place as inside:
        if kind == "file":
            inside.write(b"half")
        else:
            (inside / "a").write_text("half")
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


def test_a_folder_is_replaced_only_on_request(tmp_path: Path) -> None:
    write("folder", tmp_path / "target", "old")
    with pytest.raises(OSError, match="not empty"):
        write("folder", tmp_path / "target", "new")
    assert content(tmp_path / "target") == "old"
    write("replaced", tmp_path / "target", "new")
    assert content(tmp_path / "target") == "new"
    assert beside(tmp_path / "target") == []


def test_without_the_system_call_the_old_folder_comes_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target, replace = tmp_path / "target", os.replace
    write("folder", target, "old")
    monkeypatch.setattr(files, "swapped", lambda first, second: False)
    write("replaced", target, "middle")
    assert content(target) == "middle"

    def refused(source: Path, place: Path) -> None:
        if place == target and source.name.endswith(".tmp"):
            raise OSError(errno.EIO, "Input/output error")
        replace(source, place)

    monkeypatch.setattr(os, "replace", refused)
    with pytest.raises(OSError, match="Input/output"):
        write("replaced", target, "new")
    assert content(target) == "middle"
    assert beside(target) == []


def test_the_users_mask_decides_who_may_read(tmp_path: Path) -> None:
    mask = os.umask(0o027)
    try:
        write("file", tmp_path / "file", "x")
        write("folder", tmp_path / "folder", "x")
    finally:
        os.umask(mask)
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o640
    assert (tmp_path / "folder").stat().st_mode & 0o777 == 0o750


def full(*_: Any) -> None:
    """Stand in for a system call on a full disk."""
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize(
    ("write_it", "error", "message"),
    [
        (
            lambda path: checkpoint.write_folder(path, lambda folder: (folder / "a").touch()),
            DiskError,
            "{}: cannot be written (No space left on device); free the disk or fix the permissions, "
            "then call the same command again",
        ),
        (
            lambda path: cache.write_json(path, {"a": 1}),
            DataError,
            "cannot write {} (No space left on device); free some space or name another folder in LOWRANK_CACHE",
        ),
        (
            lambda path: output.write_file(path, b"rows"),
            LowrankError,
            "{} cannot be written: No space left on device",
        ),
    ],
)
def test_every_caller_reports_what_the_disk_refused(
    write_it: Callable[[Path], None],
    error: type[LowrankError],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(LowrankError) as caught:
        write_it(tmp_path / "target")
    assert type(caught.value) is error
    assert str(caught.value) == message.format(tmp_path / "target")
    assert list(tmp_path.iterdir()) == []


def test_a_sealed_text_that_was_changed_is_an_error() -> None:
    text = files.sealed({"step": 3, "loss": float("nan")}, strict=False)
    assert files.unsealed(text)["step"] == 3
    with pytest.raises(ValueError, match="its own hash"):
        files.unsealed(text.replace('"step": 3', '"step": 4'))
    with pytest.raises(ValueError, match="not JSON compliant"):
        files.sealed({"loss": float("nan")})
    assert files.unsealed('{"step": 4}') == {"step": 4}  # written before there were seals
