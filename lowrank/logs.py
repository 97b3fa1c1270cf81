"""The log of the package: where lines are written, what each contains, and what none may contain.

Modules log to ``logging.getLogger(__name__)``, below the logger ``lowrank``. Importing configures
nothing; a command calls :func:`configure`, which attaches two handlers to that logger and leaves
every other logger alone:

- the file ``logs/lowrank.log`` in the study's folder, shared by all processes that work on the
study, with time, level, host, process, run and unit of work on every line, tracebacks included; -
stderr, for people: warnings as ``note: …``, errors as ``failed: …``, more with ``-v``.

Passwords registered with :func:`hide`, and those of URLs and connection strings, are masked in
both.
"""

from __future__ import annotations

import logging
import re
import socket
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import quote, quote_plus

LOGGER = "lowrank"
QUIET, NORMAL, VERBOSE, DEBUG = -1, 0, 1, 2  # -q, nothing, -v, -vv
LEVELS = {
    QUIET: logging.ERROR,
    NORMAL: logging.WARNING,
    VERBOSE: logging.INFO,
    DEBUG: logging.DEBUG,
}
MAX_BYTES = 10 * 2**20  # of one log file, about; then it becomes lowrank.log.1
BACKUPS = 5  # older files that are kept
SHOWN = {"shown": True}  # as ``extra``: the record was printed to stderr already, in other words
MASK = "***"
SHORTEST = 4  # letters of a password that is masked everywhere; shorter ones occur in words
LONGEST = 100_000  # characters of a traceback that a row holds
PREFIXES = {logging.WARNING: "note: ", logging.ERROR: "failed: ", logging.CRITICAL: "failed: "}
CREDENTIALS = (
    (re.compile(r"(://[^\s:/@'\"]*:)[^\s@]+(?=@)"), rf"\1{MASK}"),
    (
        re.compile(
            r"\b((?:ssl)?password|passfile)(['\"]?\s*[=:]\s*)"
            r"('(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\"|[^\s&'\",;)\]}]+)",
            re.IGNORECASE,
        ),
        rf"\1\2{MASK}",
    ),
)
_context: ContextVar[tuple[str, str]] = ContextVar("lowrank.logs", default=("", ""))
_logger = logging.getLogger(LOGGER)


class _State:
    """The settings of :func:`configure` and :func:`hide` in this process."""

    configured: tuple[Path | None, int] | None = None  # the arguments of configure
    verbosity = NORMAL
    handlers: tuple[logging.Handler, ...] = ()
    hidden: tuple[str, ...] = ()  # the longest first


def configure(root: Path | None, verbosity: int) -> None:
    """Log to stderr and, where ``root`` is a study's folder, to the file in it.

    ``verbosity`` is -1 for errors without progress bars (``-q``), 0 for warnings, 1 for what is
    being done (``-v``), 2 for everything (``-vv``). The file gets INFO and above, or everything. A
    later call replaces an earlier one. A folder that cannot be written is a warning, not an error.
    """
    reset()
    _State.configured = root, verbosity
    _State.verbosity = max(QUIET, min(DEBUG, verbosity))
    level = LEVELS[_State.verbosity]
    _add(_Terminal(), _Sentences(), level)
    if root is not None:
        try:
            path(root).parent.mkdir(parents=True, exist_ok=True)
            _add(_file_handler()(path(root)), _Lines(), min(logging.INFO, level))
        except OSError as error:
            _logger.warning("%s; work goes on without it", _unwritable(path(root), error))


def reset() -> None:
    """Undo :func:`configure`: without handlers, the package logs as any library does."""
    for handler in _State.handlers:
        _logger.removeHandler(handler)
        handler.close()
    _State.handlers, _State.verbosity, _State.configured = (), NORMAL, None
    _logger.setLevel(logging.NOTSET)
    _logger.propagate = True


@contextmanager
def scope() -> Iterator[None]:
    """Undo at the end of the block what is configured inside; blocks may be nested."""
    before = _State.configured
    try:
        yield
    finally:
        reset()
        if before is not None:
            configure(*before)


def path(root: Path) -> Path:
    """Return the path of the log of the study whose folder is ``root``; it need not exist."""
    return root / "logs" / "lowrank.log"


def quiet() -> bool:
    """Return whether only rows and errors were asked for (``-q``)."""
    return _State.verbosity == QUIET


def flags() -> list[str]:
    """Return the options by which a child process logs as much as this one."""
    return {QUIET: ["-q"], NORMAL: [], VERBOSE: ["-v"], DEBUG: ["-vv"]}[_State.verbosity]


@contextmanager
def context(*, run: object = None, unit: object = None) -> Iterator[None]:
    """Put the id of a run and the key of a unit of work on every line logged inside the block.

    What is None stays as it is outside. A thread that is started inside the block begins without
    them.
    """
    outer = _context.get()
    token = _context.set(
        (outer[0] if run is None else str(run), outer[1] if unit is None else str(unit))
    )
    try:
        yield
    finally:
        _context.reset(token)


