"""Any text data set on the Hugging Face hub.

``data.path`` is its name, ``data.subset`` its configuration.
"""

from __future__ import annotations

from lowrank.data.sources._hub import HubText


class SOURCE(HubText):
    """A data set on the hub; a tokenizer is trained unless ``data.tokenizer`` names one."""
