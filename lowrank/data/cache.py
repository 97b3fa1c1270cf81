"""Files that can be made again: a folder where a file is complete under its name, or absent.

Several processes may build the same thing at once (the ranks of a run, the workers of a study): a
lock lets one of them work and the others wait; whoever is killed leaves temporary files at worst,
which nobody reads.
"""

from __future__ import annotations

import hashlib
import json
import os
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from lowrank.errors import DataError

if TYPE_CHECKING:
    import numpy as np

Json = dict[str, Any]
CHECK = "content_sha256"  # in every JSON file of a cache, over the rest of it


def cache_folder(given: Path | None = None) -> Path:
    """``given``, else ``$LOWRANK_CACHE``, else ``lowrank`` in the user's cache folder."""
    if given is not None:
        return Path(given)
    if own := os.environ.get("LOWRANK_CACHE"):
        return Path(own).expanduser()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "lowrank"


def content_key(value: Any) -> str:
    """SHA-256 of the canonical JSON of ``value``."""
    return hashlib.sha256(
        json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()
    ).hexdigest()


def write_atomically(path: Path, write: Callable[[IO[bytes]], None]) -> None:
    """Write ``path`` under a temporary name, flush it to the disk and rename it."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise DataError(
            f"cannot write {path} ({error.strerror or error}); free some space or name another folder in LOWRANK_CACHE"
        ) from error
    finally:
        with suppress(OSError):
            temporary.unlink()


def write_json(path: Path, value: Json) -> None:
    """Write a small JSON file atomically, with a hash of itself."""
    body = json.dumps(value | {CHECK: content_key(value)}, sort_keys=True)
    write_atomically(path, lambda file: file.writelines([body.encode()]))


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
    if check is not None and check != content_key(value):
        raise DataError(f"the cached file {path} is damaged; delete its folder and run again")
    return None if check is None else value


def hashes(paths: Iterable[Path]) -> dict[str, str]:
    """SHA-256 of files by name."""
    found = {}
    for path in paths:
        with path.open("rb") as file:
            found[path.name] = hashlib.file_digest(file, "sha256").hexdigest()
    return found


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
