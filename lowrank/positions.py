"""Where in a network a number was measured, in lenses and in the store alike."""

from __future__ import annotations

AGGREGATE_LAYER = -2  # over all layers
EMBEDDING_LAYER = -1  # the embedding output
ALL_MODULES = ""  # the aggregate over modules
