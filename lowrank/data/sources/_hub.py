"""Text of the Hugging Face hub, streamed file by file; without network from what an earlier run resolved or cached."""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import cached_property
from typing import Any

from lowrank.data.cache import Json, content_key, read_json, write_json
from lowrank.data.sources.base import Source
from lowrank.errors import DataError

_SECONDS = 5.0        # to wait for the hub before working without it
_CACHED_PIECES = 64   # pieces of a data set that lies complete on the disk, so that pieces can be shuffled


class HubText(Source):
    """Base of the hub's sources; a piece is one file of the data set, as ``datasets`` lists them."""

    streamed = True

    @cached_property
    def _resolved(self) -> Json:
        """Name, subset, revision and pieces of every part, from the hub or from the last time it was reached."""
        if not self.config.path:
            raise DataError(f"the source '{self.config.source}' needs data.path: the name of a data set on the Hugging Face hub")
        asked = {"name": self.config.path, "subset": self.config.subset, "revision": self.config.revision}
        note = self.cache / "hub" / f"{content_key(asked)[:16]}.json"
        revision = None if offline() else self._revision()
        known = read_json(note)
        if known is not None and revision in (None, known["revision"]):
            return known
        found = {**asked, "revision": revision, "streamed": revision is not None}
        found["pieces"] = {part: self._open(split, found).num_shards for part, split in self._parts(found).items()}
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
                    raise DataError(f"the {self.label} has no text field '{field}' (it has {', '.join(record)}); set data.text_field")
                yield text
        except DataError:
            raise
        except Exception as error:
            raise self._unreachable(error) from error

    def _part(self, part: str) -> Any:
        return self._open(self._parts(self._resolved)[part], self._resolved)

    def _revision(self) -> str | None:
        """The commit of the data set on the hub, None where the hub cannot be reached."""
        from huggingface_hub import HfApi
        from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

        name = str(self.config.path)
        try:
            return HfApi().dataset_info(name, revision=self.config.revision, timeout=_SECONDS).sha
        except GatedRepoError as error:
            raise DataError(f"the data set '{name}' is gated; accept its terms on the hub and set HF_TOKEN") from error
        except RevisionNotFoundError as error:
            raise DataError(f"the data set '{name}' has no revision '{self.config.revision}'; correct data.revision") from error
        except RepositoryNotFoundError as error:
            raise DataError(f"the Hugging Face hub has no data set '{name}' (or it is private); correct data.path") from error
        except Exception:  # no network, a proxy, a time-out: the libraries below raise what they like
            return None

    def _parts(self, found: Json) -> dict[str, str]:
        """Our parts and the data set's names for them."""
        splits = self._splits(found)
        if "train" not in splits:
            raise DataError(f"the {self.label} has no split 'train' (it has {', '.join(splits)}); choose another data.subset")
        return {"train": "train", **({"validation": "validation"} if "validation" in splits else {})}

    def _splits(self, found: Json) -> list[str]:
        if "pieces" in found:
            return list(found["pieces"])
        from datasets import get_dataset_split_names

        try:
            return list(get_dataset_split_names(found["name"], found["subset"], revision=found["revision"]))
        except Exception as error:
            raise self._unreachable(error) from error

    def _open(self, split: str, found: Json) -> Any:
        """One split as an iterable data set of ``datasets``."""
        import datasets

        datasets.disable_progress_bars()
        try:
            if found["streamed"]:
                return datasets.load_dataset(found["name"], found["subset"], split=split, revision=found["revision"], streaming=True)
            whole = datasets.load_dataset(found["name"], found["subset"], split=split, revision=self.config.revision)
            return whole.to_iterable_dataset(num_shards=min(_CACHED_PIECES, len(whole)))
        except Exception as error:
            raise self._unreachable(error) from error

    def _unreachable(self, error: Exception) -> DataError:
        why = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        return DataError(
            f"the {self.label} cannot be read without network ({why}); connect, or download it beforehand into HF_HOME, "
            "or set data.source: embedded"
        )


def offline() -> bool:
    """Whether the user asked the Hugging Face libraries to work without network."""
    return any(os.environ.get(name, "").upper() in {"1", "ON", "YES", "TRUE"} for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"))


def reachable() -> bool:
    """Whether the hub answers within a few seconds; False at once where the user asked for no network."""
    if offline():
        return False
    from huggingface_hub import get_session
    from huggingface_hub.constants import ENDPOINT

    try:
        get_session().head(ENDPOINT, timeout=_SECONDS)
    except Exception:
        return False
    return True
