"""Extract English sentences from Python docstrings in the NumPy, Google and Sphinx styles.

A docstring is cut into blocks at blank lines. Lists, tables, code, formulas and formal sections
(parameters, returns, references and the like) are dropped, mark-up is removed, and the rest must
read as prose. Paragraphs that have been seen before are dropped too, since packages repeat
themselves.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

REVISION = 2  # raised when the same packages yield different text

_FORMAL = re.compile(
    r"(other |keyword |call )?(parameters?|args|arguments|returns?|yields?|raises?|except(ions?)?|receives|warns|attributes?|"
    r"methods?|see also|seealso|references?|literature|examples?|usage|shape|inputs?|outputs?|todo|authors?|credits?|signature)"
    r"( \w+)?:?$",
    re.IGNORECASE,
)
_UNDERLINE = re.compile(r"[=\-~^*#]{3,}$")
_ITEM = re.compile(
    r"([-*+•]|\(?[0-9a-zA-Z]{1,2}[.)]|\[\d+\]|:[a-z]+[^:]*:|@\w+|\.\. |>>>|\.\.\. |\||\+[-=]|#|In \[|%|\$ )"
)
_DIRECTIVE = re.compile(r"\.\.\s+([\w-]+)::\s*(.*)$")
_ADMONITION = re.compile(
    r"(note|notes|warning|warnings|tip|important|caution|remarks?)\s*:?:?$", re.IGNORECASE
)
_KEPT_DIRECTIVES = {
    "note",
    "warning",
    "tip",
    "important",
    "caution",
    "admonition",
    "topic",
    "rubric",
}

_MARKUP = (  # (needs this to apply at all, pattern, replacement), in this order
    ("`", re.compile(r":[\w:+-]+:`[~!]?([^`<]*?)\s*<[^`>]*>`"), r"\1"),  # :ref:`text <target>`
    ("`", re.compile(r":[\w:+-]+:`[~!.]*(?:[\w.]+\.)?([^`]+)`"), r"\1"),  # :class:`~package.Name`
    ("`", re.compile(r"`([^`<]+?)\s*<[^`>]*>`_{0,2}"), r"\1"),  # `text <url>`_
    ("](", re.compile(r"!?\[([^\]]+)\]\((?:[^()]|\([^()]*\))*\)"), r"\1"),  # [text](url)
    ("]_", re.compile(r"\s*\[[\w.#* -]{1,20}\]_"), ""),  # footnote [1]_
    ("``", re.compile(r"``([^`]*)``_?"), r"\1"),
    ("`", re.compile(r"`([^`]*)`_{0,2}"), r"\1"),
    ("**", re.compile(r"\*\*([^*]+)\*\*"), r"\1"),
    ("*", re.compile(r"(?<![\w*])\*([^*\s][^*]*)\*(?![\w*])"), r"\1"),
)
_STOP_WORDS = frozenset(
    re.findall(
        r"\w+",
        """
    a about all also an and any are as at be because been before both but by can case do does each either for from given has have
    how if in into is it its may more most must no not of on one only or other over same should since so some such than that the
    their then there these they this those to two under up use used uses using was we when where whether which while will with
    without would you your
""",
    )
)
_WORD = re.compile(r"[A-Za-z][A-Za-z'-]*")
_COMMON = re.compile(r" (the|a|an|of|to|is|in|and|for|are|be|that|this|by|with) ")
_CODE = re.compile(
    r"[{}|\\<>=~^$@`*]|->|\w\(\w*=|https?:|www\.|\.\.\.|\w\[\w|_\w*_\w*_\w*_|\[[^a-zA-Z]*\]"
)
_SENTENCE = re.compile(r"(?<=[a-z0-9)'\"][.!?])\s+(?=[A-Z\"'(])")
_END = re.compile(r"[a-zA-Z0-9)'\"][.!?][)'\"]?$")
_LONGEST_WORD = 32
_FEWEST_WORDS = 8
_SHORTEST = 50


def docstrings(code: str) -> Iterator[str]:
    """Yield the strings in triple double quotes that begin a line of ``code``."""
    position = 0
    while (opening := code.find('"""', position)) >= 0:
        closing = code.find('"""', opening + 3)
        if closing < 0:
            return
        line = code.rfind("\n", 0, opening) + 1
        if (
            code[line:opening].strip().lower() in {"", "r", "u", "rf", "fr", "f"}
            and closing - opening > 40
        ):
            yield code[opening + 3 : closing]
        position = closing + 3


