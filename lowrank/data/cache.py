"""A folder of files that can be rebuilt: each file is complete under its name, or absent.

Several processes may build the same file at once (the ranks of a run, the workers of a study): a
lock lets one of them work while the others wait. A killed process leaves at most temporary files,
which are never read.
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
CHECK = "content_sha256"  # key of the hash over the other keys, in every JSON file of a cache
content_key = content_hash  # its name before lowrank.hashing


def cache_folder(given: Path | None = None) -> Path:
    """Return ``given``, or else ``$LOWRANK_CACHE``, or else ``lowrank`` in the user's cache
    folder.
    """
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
    """Write a small JSON file atomically, together with a hash of its contents."""
    write_bytes(path, json.dumps(value | {CHECK: content_hash(value)}, sort_keys=True).encode())


def read_json(path: Path) -> Json | None:
    """Return the object in ``path``.

    Returns None if there is no such file, or if it has no hash of its contents (an older release).
    Raises :class:`DataError` if the file is damaged.
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
    """Return the SHA-256 of each file by name; raise OSError if one cannot be read."""
    return {path.name: file_sha256(path) for path in paths}


def require(folder: Path, expected: dict[str, str]) -> None:
    """Raise :class:`DataError` unless the files of a cached folder have the hashes in ``expected``.

    ``expected`` is what :func:`hashes` returned.
    """
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
    """Write one ``.npy`` file atomically; return the SHA-256 of the array's bytes."""
    import numpy as np

    write_atomically(path, lambda file: np.save(file, array, allow_pickle=False))
    return array_hash(array)


def array_hash(array: np.ndarray) -> str:
    """Return the SHA-256 of an array's bytes."""
    import numpy as np

    return hashlib.sha256(np.ascontiguousarray(array).view(np.uint8).data).hexdigest()


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the lock of ``folder``; the operating system releases it if the process dies."""
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
