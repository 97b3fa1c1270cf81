"""Full rank: AdamW on a plain LLaMA, the baseline of every comparison."""

from __future__ import annotations

from lowrank.methods.base import Method


class FullRank(Method):
    """AdamW with decoupled weight decay (arXiv:1711.05101); all weights are dense and trained."""

    family = "baseline"
    title = "Full rank"
    summary = "AdamW on dense weights"
    source = "arXiv:1711.05101"


METHOD = FullRank
