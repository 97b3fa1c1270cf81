"""Any text data set of the Hugging Face hub: ``data.path`` names it, ``data.subset`` its
configuration.
"""

from __future__ import annotations

from lowrank.data.sources._hub import HubText


class SOURCE(HubText):
    """A data set of the hub; a tokenizer is trained unless ``data.tokenizer`` names one."""
