"""Text as rows of tokens: sources, splits, tokenizers, a token store on disk, and rows at any
position.
"""

from lowrank.data.batch import UNSCORED, Batch, EvaluationSet
from lowrank.data.dataset import Dataset, open_data, unigram_entropy
from lowrank.data.splits import SPLITS

__all__ = [
    "SPLITS",
    "UNSCORED",
    "Batch",
    "Dataset",
    "EvaluationSet",
    "open_data",
    "unigram_entropy",
]