def unexpected(sentence: str, error: BaseException) -> str:
    """Log an unexpected exception with its traceback, and return the traceback as text.

    ``sentence`` states what failed. The text fits the column ``traceback`` of a run or of a unit of
    work.
    """
    _logger.error("%s", sentence, exc_info=error)
    return traceback_text(error)


def traceback_text(error: BaseException) -> str:
    """Return the traceback of ``error`` as a database can hold it: masked, without NUL, of limited
    length.

    Of a text of more than 100,000 characters a quarter is kept from its beginning and the rest from
    its end, which states the error.
    """
    text = masked("".join(traceback.format_exception(error)))
    text = text.replace("\0", "\\0").encode("utf-8", "backslashreplace").decode("utf-8")
    if len(text) > LONGEST:
        head = LONGEST // 4
        text = f"{text[:head]}\n… {len(text) - LONGEST} characters …\n{text[head - LONGEST :]}"
    return text


def hide(*secrets: str) -> None:
    """Mask these passwords from now on wherever a line of the log or a traceback contains them.

    A password of fewer than four letters is masked only in URLs and connection strings, where every
    password is masked: elsewhere it would be part of ordinary words, and the gaps would reveal it.
    """
    known = set(_State.hidden)
    for secret in secrets:
        if len(secret) >= SHORTEST:
            known |= {secret, quote(secret, safe=""), quote_plus(secret), repr(secret)[1:-1]}
    _State.hidden = tuple(sorted(known, key=len, reverse=True))


def masked(text: str) -> str:
    """Return ``text`` without passwords."""
    for secret in _State.hidden:
        text = text.replace(secret, MASK)
    for pattern, replacement in CREDENTIALS:
        text = pattern.sub(replacement, text)
    return text


def _add(handler: logging.Handler, formatter: logging.Formatter, level: int) -> None:
    """Attach a handler, and let the logger pass all levels that one of its handlers needs."""
    handler.setFormatter(formatter)
    handler.setLevel(level)
    handler.addFilter(_in_context)
    _State.handlers = (*_State.handlers, handler)
    _logger.addHandler(handler)
    _logger.setLevel(min(found.level for found in _State.handlers))
    _logger.propagate = False  # a library that configures the root logger would print all twice


def _in_context(record: logging.LogRecord) -> bool:
    """Put run and unit on a record, as they are in the thread that logs it."""
    record.run, record.unit = _context.get()
    return True


class _Terminal(logging.Handler):
    """Handler for the stderr of the moment, which writes above the progress bars shown there."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record."""
        if getattr(record, "shown", False):
            return
        try:
            from tqdm import tqdm

            tqdm.write(self.format(record), file=sys.stderr)
        except Exception:
            self.handleError(record)


class _Sentences(logging.Formatter):
    """Format for people: a sentence, with its traceback only where more was asked for."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the text of a record."""
        wordy = _State.verbosity >= VERBOSE
        text = masked(_text(record) if wordy else record.getMessage())
        if record.levelno >= logging.WARNING:
            return PREFIXES.get(record.levelno, "") + text
        clock = time.strftime("%H:%M:%S", time.localtime(record.created))
        return f"{clock} {''.join(f'{word} ' for word in _place(record))}{text}"


class _Lines(logging.Formatter):
    """Format for the file: every line of a record begins with the same words."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the lines of a record."""
        moment = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        who = f"host={_host()} process={record.process}"
        where = " ".join(_place(record, always=True))
        head = masked(f"{moment[:-6]}Z {record.levelname} {who} {where} {record.name}:")
        lines = masked(_text(record)).splitlines() or [""]
        return "\n".join(f"{head} {line}".rstrip() for line in lines)


def _text(record: logging.LogRecord) -> str:
    """Return the message of a record with its traceback, if it has one."""
    error = record.exc_info[1] if record.exc_info else None
    return record.getMessage() + (f"\n{traceback_text(error)}" if error else "")


def _place(record: logging.LogRecord, always: bool = False) -> Iterator[str]:
    """Yield ``run=…`` and ``unit=…`` of a record, where it has them or ``always``."""
    for name in ("run", "unit"):
        value = getattr(record, name, "")
        if value or always:
            yield f"{name}={value or '-'}"


@cache
def _host() -> str:
    return socket.gethostname() or "-"


@cache
def _file_handler() -> type[Any]:
    """Return the class of the file's handler; its library is imported only where a file is
    written.
    """
    from concurrent_log_handler import ConcurrentRotatingFileHandler

    class File(ConcurrentRotatingFileHandler):
        """Rotating file of several processes; failure to write it is reported once."""

        def __init__(self, file: Path) -> None:
            super().__init__(
                file,
                maxBytes=MAX_BYTES,
                backupCount=BACKUPS,
                encoding="utf-8",
                unicode_error_policy="replace",
            )
            self._said = False

        def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802  (logging's name)
            """Report that a record could not be written, the first time."""
            if not self._said:
                self._said = True
                reason = _unwritable(Path(self.baseFilename), sys.exc_info()[1])
                print(f"{PREFIXES[logging.WARNING]}{reason}", file=sys.stderr)

    return File


def _unwritable(file: Path, error: BaseException | None) -> str:
    return f"the log {file} cannot be written: {getattr(error, 'strerror', None) or error}"
