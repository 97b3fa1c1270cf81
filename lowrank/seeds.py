"""Random generators that are known by a key: the same key gives the same numbers in any process,
whatever has been drawn before.
"""

from __future__ import annotations

import hashlib

import torch


def generator(key: str) -> torch.Generator:
    """Return a new generator on the CPU whose seed is the first 56 bits of the SHA-256 of ``key``.

    Keys are texts such as ``"{seed}/{name}"``. Weights, directions and probes of stored results
    were drawn by this rule, so it never changes.
    """
    digest = hashlib.sha256(key.encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
