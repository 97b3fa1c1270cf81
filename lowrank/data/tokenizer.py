"""Tokenizers, trained on a corpus or loaded by name or folder.

They are cached as folders and identified by a hash of their content.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import numpy.typing as npt

from lowrank.data.cache import Json, hashes, locked, read_json, require, write_json
from lowrank.errors import DataError
from lowrank.hashing import content_hash

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

SPECIAL = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
DEFAULT_VOCABULARY = 4096
SMALLEST_VOCABULARY = 256 + len(SPECIAL)  # every byte and the special tokens
TRAINING_CHARACTERS = 32_000_000  # maximum length of the text that a tokenizer is trained on
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Vocabulary:
    """A tokenizer on disk, with the facts that are needed without loading ``transformers``."""

    folder: Path
    hash: str
    size: int
    special: dict[str, int | None]

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerFast:
        """The Hugging Face tokenizer, as checkpoints save it."""
        from transformers import AutoTokenizer

        return cast(
            "PreTrainedTokenizerFast",
            AutoTokenizer.from_pretrained(self.folder, local_files_only=True),
        )

    @cached_property
    def _backend(self) -> Tokenizer:
        from tokenizers import Tokenizer

        backend = Tokenizer.from_file(str(self.folder / "tokenizer.json"))
        backend.no_padding()
        backend.no_truncation()
        backend.encode_special_tokens = (
            True  # a literal "</s>" in a text is text, never the end of a document
        )
        return backend

    @property
    def eos(self) -> int:
        """Id of the token that ends every document."""
        return int(self.special["eos_token_id"] or 0)

    @property
    def pad(self) -> int:
        """Id of the token that fills padded rows.

        Padding is recognised by the row's length, so the id may be that of another token.
        """
        pad = self.special["pad_token_id"]
        return self.eos if pad is None else pad

    def encode(self, documents: list[str]) -> list[npt.NDArray[np.int64]]:
        """Return the tokens of every document, each ending with one end-of-sequence token."""
        ids = [
            np.asarray(found.ids, dtype=np.int64)
            for found in self._backend.encode_batch_fast(documents)
        ]
        return [
            found if found.size and found[-1] == self.eos else np.append(found, self.eos)
            for found in ids
        ]


def train_tokenizer(
    texts: Iterable[str], corpus: Json, vocabulary_size: int, cache: Path
) -> Vocabulary:
    """Return a byte-level BPE trained on ``texts``, cached by ``corpus`` and the vocabulary size.

    ``corpus`` is a JSON description that determines the texts. Raises :class:`DataError` if
    ``vocabulary_size`` is smaller than the number of bytes and special tokens.
    """
    if vocabulary_size < SMALLEST_VOCABULARY:
        raise DataError(
            f"data.vocabulary_size is {vocabulary_size}; a trained tokenizer needs at least {SMALLEST_VOCABULARY}"
        )
    recipe = {
        "corpus": corpus,
        "kind": "byte-level BPE",
        "vocabulary_size": vocabulary_size,
        "characters": TRAINING_CHARACTERS,
    }
    folder = cache / "tokenizers" / content_hash(recipe)[:16]
    return _cached(folder) or _make_cached(folder, lambda: _train(texts, vocabulary_size))


def load_tokenizer(name: str, cache: Path) -> Vocabulary:
    """Return the tokenizer in a local folder, or of that name on the Hugging Face hub.

    Raises :class:`DataError` if it cannot be loaded, has no fast version, or has no end-of-sequence
    token.
    """
    path = Path(name).expanduser()
    if path.is_dir():
        stats = [
            (p.name, p.stat().st_size, p.stat().st_mtime_ns)
            for p in sorted(path.iterdir())
            if p.is_file()
        ]
        folder = cache / "tokenizers" / content_hash([str(path.resolve()), stats])[:16]
        return _cached(folder) or _make_cached(folder, lambda: _load(name, path, local=True))
    folder = cache / "tokenizers" / content_hash(name)[:16]
    return _cached(folder) or _make_cached(folder, lambda: _load(name, name, local=False))


def canonical_hash(tokenizer_json: str) -> str:
    """Return the SHA-256 of a ``tokenizer.json``, ignoring white space, key order, padding and
    truncation.
    """
    body = json.loads(tokenizer_json)
    body.pop("padding", None)
    body.pop("truncation", None)
    return content_hash(body)


def _train(texts: Iterable[str], vocabulary_size: int) -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    log.info("training a tokenizer of %d tokens", vocabulary_size)
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary_size,
        special_tokens=list(SPECIAL.values()),
        show_progress=False,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )
    backend.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=backend, **SPECIAL)


def _load(name: str, place: str | Path, local: bool) -> Any:
    from transformers import AutoTokenizer

    from lowrank.data.sources._hub import reachable

    try:
        found = AutoTokenizer.from_pretrained(place, local_files_only=local or not reachable())
    except Exception as error:  # transformers raises OSError, ValueError, KeyError and others
        fix = (
            "it must hold a tokenizer.json"
            if local
            else "connect, download it beforehand into HF_HOME, or give a folder"
        )
        raise DataError(
            f"the tokenizer '{name}' of data.tokenizer cannot be loaded; {fix}"
        ) from error
    if getattr(found, "backend_tokenizer", None) is None:
        raise DataError(
            f"the tokenizer '{name}' has no fast version (tokenizer.json); give another data.tokenizer"
        )
    if found.eos_token_id is None:
        raise DataError(
            f"the tokenizer '{name}' has no end-of-sequence token to separate documents; give another data.tokenizer"
        )
    return found


def _cached(folder: Path) -> Vocabulary | None:
    note = read_json(folder / "lowrank.json")
    if note is None:
        return None
    require(folder, note["files"])
    return Vocabulary(folder, note["hash"], note["size"], note["special"])


def _make_cached(folder: Path, make: Any) -> Vocabulary:
    """Make and save a tokenizer, unless another process did so first.

    The note ``lowrank.json`` is written last and marks the folder as complete.
    """
    with locked(folder):
        if found := _cached(folder):
            return found
        tokenizer = make()
        tokenizer.save_pretrained(folder)
        text = (folder / "tokenizer.json").read_text(encoding="utf-8")
        special = {
            f"{kind}_token_id": getattr(tokenizer, f"{kind}_token_id")
            for kind in ("bos", "eos", "pad")
        }
        files = hashes(
            path
            for path in folder.iterdir()
            if path.suffix == ".json" and path.name != "lowrank.json"
        )
        note = {
            "hash": canonical_hash(text),
            "size": len(tokenizer),
            "special": special,
            "files": files,
        }
        write_json(folder / "lowrank.json", note)
    found = _cached(folder)
    assert found is not None
    return found


def sample(documents: Iterable[str], characters: int | None) -> Iterator[str]:
    """Yield at most ``TRAINING_CHARACTERS`` of the documents.

    They are spread evenly if the total number of ``characters`` is known, else they are the first
    ones.
    """
    share = 1.0 if characters is None else min(1.0, TRAINING_CHARACTERS / max(1, characters))
    taken = 0
    for document in documents:
        if (
            share < 1.0
            and int.from_bytes(hashlib.sha256(document.encode()).digest()[8:16], "big")
            >= share * 2**64
        ):
            continue
        taken += len(document)
        if taken > TRAINING_CHARACTERS * 1.1:
            return
        yield document