class Collector:
    """Turn docstrings into documents, remembering the docstrings and paragraphs already seen."""

    def __init__(self) -> None:
        self._seen: set[str] = set()

    def document(self, docstring: str) -> str:
        """Return the new prose paragraphs of a docstring in order, separated by blank lines.

        The result is empty if there are none.
        """
        if docstring in self._seen or not _COMMON.search(docstring):
            return ""
        self._seen.add(docstring)
        kept = []
        for paragraph in paragraphs(docstring):
            if len(paragraph) < _SHORTEST or not _COMMON.search(paragraph):
                continue
            text = prose(plain(paragraph))
            fold = text.lower()
            if text and fold not in self._seen:
                self._seen.add(fold)
                kept.append(text)
        return "\n\n".join(kept)


def plain(paragraph: str) -> str:
    """Return the paragraph without mark-up, on one line."""
    for needed, pattern, replacement in _MARKUP:
        if needed in paragraph:
            paragraph = pattern.sub(replacement, paragraph)
    return " ".join(paragraph.split())


def prose(paragraph: str) -> str:
    """Return the leading sentences of a paragraph, up to the first that is not plain English.

    The result is empty if they do not read as prose.
    """
    sentences = []
    for sentence in _SENTENCE.split(paragraph):
        if _CODE.search(sentence) or not _END.search(sentence):
            break
        sentences.append(sentence)
    text = " ".join(sentences)
    return text if is_prose(text) else ""


def is_prose(text: str) -> bool:
    """Return whether a paragraph without code reads as English.

    It needs enough words, most of them plain, and function words among them.
    """
    if len(text) < _SHORTEST or not text[0].isupper():
        return False
    words, tokens = _WORD.findall(text), text.split()
    if (
        len(words) < _FEWEST_WORDS
        or max(map(len, tokens)) > _LONGEST_WORD
        or text.count(":") > 1 + len(words) // 40
    ):
        return False
    letters = sum(map(str.isalpha, text)) + text.count(" ")
    common = sum(word in _STOP_WORDS for word in map(str.lower, words))
    whole = sum(token.strip(".,;:()'\"!?-").isalpha() for token in tokens)
    return (
        letters >= 0.92 * len(text) and common >= 0.26 * len(words) and whole >= 0.78 * len(tokens)
    )


Line = tuple[int, str]
"""(indentation, text without it)"""


def paragraphs(docstring: str) -> Iterator[str]:
    """Yield the blocks of a docstring that may be prose.

    Formal sections, lists, tables, code and formulas are left out.
    """
    skipped: int | None = None  # drop what is indented deeper than this
    formal = False  # inside a formal section with an underlined heading
    for block in blocks(docstring):
        indent, head = block[0]
        if skipped is not None and indent > skipped:
            continue
        skipped = None
        if len(block) > 1 and _UNDERLINE.match(block[1][1]):
            formal = bool(_FORMAL.match(head))
            block = block[2:]
        elif indent == 0 and _FORMAL.match(head):
            skipped, formal = 0, False
            continue
        elif head.startswith(".. "):
            directive = _DIRECTIVE.match(head)
            if directive is None or directive[1] not in _KEPT_DIRECTIVES:
                skipped = indent
                continue
            block = [(indent, directive[2]), *block[1:]] if directive[2] else block[1:]
        elif _ADMONITION.match(head):
            block = block[1:]
        if formal or not block:
            continue
        if block[-1][1].endswith("::"):
            skipped = indent
        if text := _paragraph(block):
            yield text


def blocks(docstring: str) -> Iterator[list[Line]]:
    """Yield the lines between blank lines, indented relative to the docstring."""
    first, *rest = docstring.expandtabs().split("\n")
    lines = [(len(line) - len(bare), bare.rstrip()) for line in rest for bare in (line.lstrip(),)]
    margin = min((indent for indent, text in lines if text), default=0)
    block: list[Line] = []
    for indent, text in [(margin, first.strip()), *lines]:
        if text:
            block.append((indent - margin, text))
        elif block:
            yield block
            block = []
    if block:
        yield block


def _paragraph(block: list[Line]) -> str:
    """Return a block as one string, cut before the first item, list heading or deeper
    indentation.
    """
    margin = min(indent for indent, _ in block)
    kept: list[str] = []
    for indent, text in block:
        if (kept and indent > margin) or _ITEM.match(text) or _FORMAL.match(text):
            break
        kept.append(text)
    return " ".join(kept)
