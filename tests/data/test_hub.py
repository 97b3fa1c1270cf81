"""Sources of the Hugging Face hub without a hub: local folders, cached copies, and lost
connections.
"""

from __future__ import annotations

import shutil
import time
from pathlib import Path

import datasets
import pytest

from lowrank.config.schema import Data
from lowrank.data import open_data
from lowrank.data.sources import _hub
from lowrank.errors import DataError

from .conftest import sentences


@pytest.fixture
def no_network(monkeypatch, tmp_path):
    """A hub that no name server knows, and an empty home of the libraries."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", "http://hub.invalid")
    monkeypatch.setattr(datasets.config, "HF_ENDPOINT", "http://hub.invalid")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")
    monkeypatch.setattr(_hub, "reachable", lambda: False)
    monkeypatch.setattr("huggingface_hub.HfApi.dataset_info", refuse)


def refuse(*_: object, **__: object) -> None:
    raise ConnectionError("Name or service not known")


@pytest.mark.parametrize("asked", ["by the user", "by the network"])
@pytest.mark.parametrize("source", ["c4", "huggingface"])
def test_the_error_in_offline_mode_names_the_fix(
    open_corpus, no_network, monkeypatch, cache, source, asked
):
    if asked == "by the user":
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    name = {"c4": "allenai/c4", "huggingface": "some/texts"}[source]
    started = time.monotonic()
    with pytest.raises(
        DataError,
        match=rf"'{name}' is on the Hugging Face hub.*HF_HOME, or set data\.source: embedded",
    ) as caught:
        open_corpus(source=source, path=name)
    assert "\n" not in str(caught.value)
    assert time.monotonic() - started < 10
    assert not [path for path in cache.rglob("*") if path.is_file()]


def test_a_cached_copy_is_read_without_network(open_corpus, no_network, hub_folder, tmp_path):
    """The library's own cache of a downloaded data set, as another run on this machine left it."""
    datasets.load_dataset(str(hub_folder), cache_dir=str(tmp_path / "datasets"))
    (built,) = {path.parent for path in (tmp_path / "datasets").rglob("*.arrow")}
    home = tmp_path / "datasets" / "some___texts" / "default" / "0.0.0" / ("0123456789" * 4)
    shutil.copytree(built, home)
    for path in home.glob("*.arrow"):
        path.rename(path.with_name(path.name.replace("hubset", "texts")))
    info = home / "dataset_info.json"
    info.write_text(info.read_text().replace('"hubset"', '"texts"'))
    dataset = open_corpus(source="huggingface", path="some/texts")
    assert dataset.source.origin()["revision"] == "0123456789" * 4
    held = [document for document, _ in dataset._documents("validation", None, (0, 0))]
    assert held == sentences(80, seed=9)
    assert len(dataset.rows(0, 5)) == 5


def test_a_resolved_data_set_needs_no_network_and_does_not_change(
    open_corpus, hub_folder, cache, monkeypatch
):
    dataset = open_corpus(source="huggingface", path=str(hub_folder))
    expected = dataset.rows(0, 20).input_ids
    monkeypatch.setattr(datasets, "load_dataset", refuse)
    monkeypatch.setattr(datasets, "get_dataset_split_names", refuse)
    again = open_corpus(source="huggingface", path=str(hub_folder))
    assert again.fingerprint == dataset.fingerprint
    assert (again.rows(0, 20).input_ids == expected).all()


def test_a_folder_is_identified_by_its_content(open_corpus, hub_folder, tmp_path):
    before = open_corpus(source="huggingface", path=str(hub_folder)).fingerprint
    shutil.copytree(hub_folder, tmp_path / "moved")
    assert open_corpus(source="huggingface", path=str(tmp_path / "moved")).fingerprint == before
    with (hub_folder / "train-1.jsonl").open("a") as file:
        file.write('{"text": "one more document"}\n')
    assert open_corpus(source="huggingface", path=str(hub_folder)).fingerprint != before


def test_a_lost_connection_is_reported(open_corpus, hub_folder, monkeypatch):
    dataset = open_corpus(source="huggingface", path=str(hub_folder))
    monkeypatch.setattr("datasets.iterable_dataset.IterableDataset.__iter__", refuse)
    with pytest.raises(DataError, match="is not a readable data set"):
        list(dataset.source.read("train", 5))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"path": None}, r"needs data\.path: the name of a data set"),
        ({"text_field": "body"}, r"has no text field 'body' \(it has text\); set data\.text_field"),
        ({"subset": "nope"}, r"hubset' of data\.path is not a readable data set .*nope"),
    ],
)
def test_bad_names_are_errors(open_corpus, hub_folder, options, message):
    with pytest.raises(DataError, match=message):
        open_corpus(**{"source": "huggingface", "path": str(hub_folder), **options})


def test_a_data_set_without_a_training_split_is_an_error(open_corpus, hub_folder):
    for path in hub_folder.glob("train*"):
        path.unlink()
    with pytest.raises(DataError, match="has no split 'train'"):
        open_corpus(source="huggingface", path=str(hub_folder))


@pytest.mark.parametrize(
    ("error", "message"),
    [
        ("GatedRepoError", "is gated; accept its terms"),
        ("RepositoryNotFoundError", "has no data set 'some/texts'"),
        ("RevisionNotFoundError", r"has no revision 'v9'; correct data\.revision"),
    ],
)
def test_refusals_of_the_hub_are_reported(open_corpus, monkeypatch, error, message):
    from huggingface_hub import errors

    def answer(*_: object, **__: object) -> None:
        raise getattr(errors, error).__new__(getattr(errors, error))

    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr("huggingface_hub.HfApi.dataset_info", answer)
    with pytest.raises(DataError, match=message):
        open_corpus(source="huggingface", path="some/texts", revision="v9")


def test_c4_is_the_published_corpus(tmp_path: Path):
    source = _source(Data(source="c4"), tmp_path)
    assert (source.config.path, source.config.subset) == ("allenai/c4", "en")
    assert (source.tokenizer, source.vocabulary_size) == ("t5-base", 32_000)


def _source(config: Data, cache: Path):
    from lowrank.data import sources

    return sources.get(config.source)(config, cache)


def test_c4_under_the_published_protocol(open_corpus, hub_folder, tmp_path, cache, monkeypatch):
    """The whole way of C4 with a local folder in its place: given tokenizer, fewer rows than
    tokens, its own validation.
    """
    from lowrank.data.sources import c4

    open_corpus().tokenizer.save_pretrained(tmp_path / "t5")
    monkeypatch.setattr(c4.SOURCE, "tokenizer", str(tmp_path / "t5"))
    monkeypatch.setattr(c4.SOURCE, "_folder", hub_folder)
    monkeypatch.setattr(_hub.HubText, "_commit", lambda self, found: None)
    load = datasets.load_dataset
    monkeypatch.setattr(
        datasets, "load_dataset", lambda path, subset, **options: load(path, None, **options)
    )
    names = datasets.get_dataset_split_names
    monkeypatch.setattr(
        datasets, "get_dataset_split_names", lambda path, subset, **options: names(path)
    )
    dataset = open_data(Data(source="c4", layout="padded", max_length=32), 42, cache=cache)
    assert dataset.vocabulary_size == 32_000
    batch = dataset.rows(0, 64)
    assert batch.scored == dataset.scored_tokens(0, 64)
    assert dataset.evaluation_set("v", split="validation", tokens=500).record.tokens >= 500
