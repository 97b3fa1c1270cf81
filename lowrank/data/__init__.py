"""Turn text into rows of tokens: sources, splits, tokenizers, and a token store on disk.

Any training row can be read by its position, in any process.
"""

from lowrank.data.batch import UNSCORED, EvaluationSet, TokenBatch
from lowrank.data.dataset import Dataset, open_data, unigram_entropy
from lowrank.data.splits import SPLITS

__all__ = [
    "SPLITS",
    "UNSCORED",
    "Dataset",
    "EvaluationSet",
    "TokenBatch",
    "open_data",
    "unigram_entropy",
]
