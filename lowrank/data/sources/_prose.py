"""English sentences out of Python docstrings, whatever their dialect: NumPy, Google or Sphinx.

A docstring is cut into blocks at blank lines. Blocks of lists, tables, code, formulas and formal sections (parameters,
returns, references and the like) go; mark-up goes; what is left must read as prose. Paragraphs that were seen before
go too, since packages repeat themselves.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator

REVISION = 1  # raised when the same packages give other text

_FORMAL = re.compile(
    r"(other |keyword )?(parameters?|args|arguments|returns?|yields?|raises?|except(ions?)?|receives|warns|attributes?|methods?|"
    r"see also|seealso|references?|literature|examples?|usage|shape|inputs?|outputs?|todo|authors?|credits?|signature|call arguments)"
    r"( \w+)?:?$", re.IGNORECASE,
)
_HEADING = re.compile(r"[A-Z][\w /-]{2,40}:?$")
_UNDERLINE = re.compile(r"[=\-~^*#]{3,}$")
_ITEM = re.compile(r"([-*+•]|\(?[0-9a-zA-Z]{1,2}[.)]|\[\d+\]|:[a-z]+[^:]*:|@\w+|\.\. |>>>|\.\.\. |\||\+[-=]|#|In \[|%|\$ )")
_DIRECTIVE = re.compile(r"\.\.\s+([\w-]+)::\s*(.*)$")
_ADMONITION = re.compile(r"(note|notes|warning|warnings|tip|important|caution|remarks?)\s*:?:?$", re.IGNORECASE)
_KEPT_DIRECTIVES = {"note", "warning", "tip", "important", "caution", "admonition", "topic", "rubric"}

_MARKUP = (
    (re.compile(r":[\w:+-]+:`[~!]?([^`<]*?)\s*<[^`>]*>`"), r"\1"),          # :ref:`text <target>`
    (re.compile(r":[\w:+-]+:`[~!.]*(?:[\w.]+\.)?([^`]+)`"), r"\1"),         # :class:`~package.Name`
    (re.compile(r"`([^`<]+?)\s*<[^`>]*>`_{0,2}"), r"\1"),                   # `text <url>`_
    (re.compile(r"!?\[([^\]]+)\]\((?:[^()]|\([^()]*\))*\)"), r"\1"),        # [text](url)
    (re.compile(r"\s*\[[\w.#* -]{1,20}\]_"), ""),                           # footnote [1]_
    (re.compile(r"``([^`]*)``_?"), r"\1"),
    (re.compile(r"`([^`]*)`_{0,2}"), r"\1"),
    (re.compile(r"\*\*([^*]+)\*\*"), r"\1"),
    (re.compile(r"(?<![\w*])\*([^*\s][^*]*)\*(?![\w*])"), r"\1"),
    (re.compile(r"::$"), ":"),
    (re.compile(r"\s+"), " "),
)
_STOP_WORDS = frozenset(
    "a about all also an and any are as at be because been before both but by can case do does each either for from given has have how "
    "if in into is it its may more most must no not of on one only or other over same should since so some such than that the their "
    "then there these they this those to two under up use used uses using was we when where whether which while will with without would you "
    "your".split()
)
_WORD = re.compile(r"[A-Za-z][A-Za-z'-]*")
_CODE = re.compile(r"[{}|\\<>=~^$@]|__|->|\w\(\w*=|\w/\w+/|https?:|www\.|\.\.\.|\w\[\w|\w_\w+_\w")
_END = re.compile(r"[a-zA-Z0-9)'\"][.!?][)'\"]?$")
_LONGEST_WORD = 28
_FEWEST_WORDS = 8


def docstrings(code: str) -> Iterator[str]:
    """The strings in triple double quotes that begin a line of ``code``."""
    position = 0
    while (opening := code.find('"""', position)) >= 0:
        closing = code.find('"""', opening + 3)
        if closing < 0:
            return
        line = code.rfind("\n", 0, opening) + 1
        if code[line:opening].strip().lower() in {"", "r", "u", "rf", "fr", "f"} and closing - opening > 40:
            yield code[opening + 3 : closing]
        position = closing + 3


class Collector:
    """Turns docstrings into documents and remembers the paragraphs that it has seen."""

    def __init__(self) -> None:
        self._seen: set[str] = set()

    def document(self, docstring: str) -> str:
        """The new prose paragraphs of a docstring in order, parted by blank lines; empty where there is none."""
        kept = []
        for paragraph in paragraphs(docstring):
            text = plain(paragraph)
            fold = text.lower()
            if fold not in self._seen and is_prose(text):
                self._seen.add(fold)
                kept.append(text)
        return "\n\n".join(kept)


def plain(paragraph: str) -> str:
    """The paragraph without mark-up, on one line."""
    for pattern, replacement in _MARKUP:
        paragraph = pattern.sub(replacement, paragraph)
    return paragraph.strip()


def is_prose(text: str) -> bool:
    """Whether a paragraph consists of English sentences."""
    if len(text) < 50 or not (text[0].isupper() and _END.search(text)) or _CODE.search(text):
        return False
    words = _WORD.findall(text)
    tokens = text.split()
    if len(words) < _FEWEST_WORDS or max(map(len, tokens)) > _LONGEST_WORD or text.count(":") > 1 + len(words) // 40:
        return False
    letters = sum(c.isalpha() or c == " " for c in text)
    common = sum(word.lower() in _STOP_WORDS for word in words)
    plain_words = sum(token.strip(".,;:()'\"!?-").isalpha() for token in tokens)
    return letters >= 0.92 * len(text) and common >= 0.28 * len(words) and plain_words >= 0.8 * len(tokens)


def paragraphs(docstring: str) -> Iterator[str]:
    """The blocks of a docstring that may be prose: none of the formal sections, lists, tables, code and formulas."""
    first, _, rest = docstring.partition("\n")
    skip_deeper: int | None = None   # drop what is indented deeper than this
    formal = False                   # inside a formal NumPy section
    for block in re.split(r"\n\s*\n", first.strip() + "\n" + textwrap.dedent(rest)):
        lines = block.strip("\n").expandtabs().split("\n")
        lines = [line for line in lines if line.strip()]
        if not lines:
            continue
        indent = _indent(lines[0])
        if skip_deeper is not None and indent > skip_deeper:
            continue
        skip_deeper = None
        head = lines[0].strip()
        if len(lines) > 1 and _UNDERLINE.match(lines[1].strip()):
            formal = bool(_FORMAL.match(head))
            lines = lines[2:]
        elif indent == 0 and _FORMAL.match(head):
            skip_deeper, formal = 0, False
            continue
        elif _ADMONITION.match(head):
            lines = lines[1:]
        elif directive := _DIRECTIVE.match(head):
            if directive[1] not in _KEPT_DIRECTIVES:
                skip_deeper = indent
                continue
            lines = [directive[2], *lines[1:]]
        if formal or not lines or not any(map(str.strip, lines)):
            continue
        if lines[-1].rstrip().endswith("::"):
            skip_deeper = indent
        yield from _prose_lines(lines)


def _prose_lines(lines: list[str]) -> Iterator[str]:
    """A block as one paragraph, cut before the first line that is an item, a heading of a list or indented deeper."""
    margin = min(_indent(line) for line in lines if line.strip())
    kept = []
    for line in lines:
        body = line.strip()
        if _ITEM.match(body) or (kept and _indent(line) > margin) or _FORMAL.match(body):
            break
        kept.append(body)
    if kept:
        yield " ".join(kept)


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip())
