"""Files that can be made again: a folder where a file is complete under its name, or absent.

Several processes may build the same thing at once (the ranks of a run, the workers of a study): a
lock lets one of them work and the others wait; whoever is killed leaves temporary files at worst,
which nobody reads.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from lowrank.errors import DataError
from lowrank.files import atomic_file
from lowrank.hashing import content_hash, file_sha256

if TYPE_CHECKING:
    import numpy as np

Json = dict[str, Any]
CHECK = "content_sha256"  # in every JSON file of a cache, over the rest of it
content_key = content_hash  # its name before lowrank.hashing


def cache_folder(given: Path | None = None) -> Path:
    """``given``, else ``$LOWRANK_CACHE``, else ``lowrank`` in the user's cache folder."""
    if given is not None:
        return Path(given)
    if own := os.environ.get("LOWRANK_CACHE"):
        return Path(own).expanduser()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "lowrank"


def write_atomically(path: Path, write: Callable[[IO[bytes]], None]) -> None:
    """Make or replace the file ``path`` with what ``write`` writes into it, whole or not at all.

    Missing folders are made. Raises :class:`DataError` where the disk refuses.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(path) as file:
            write(file)
    except OSError as error:
        raise DataError(
            f"cannot write {path} ({error.strerror or error}); free some space or name another folder in LOWRANK_CACHE"
        ) from error


def write_bytes(path: Path, body: bytes) -> None:
    """Make or replace the file ``path``, as :func:`write_atomically`."""
    write_atomically(path, lambda file: file.writelines([body]))


def write_json(path: Path, value: Json) -> None:
    """Write a small JSON file atomically, with a hash of itself."""
    write_bytes(path, json.dumps(value | {CHECK: content_hash(value)}, sort_keys=True).encode())


def read_json(path: Path) -> Json | None:
    """The object in ``path``, or None where there is none, or one of an older release, without a
    hash of itself.
    """
    try:
        value: Json = json.loads(path.read_bytes())
        check = value.pop(CHECK, None)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise DataError(
            f"the cached file {path} cannot be read ({error}); delete its folder and run again"
        ) from error
    if check is not None and check != content_hash(value):
        raise DataError(f"the cached file {path} is damaged; delete its folder and run again")
    return None if check is None else value


def hashes(paths: Iterable[Path]) -> dict[str, str]:
    """SHA-256 of files by name."""
    return {path.name: file_sha256(path) for path in paths}


def require(folder: Path, expected: dict[str, str]) -> None:
    """Raise unless the files of a cached folder are those of ``expected`` (:func:`hashes`)."""
    for name, sha256 in expected.items():
        try:
            intact = hashes([folder / name])[name] == sha256
        except OSError:
            intact = False
        if not intact:
            raise DataError(
                f"the cached file {folder / name} is damaged or missing; delete {folder} and run again"
            )


def write_array(path: Path, array: np.ndarray) -> str:
    """Write one ``.npy`` file atomically; returns the SHA-256 of the array's bytes."""
    import numpy as np

    write_atomically(path, lambda file: np.save(file, array, allow_pickle=False))
    return array_hash(array)


def array_hash(array: np.ndarray) -> str:
    """SHA-256 of an array's bytes."""
    import numpy as np

    return hashlib.sha256(np.ascontiguousarray(array).view(np.uint8).data).hexdigest()


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the lock of ``folder``; the operating system releases it when a process dies."""
    from filelock import FileLock

    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / "lock")
        lock.acquire()
    except OSError as error:
        raise DataError(
            f"cannot write to the cache folder {folder} ({error}); name another one in LOWRANK_CACHE"
        ) from error
    try:
        yield
    finally:
        lock.release()
