"""Text from the Hugging Face hub, streamed file by file.

Without a network, it is read from what an earlier run resolved or cached.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

from lowrank.data.cache import Json, read_json, write_json
from lowrank.data.sources.base import Source
from lowrank.errors import DataError
from lowrank.hashing import content_hash, file_sha256

_SECONDS = 5.0  # timeout of the hub before working without it
_CACHED_PIECES = 64  # pieces into which a complete copy on disk is divided for shuffling


class HubText(Source):
    """Base class of the hub's sources; a piece is one file of the data set, as ``datasets`` lists
    them.
    """

    streamed = True

    @cached_property
    def _folder(self) -> Path | None:
        """The local folder of the data set, if ``data.path`` names one."""
        path = Path(self.config.path or "").expanduser()
        return path.resolve() if self.config.path and path.is_dir() else None

    @cached_property
    def _resolved(self) -> Json:
        """Name, subset, revision and pieces per part, as first resolved; later runs of this cache
        reuse them.

        A study that is continued next month therefore keeps its text, and needs no network to know
        what it has.
        """
        if not self.config.path:
            raise DataError(
                f"the source '{self.config.source}' needs data.path: the name of a data set on the Hugging Face hub"
            )
        asked: Json = {
            "name": self.config.path,
            "subset": self.config.subset,
            "revision": self.config.revision,
        }
        if self._folder is not None:
            asked = {
                "name": str(self._folder),
                "subset": self.config.subset,
                "revision": None,
                "files": stats(self._folder),
            }
        note = self.cache / "hub" / f"{content_hash(asked)[:16]}.json"
        if known := read_json(note):
            return known
        if self._folder is not None:
            found: Json = {
                "revision": files_hash(self._folder),
                "streamed": True,
            }  # a folder is identified by its content
        else:
            revision = None if offline() else self._revision()
            found = {
                "name": self.config.path,
                "revision": revision,
                "streamed": revision is not None,
            }
        found["subset"] = self.config.subset
        with no_requests(unless=found["streamed"]):
            found["pieces"] = {
                part: self._open(part, found).num_shards for part in self._parts(found)
            }
            if not found["streamed"]:
                found["revision"] = (
                    self._whole("train", found).cache_files[0]["filename"].split(os.sep)[-2]
                )
        write_json(note, found)
        return found

    @property
    def own_validation(self) -> bool:
        return "validation" in self._resolved["pieces"]

    def origin(self) -> Json:
        return self._resolved

    def pieces(self, part: str) -> int:
        return int(self._resolved["pieces"][part])

    def documents(self, part: str, piece: int, skip: int) -> Iterator[str]:
        field = self.config.text_field
        try:
            for record in self._part(part).shard(self.pieces(part), piece).skip(skip):
                text = record.get(field)
                if not isinstance(text, str):
                    have = ", ".join(record)
                    raise DataError(
                        f"the {self.label} has no text field '{field}' (it has {have}); set data.text_field"
                    )
                yield text
        except DataError:
            raise
        except Exception as error:
            raise self._unreachable(error) from error

    def _part(self, part: str) -> Any:
        if part not in self._opened:
            self._opened[part] = self._open(part, self._resolved)
        return self._opened[part]

    @cached_property
    def _opened(self) -> dict[str, Any]:
        return {}

    def _revision(self) -> str | None:
        """Return the commit of the data set on the hub, or None if the hub cannot be reached.

        Raises :class:`DataError` if the hub does not have the data set or refuses access.
        """
        from huggingface_hub import HfApi
        from huggingface_hub.errors import (
            GatedRepoError,
            RepositoryNotFoundError,
            RevisionNotFoundError,
        )

        name = str(self.config.path)
        try:
            return HfApi().dataset_info(name, revision=self.config.revision, timeout=_SECONDS).sha
        except GatedRepoError as error:
            raise DataError(
                f"the data set '{name}' is gated; accept its terms on the hub and set HF_TOKEN"
            ) from error
        except RevisionNotFoundError as error:
            raise DataError(
                f"the data set '{name}' has no revision '{self.config.revision}'; correct data.revision"
            ) from error
        except RepositoryNotFoundError as error:
            raise DataError(
                f"the Hugging Face hub has no data set '{name}' (or it is private); correct data.path"
            ) from error
        except (
            Exception
        ):  # no network, a proxy, a timeout: the libraries below raise many kinds of errors
            return None

    def _parts(self, found: Json) -> list[str]:
        """Return which of the parts train and validation the data set has."""
        from datasets import get_dataset_split_names

        try:
            splits = list(
                get_dataset_split_names(self._place, found["subset"], revision=self._commit(found))
            )
        except Exception as error:
            raise self._unreachable(error) from error
        if "train" not in splits:
            raise DataError(
                f"the {self.label} has no split 'train' (it has {', '.join(splits)}); choose another data.subset"
            )
        return [part for part in ("train", "validation") if part in splits]

    @property
    def _place(self) -> str:
        """The name or folder by which ``datasets`` loads the data set."""
        return str(self._folder or self.config.path)

    def _commit(self, found: Json) -> str | None:
        """Return the commit to read; None for a folder and for a complete copy on disk."""
        return found["revision"] if found["streamed"] and self._folder is None else None

    def _open(self, part: str, found: Json) -> Any:
        """Return one part as an iterable data set of ``datasets``."""
        if not found["streamed"]:
            whole = self._whole(part, found)
            return whole.to_iterable_dataset(num_shards=min(_CACHED_PIECES, len(whole)))
        from datasets import load_dataset

        try:
            return load_dataset(
                self._place,
                found["subset"],
                split=part,
                revision=self._commit(found),
                streaming=True,
            )
        except Exception as error:
            raise self._unreachable(error) from error

    def _whole(self, part: str, found: Json) -> Any:
        """Return one part from the complete copy that was downloaded earlier."""
        import datasets

        level = datasets.logging.get_verbosity()
        datasets.logging.set_verbosity_error()  # else it warns at every step that it reads the copy
        try:
            with no_requests():
                return datasets.load_dataset(self._place, found["subset"], split=part)
        except Exception as error:
            raise self._unreachable(error) from error
        finally:
            datasets.logging.set_verbosity(level)

    def _unreachable(self, error: Exception) -> DataError:
        why = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        if self._folder is not None:
            return DataError(
                f"the folder '{self.config.path}' of data.path is not a readable data set ({why}); correct data.path"
            )
        if offline() or not reachable():
            return DataError(
                f"the {self.label} is on the Hugging Face hub, which cannot be reached; connect, download the data set beforehand "
                "into HF_HOME, or set data.source: embedded"
            )
        return DataError(
            f"the {self.label} cannot be read ({why}); correct data.path or data.subset"
        )


@contextmanager
def no_requests(unless: bool = False) -> Iterator[None]:
    """Keep the Hugging Face libraries from requesting, and retrying for half a minute, without a
    network.

    With ``unless``, requests are allowed.
    """
    if unless:
        yield
        return
    from datasets import config
    from huggingface_hub import constants

    before = config.HF_HUB_OFFLINE, constants.HF_HUB_OFFLINE
    config.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        config.HF_HUB_OFFLINE, constants.HF_HUB_OFFLINE = before


def stats(folder: Path) -> list[tuple[str, int, int]]:
    """Return (name, bytes, modification time) of the files of a folder, sorted, without hidden
    ones.
    """
    found = [
        (path.relative_to(folder).as_posix(), path) for path in folder.rglob("*") if path.is_file()
    ]
    return [
        (name, path.stat().st_size, path.stat().st_mtime_ns)
        for name, path in sorted(found)
        if not name.startswith(".")
    ]


def files_hash(folder: Path) -> str:
    """Return the SHA-256 over names and contents of the files of a folder."""
    digest = hashlib.sha256()
    for name, size, _ in stats(folder):
        digest.update(f"{name}\0{size}\0{file_sha256(folder / name)}\0".encode())
    return digest.hexdigest()


def offline() -> bool:
    """Return whether the user asked the Hugging Face libraries to work offline."""
    return any(
        os.environ.get(name, "").upper() in {"1", "ON", "YES", "TRUE"}
        for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE")
    )


def reachable() -> bool:
    """Return whether the hub answers within a few seconds; False at once in offline mode."""
    if offline():
        return False
    from huggingface_hub import get_session
    from huggingface_hub.constants import ENDPOINT

    try:
        get_session().head(ENDPOINT, timeout=_SECONDS)
    except Exception:
        return False
    return True
