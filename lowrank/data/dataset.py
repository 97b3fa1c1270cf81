"""A corpus as a run reads it: rows of tokens by position, fixed evaluation sets, and a
fingerprint.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from lowrank.config.schema import Data
from lowrank.data import sources
from lowrank.data import tokenizer as tokenizers
from lowrank.data.batch import UNSCORED, EvaluationSet, TokenBatch, rows_hash
from lowrank.data.cache import Json, cache_folder, read_json, write_json
from lowrank.data.rows import LAYOUTS, Rows
from lowrank.data.shards import Feed
from lowrank.data.sources.base import Position, Source
from lowrank.data.splits import SPLITS, Bounds, Survey, stream_bounds, survey
from lowrank.data.tokens import TokenStore
from lowrank.errors import DataError
from lowrank.hashing import content_hash

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

FORMAT = 1  # of splits and token stores; raised when their meaning changes
ENTROPY_TOKENS = 10_000_000


def open_data(config: Data, data_seed: int, *, cache: Path | None = None) -> Dataset:
    """Open the data set that ``config`` describes, with its training rows in the order of
    ``data_seed``.

    What is not cached in ``cache`` yet is read, split and tokenised.

    Raises:
        DataError: the text cannot be read, is empty, or does not fill one row; or the tokenizer
            cannot be loaded.
        UnknownNameError: there is no such source.
    """
    folder = cache_folder(cache)
    dataset = Dataset(config, data_seed, sources.get(config.source)(config, folder), folder)
    dataset.require(1)
    return dataset


class Dataset:
    """Rows of tokens of one corpus; open it with :func:`open_data`.

    Everything is a pure function of the configuration, the text and the seed, so that any process
    can read any position.
    """

    def __init__(self, config: Data, data_seed: int, source: Source, cache: Path) -> None:
        self.config, self.data_seed, self.source, self.cache = config, data_seed, source, cache
        self.survey: Survey | None = None if source.streamed else self._survey()
        self.bounds: Bounds = (
            self.survey.bounds
            if self.survey
            else stream_bounds(config.validation_fraction, source.own_validation)
        )
        self.fingerprint: str = content_hash(self._description())
        self.vocabulary = self._vocabulary()
        self.tokenizer_hash: str = self.vocabulary.hash
        self.vocabulary_size: int = self._vocabulary_size()
        self.special: dict[str, int | None] = self.vocabulary.special
        self._rows: dict[tuple[str, int], Rows] = {}

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerFast:
        """The Hugging Face tokenizer, which checkpoints include."""
        return self.vocabulary.tokenizer

    def require(self, rows: int) -> None:
        """Raise :class:`DataError` unless the training split holds at least ``rows`` rows."""
        self._split("train", self.data_seed).require(rows)

    def rows(self, first: int, count: int) -> TokenBatch:
        """Return training rows ``first`` … ``first + count - 1`` in the run's order.

        Positions continue from epoch to epoch.
        """
        rows = self._split("train", self.data_seed)
        return TokenBatch.of(*rows.layout.take(rows.numbers(first, count)))

    def scored_tokens(self, first: int, count: int) -> int:
        """Return the number of targets in :meth:`rows`, without building them."""
        rows = self._split("train", self.data_seed)
        return int(rows.layout.scored(rows.numbers(first, count)).sum())

    def evaluation_set(
        self,
        name: str,
        *,
        split: str,
        tokens: int | None = None,
        examples: int | None = None,
        seed: int = 0,
    ) -> EvaluationSet:
        """Return the first rows of ``split`` in the order of ``seed``.

        Give either ``examples``, a number of rows, or ``tokens``, the number of targets that the
        rows score at least. A smaller split is used completely; the record states the actual size.
        Sets that differ only in size share their first rows.

        Raises :class:`DataError` if the split does not fill one row, ValueError if both sizes are
        given.
        """
        if (tokens is None) == (examples is None):
            raise ValueError("an evaluation set is given by tokens or by examples, not by both")
        from lowrank.store import records  # imports SQLAlchemy

        rows = self._split(split, seed)
        numbers = (
            rows.numbers(0, examples, wrap=False)
            if examples is not None
            else _scoring(rows, tokens or 0)
        )
        if not len(numbers):
            raise DataError(
                f"the {split} split of the {self.source.label} does not fill one row of {self.config.max_length} tokens; "
                "raise data.validation_fraction, lower data.max_length or give more documents"
            )
        wide, mask = rows.layout.take(numbers)
        ids = wide.astype(np.int32)
        labels = None if mask is None else np.where(mask, ids, UNSCORED).astype(np.int32)
        record = records.EvaluationSet(
            name=name,
            dataset_fingerprint=self.fingerprint,
            split=split,
            seed=seed,
            examples=len(ids),
            tokens=int(rows.layout.scored(numbers).sum()),
            max_length=self.config.max_length,
            packing=self.config.layout == "packed",
            tokenizer_hash=self.tokenizer_hash,
            sha256=rows_hash(ids, labels),
        )
        return EvaluationSet(record, ids, labels)

    def describe(self) -> list[dict[str, object]]:
        """Return one row per split: documents, tokens, rows and characters per token.

        Of a streamed source, the figures cover what has been read so far.
        """
        found = []
        for split in SPLITS:
            rows = self._split(
                split, self.data_seed if split == "train" else self.config.evaluation_seed
            )
            rows.layout.ensure(0 if self.source.streamed else None)
            store = rows.layout.store
            ratio = store.index.characters / store.index.encoded if store.index.encoded else None
            found.append(
                {
                    "source": self.config.source,
                    "split": split,
                    "documents": store.documents,
                    "tokens": store.tokens,
                    "rows": rows.layout.available,
                    "characters_per_token": ratio,
                    "complete": store.index.complete,
                }
            )
        return found

    def token_counts(self, split: str) -> np.ndarray:
        """Return how often each token occurs in the split, (vocabulary_size,) int64.

        Of a streamed source, only the first ``ENTROPY_TOKENS`` tokens are counted.
        """
        rows = self._split(
            split, self.data_seed if split == "train" else self.config.evaluation_seed
        )
        store = rows.layout.store
        store.ensure(tokens=ENTROPY_TOKENS if self.source.streamed else None)
        end = min(store.tokens, ENTROPY_TOKENS) if self.source.streamed else store.tokens
        counts = np.zeros(self.vocabulary_size, dtype=np.int64)
        for first in range(0, end, 1 << 20):
            here = store.gather(np.arange(first, min(end, first + (1 << 20))))
            counts += np.bincount(here, minlength=self.vocabulary_size)
        return counts

    def _description(self) -> Json:
        text = {} if self.survey is None else {"text_sha256": self.survey.sha256}
        return {
            "format": FORMAT,
            "source": self.config.source,
            "origin": self.source.origin(),
            "text_field": self.config.text_field,
            "bounds": [self.bounds.validation, self.bounds.selection],
            **text,
        }

    def _survey(self) -> Survey:
        """Survey the text in one pass; the result is cached until the source's stamp changes."""
        fraction = self.config.validation_fraction
        key = content_hash(
            {
                "format": FORMAT,
                "source": self.config.source,
                "stamp": self.source.stamp(),
                "fraction": fraction,
            }
        )
        folder = self.cache / "surveys"
        if known := read_json(folder / f"{key[:16]}.json"):
            return Survey.of(known)
        found = survey(
            (document for document, _ in self.source.read("train", None) if document), fraction
        )
        if not found.documents:
            raise DataError(f"the {self.source.label} is empty; give a corpus with text")
        write_json(folder / f"{key[:16]}.json", found.json())
        return found

    def _documents(
        self, split: str, seed: int | None, start: Position
    ) -> Iterator[tuple[str, Position]]:
        """Yield the non-empty documents of a split, each with the position after it."""
        own = split == "validation" and self.source.own_validation
        for document, position in self.source.read("validation" if own else "train", seed, start):
            if document and (own or self.bounds.split(document) == split):
                yield document, position

    def _vocabulary(self) -> tokenizers.Vocabulary:
        name = self.config.tokenizer or self.source.tokenizer
        if name is not None:
            return tokenizers.load_tokenizer(name, self.cache)
        texts = (document for document, _ in self._documents("train", None, (0, 0)))
        size = self.config.vocabulary_size or tokenizers.DEFAULT_VOCABULARY
        sampled = tokenizers.sample(texts, self.survey.characters if self.survey else None)
        return tokenizers.train_tokenizer(sampled, self._description(), size, self.cache)

    def _vocabulary_size(self) -> int:
        if self.config.tokenizer is None and self.source.tokenizer is None:
            return self.vocabulary.size
        own = self.source.vocabulary_size if self.config.tokenizer is None else None
        return self.config.vocabulary_size or own or self.vocabulary.size

    def _split(self, split: str, seed: int) -> Rows:
        if split not in SPLITS:
            raise DataError(f"there is no split '{split}'; there are {', '.join(SPLITS)}")
        if (split, seed) not in self._rows:
            layout = LAYOUTS[self.config.layout](
                self._store(split, seed),
                self.config.max_length,
                self.vocabulary.eos,
                self.vocabulary.pad,
            )
            self._rows[split, seed] = Rows(
                layout, seed, self.source.streamed, f"{split} split of the {self.source.label}"
            )
        return self._rows[split, seed]

    def _store(self, split: str, seed: int) -> TokenStore:
        """Return the token store of a split.

        A streamed source has one store per seed, since its documents are shuffled before they are
        stored.
        """
        shuffle = (
            {"seed": seed, "buffer": self.config.shuffle_buffer} if self.source.streamed else {}
        )
        identity = {
            "format": FORMAT,
            "dataset": self.fingerprint,
            "tokenizer": self.tokenizer_hash,
            "special": self.special,
            "vocabulary_size": self.vocabulary_size,
            "split": split,
            **shuffle,
        }
        feed = Feed(
            read=lambda start: self._documents(split, seed if shuffle else None, start),
            encode=self.vocabulary.encode,
            vocabulary_size=self.vocabulary_size,
            buffer=self.config.shuffle_buffer if shuffle else 0,
            seed=seed,
            label=f"{split} split of the {self.source.label}",
        )
        return TokenStore(
            self.cache / "tokens" / f"{self.config.source}-{split}-{content_hash(identity)[:16]}",
            feed,
        )


def _scoring(rows: Rows, tokens: int) -> np.ndarray:
    """Return the first rows that together score at least ``tokens`` targets, or all rows."""
    count = max(1, tokens // max(1, rows.layout.max_length - 1))
    while True:
        numbers = rows.numbers(0, count, wrap=False)
        total = np.cumsum(rows.layout.scored(numbers))
        if len(numbers) < count or (len(total) and total[-1] >= tokens):
            return numbers[: int(np.searchsorted(total, tokens)) + 1]
        count *= 2


def unigram_entropy(dataset: Dataset, split: str = "train") -> float:
    """Return the entropy of the split's token frequencies, in nats per token.

    No model without context can have a lower loss.
    """
    counts = dataset.token_counts(split)
    p = counts[counts > 0] / counts.sum()
    return float(-(p * np.log(p)).sum())
