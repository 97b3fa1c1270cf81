"""Files and folders that are written completely or not at all, and JSON that contains its hash.

Content is written under a temporary name beside its target (``.NAME.xxxxxxxx.tmp``), flushed to the
disk and renamed. A process that is killed leaves the target as it was, absent or old, and at worst
a temporary file that nobody reads. What the disk refuses is an OSError here; callers translate it
into an error that names the fix.
"""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from lowrank.hashing import file_sha256, spaced_hash

SEAL = "sha256"  # key of a JSON file under which a hash of its other keys stands


@contextmanager
def atomic_file(path: Path) -> Iterator[IO[bytes]]:
    """Yield a file to write to, which takes the place of ``path`` when the block ends without an
    error. The folder of ``path`` has to exist.

    Raises OSError where the disk refuses.
    """
    temporary = _temporary(path)
    try:
        with temporary.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        with suppress(OSError):
            temporary.unlink()


@contextmanager
def atomic_folder(folder: Path, *, replace: bool = False) -> Iterator[Path]:
    """Yield an empty folder to fill, which gets the name ``folder`` when the block ends without an
    error. Missing parents are made.

    ``replace`` puts it in the place of a folder that is there, whose content is deleted then;
    without it a folder that holds anything is an error. Raises OSError where the disk refuses.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary(folder)
    try:
        temporary.mkdir()
        yield temporary
        for place, _, names in os.walk(temporary):
            for name in names:
                sync(Path(place, name))
            sync(Path(place))
        if replace:
            exchange(temporary, folder)
        else:
            os.rename(temporary, folder)
        sync(folder.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")


def forget_unfinished(folder: Path) -> None:
    """Delete the temporary folders that killed processes left in the folders below ``folder``.

    Call this only while nobody else writes there: the temporary folder of a live process looks the
    same.
    """
    for path in folder.glob("*/.*.tmp"):
        shutil.rmtree(path, ignore_errors=True)


def sync(path: Path) -> None:
    """Flush a file or a folder to the disk; raise OSError where the disk refuses."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def exchange(new: Path, folder: Path) -> None:
    """Put ``new`` in the place of ``folder``, whose former content is at ``new`` afterwards.

    Linux swaps the two names in one step, so that the folder exists at every moment. Elsewhere the
    old folder is moved aside first, and moved back if the new one cannot take its place.
    """
    if not folder.exists():
        os.replace(new, folder)
    elif not swapped(new, folder):
        aside = new.with_name(new.name + "-old")
        os.replace(folder, aside)
        try:
            os.replace(new, folder)
        except OSError:
            os.replace(aside, folder)
            raise
        os.replace(aside, new)


def swapped(first: Path, second: Path) -> bool:
    """Exchange two names at once and return whether the system did (renameat2 with
    RENAME_EXCHANGE).
    """
    call = getattr(ctypes.CDLL(None), "renameat2", None)
    current_folder, exchange_flag = -100, 2
    return (
        call is not None
        and call(
            current_folder, os.fsencode(first), current_folder, os.fsencode(second), exchange_flag
        )
        == 0
    )


def file_entry(path: Path) -> dict[str, Any]:
    """Return the SHA-256 and the size in bytes of a file, as manifests list it."""
    return {"sha256": file_sha256(path), "bytes": path.stat().st_size}


def sealed(body: dict[str, Any], *, strict: bool = True) -> str:
    """Write ``body`` as JSON with a hash of itself, for :func:`unsealed`.

    Without ``strict``, NaN and Infinity may stand in it; with it they are a ValueError.
    """
    complete = body | {SEAL: _seal(body)}
    return json.dumps(complete, indent=1, sort_keys=True, allow_nan=not strict)


def unsealed(text: str) -> dict[str, Any]:
    """Read what :func:`sealed` wrote; a text without a hash is taken as it is.

    Raises ValueError where the content has changed since.
    """
    body: dict[str, Any] = json.loads(text)
    if (found := body.pop(SEAL, None)) is not None and found != _seal(body):
        raise ValueError("it does not match its own hash")
    return body


def _seal(body: dict[str, Any]) -> str:
    return spaced_hash(body, allow_nan=True)
