"""The published corpus: ``allenai/c4`` in English, streamed, with its validation part and T5
tokenizer.
"""

from __future__ import annotations

from pathlib import Path

from lowrank.config.schema import Data
from lowrank.data.sources._hub import HubText


class SOURCE(HubText):
    """C4 as in the published runs."""

    tokenizer = "t5-base"
    vocabulary_size = (
        32_000  # of the published models; T5's own hundred sentinels never occur in text
    )

    def __init__(self, config: Data, cache: Path) -> None:
        super().__init__(
            config.model_copy(update={"path": "allenai/c4", "subset": config.subset or "en"}), cache
        )
