"""The embedded corpus: prose from docstrings, the same for the same packages."""

from __future__ import annotations

import re

import pytest

from lowrank.config.schema import Data
from lowrank.data import open_data
from lowrank.data.sources import _prose, embedded
from lowrank.errors import DataError

NUMPY = """
    Return the mean of an array along an axis, or of all of its elements together.

    The mean is the sum of the elements divided by their number; see :func:`~package.other.median` and ``axis`` for
    what is more robust, as shown by [1]_ and in `the manual <https://example.org>`_ of the package.

    .. versionadded:: 1.7
       This directive and its text have nothing to say to a reader of prose, so it must be dropped.

    .. note::
       Integers are summed with double precision, which is what most of the users of it expect.

    Parameters
    ----------
    a : array_like
        The array that the mean is taken of, which may be of any shape that there is.

    Returns
    -------
    mean : float
        The mean of the elements of the array, which is a number in double precision.

    Notes
    -----
    The result is rounded to the nearest even number if the argument is an array of *integers*.

    - This is an item of a list and the words in it are not a paragraph of their own.

    Examples
    --------
    This sentence introduces an example and it belongs to the section on examples, so it goes.

    >>> mean([1, 2])
    1.5
"""
GOOGLE = """Build the model from a configuration that was saved before.

    Args:
        config: The configuration of the model, which is what you saved it with before.

    Returns:
        The model in the state that it had when it was saved to the disk by the user.

    The weights are not read here, since a configuration does not know where they are. Call f(x=1) for it. This is cut.

    For example::

        model = build(config)  # this is the code of the example and it is not prose at all.

    | a | table of | words that are in the columns | and not prose |
"""


def test_the_prose_of_a_numpy_docstring():
    assert _prose.Collector().document(NUMPY).split("\n\n") == [
        "Return the mean of an array along an axis, or of all of its elements together.",
        "The mean is the sum of the elements divided by their number; see median and axis for what is more robust, "
        "as shown by and in the manual of the package.",
        "Integers are summed with double precision, which is what most of the users of it expect.",
        "The result is rounded to the nearest even number if the argument is an array of integers.",
    ]


def test_the_prose_of_a_google_docstring():
    assert _prose.Collector().document(GOOGLE).split("\n\n") == [
        "Build the model from a configuration that was saved before.",
        "The weights are not read here, since a configuration does not know where they are.",
    ]


def test_repeated_paragraphs_are_dropped():
    collector = _prose.Collector()
    assert collector.document(NUMPY)
    assert not collector.document(NUMPY)
    assert not collector.document(
        "Something else that is too short.\n\n    " + GOOGLE.split("\n")[0].upper()
    )


@pytest.mark.parametrize(
    "text",
    [
        "too short for anyone.",
        "this begins with a small letter, as the rest of a sentence does after a break.",
        "This sentence does not end because it is the beginning of a list, as in the following:",
        "This sentence calls x = f(y) and so it is about code and not of the kind that we want.",
        "Copyright Somebody Somewhere Something Else Altogether Nineteen Hundred Ninety Nine Incorporated Limited.",
        "See https://example.org/page for more on how this is done and why it is as it is.",
    ],
)
def test_text_that_is_not_prose_is_dropped(text):
    assert not _prose.prose(text)


def test_only_strings_that_begin_a_line_are_docstrings():
    code = 'x = """this string is assigned and not documentation of any kind."""\n\n'
    code += 'def f():\n    r"""Documentation of a function, as long as it must be."""\n'
    assert list(_prose.docstrings(code)) == ["Documentation of a function, as long as it must be."]


def test_the_corpus_of_one_small_package(tmp_path, monkeypatch):
    monkeypatch.setattr(embedded.SOURCE, "packages", {"networkx": "networkx"})
    config = Data(max_length=64, vocabulary_size=1000, validation_fraction=0.05)
    dataset = open_data(config, 0, cache=tmp_path)
    documents = [document for document, _ in dataset.source.read("train", None)]
    assert len(documents) > 700
    text = "\n\n".join(documents)
    assert len(text) > 200_000
    assert not re.search(
        r">>>|Parameters\b *-{3}|:(func|class|math|ref):|``|\bndarray of shape", text
    )
    paragraphs = text.split("\n\n")
    assert len({paragraph.lower() for paragraph in paragraphs}) == len(paragraphs)
    assert all(
        paragraph[0].isupper() and re.search(r"[.!?][)'\"]?$", paragraph)
        for paragraph in paragraphs
    )
    assert set(dataset.source.origin()["packages"]) == {"networkx"}
    again = open_data(config, 0, cache=tmp_path / "other")
    assert (again.fingerprint, again.tokenizer_hash) == (
        dataset.fingerprint,
        dataset.tokenizer_hash,
    )
    monkeypatch.setattr(embedded, "docstrings", None)  # what is cached is not collected again
    assert open_data(config, 1, cache=tmp_path).fingerprint == dataset.fingerprint


def test_the_corpus_includes_the_standard_library():
    (root,) = embedded._roots(embedded.PACKAGES["python"])
    names = {path.relative_to(root).as_posix() for path in embedded._modules([root])}
    assert "argparse.py" in names
    assert not [name for name in names if name.startswith(("site-packages", "test/"))]


def test_builds_of_the_same_version_have_the_same_origin(monkeypatch, tmp_path):
    origins = []
    for version in ("2.13.0+cpu", "2.13.0+cu128", "2.13.1"):
        monkeypatch.setattr(embedded, "version", lambda name, version=version: version)
        origins.append(embedded.SOURCE(Data(), tmp_path).origin())
    assert origins[0] == origins[1] != origins[2]


def test_an_environment_without_packages_is_an_error(monkeypatch, tmp_path):
    monkeypatch.setattr(embedded.SOURCE, "packages", {"no-such-distribution": "nothing"})
    with pytest.raises(DataError, match=r"finds none of its packages installed; set data\.source"):
        open_data(Data(), 0, cache=tmp_path)


def test_files_are_sorted_and_exclude_tests(tmp_path):
    for name in ("b/x.py", "a.py", "b/tests/t.py", "c.txt", "_vendor/v.py", "b.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")
    assert [p.relative_to(tmp_path).as_posix() for p in embedded._modules([tmp_path])] == [
        "a.py",
        "b.py",
        "b/x.py",
    ]
