"""What caches and protocols are keyed by: text or items that change under one revision would pass
for the old ones.
"""

from __future__ import annotations

import hashlib
from importlib.metadata import version
from pathlib import Path

import pytest

from lowrank.config.schema import Data
from lowrank.data.sources import _prose
from lowrank.data.sources import embedded as source
from lowrank.evaluate import embedded, items

RAISE = "it changed under one revision: raise REVISION in its module, then put both into this table"
NETWORKX = "3.6.1"
PROSE = {2: "4d77f4762f30910fc131cb80fccecf747a6408bc07008f2463801afae6b4d6ab"}
ITEMS = {(2, 2, 2): "8f60662dd7810788e9a5d359db9a879478479c759b13c0870c7a45f2cafd43fe"}

pytestmark = pytest.mark.skipif(
    version("networkx") != NETWORKX, reason=f"the figures are those of networkx {NETWORKX}"
)


@pytest.fixture(scope="module")
def documents(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Return the prose of one package."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(source.SOURCE, "packages", {"networkx": "networkx"})
        found = source.SOURCE(Data(), tmp_path_factory.mktemp("cache")).read("train", None)
        return [document for document, _ in found if document]


def test_the_prose_of_a_package(documents: list[str]) -> None:
    assert (
        PROSE.get(_prose.REVISION) == hashlib.sha256("\n\0".join(documents).encode()).hexdigest()
    ), f"the prose: {RAISE}"


def test_the_items_made_of_it(documents: list[str], tmp_path: Path) -> None:
    made = embedded.make_items(embedded.corpus_of(documents, 0.5), fewest=20, most=200)
    found = embedded.write_suite(tmp_path, made)["sha256"]
    assert ITEMS.get((_prose.REVISION, items.REVISION, embedded.VERSION)) == found, (
        f"the items: {RAISE}"
    )
