"""The log: what stands on its lines, what several processes make of one file, and what it never
shows.
"""

from __future__ import annotations

import contextvars
import json
import logging
import os
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from lowrank import logs
from lowrank.cli import main, options
from lowrank.cli.train import train_command
from lowrank.progress import progress_bar, waiting
from lowrank.store import Store, records
from lowrank.store.engine import parse_url

SECRET = "hunter2-ö/x"
PROCESSES, LINES = 4, 2_000
LINE = re.compile(
    r"(?P<time>\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z) (?P<level>[A-Z]+) host=(?P<host>\S+)"
    r" process=(?P<process>\d+) run=(?P<run>\S+) unit=(?P<unit>\S+) (?P<name>[\w.]+):(?P<text>.*)"
)
WRITER = """
import logging, sys
from pathlib import Path
from lowrank import logs
logs.MAX_BYTES, logs.BACKUPS = 20_000, 10_000
logs.configure(Path(sys.argv[1]), logs.QUIET)
log = logging.getLogger("lowrank.writer")
print("ready", flush=True)
sys.stdin.readline()
for number in range(int(sys.argv[3])):
    with logs.context(run=sys.argv[2], unit=number):
        log.info("begin %s end", str(number % 10) * (number % 97))
"""
log = logging.getLogger("lowrank.test")


@pytest.fixture(autouse=True)
def unconfigured() -> Iterator[None]:
    """Leave logging as it was."""
    hidden = logs._State.hidden
    yield
    logs.reset()
    logs._State.hidden = hidden


def written(root: Path) -> list[re.Match[str]]:
    """Read the lines of a log, each of which must be whole; the newest file only."""
    found = [LINE.fullmatch(line) for line in logs.path(root).read_text().splitlines()]
    assert None not in found
    return [line for line in found if line is not None]


def failure(message: str = "division by zero") -> ZeroDivisionError:
    """An exception with a traceback."""
    try:
        raise ZeroDivisionError(message)
    except ZeroDivisionError as error:
        return error


def test_several_processes_lose_and_mix_nothing(tmp_path: Path) -> None:
    started = [
        subprocess.Popen(
            [sys.executable, "-c", WRITER, str(tmp_path), str(index), str(LINES)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for index in range(PROCESSES)
    ]
    for process in started:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in started:  # all at once
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    assert [process.communicate()[1] for process in started] == [""] * PROCESSES
    files = list((tmp_path / "logs").glob("lowrank.log*"))
    assert len(files) > 10
    assert max(file.stat().st_size for file in files) < 21_000
    seen: dict[str, list[int]] = {}
    for file in files:
        for text in file.read_text().splitlines():
            line = LINE.fullmatch(text)
            assert line is not None, text
            number = int(line["unit"])
            assert line["text"] == f" begin {str(number % 10) * (number % 97)} end"
            seen.setdefault(line["run"], []).append(number)
    assert {run: sorted(numbers) for run, numbers in seen.items()} == {
        str(index): list(range(LINES)) for index in range(PROCESSES)
    }


def test_every_line_states_run_unit_process_and_host(tmp_path: Path) -> None:
    logs.configure(tmp_path, logs.NORMAL)
    with logs.context(run=7):
        log.info("of the run")
        with logs.context(unit="train/demo/1"):
            log.error("of the unit\nin two lines", exc_info=failure())
        log.info("after")
    log.info("outside")
    lines = written(tmp_path)
    assert {(line["host"], line["process"], line["name"]) for line in lines} == {
        (socket.gethostname(), str(os.getpid()), "lowrank.test")
    }
    places = [(line["run"], line["unit"]) for line in lines]
    inside = places[1:-2]
    assert places == [("7", "-"), *inside, ("7", "-"), ("-", "-")]
    assert set(inside) == {("7", "train/demo/1")}
    texts = [line["text"].strip() for line in lines]
    assert texts[1:4] == ["of the unit", "in two lines", "Traceback (most recent call last):"]
    assert "ZeroDivisionError: division by zero" in texts


def test_a_thread_that_is_given_the_context_logs_it(tmp_path: Path) -> None:
    logs.configure(tmp_path, logs.NORMAL)
    with logs.context(run=1):
        copied = contextvars.copy_context()
        thread = threading.Thread(target=copied.run, args=(log.info, "text"))
    thread.start()
    thread.join()
    assert [line["run"] for line in written(tmp_path)] == ["1"]


@pytest.mark.parametrize(
    ("verbosity", "on_stderr", "in_file"),
    [
        (logs.QUIET, "E", "IWE"),
        (logs.NORMAL, "WE", "IWE"),
        (logs.VERBOSE, "IWE", "IWE"),
        (logs.DEBUG, "DIWE", "DIWE"),
        (7, "DIWE", "DIWE"),
    ],
)
def test_levels(
    verbosity: int,
    on_stderr: str,
    in_file: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    logs.configure(tmp_path, verbosity)
    for level in (logging.DEBUG, logging.INFO, logging.WARNING, logging.ERROR):
        log.log(level, "%s-line", logging.getLevelName(level)[0])
    out, err = capsys.readouterr()
    assert out == ""
    assert [line[-6] for line in err.splitlines()] == list(on_stderr)
    assert [line["level"][0] for line in written(tmp_path)] == list(in_file)
    assert "failed: E-line" in err.splitlines()
    assert ("note: W-line" in err.splitlines()) == (verbosity != logs.QUIET)
    assert logs.quiet() == (verbosity == logs.QUIET)


def test_stderr_shows_a_traceback_only_on_request(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for verbosity in (logs.NORMAL, logs.VERBOSE):
        logs.configure(tmp_path, verbosity)
        text = logs.unexpected("unit a", failure())
        err = capsys.readouterr().err
        assert err.startswith("failed: unit a\n")
        assert ("Traceback" in err) == (verbosity == logs.VERBOSE)
    assert text.splitlines()[0] == "Traceback (most recent call last):"
    assert text.splitlines()[-1] == "ZeroDivisionError: division by zero"


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://me:hunter2-%C3%B6%2Fx@127.0.0.1:1/lowrank",
        "postgres://me:hunter2-%c3%b6%2fx@127.0.0.1:1/lowrank",
        f"postgresql://me@127.0.0.1:1/lowrank?password={SECRET}",
    ],
)
def test_a_password_is_nowhere(
    url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    @click.command()
    @options.standard_options
    def command() -> None:
        options.log_to(tmp_path)
        parse_url(url)
        log.warning("the password is %s, the words are %r", SECRET, {"url": url, "p": SECRET})
        with logs.context(run=SECRET, unit=url):
            rows.append(logs.unexpected(f"cannot reach {url}", failure(f"{url} {SECRET}")))
        raise failure(f"{SECRET} of {url}")

    rows: list[str] = []
    with pytest.raises(ZeroDivisionError):
        main.guarded(
            lambda: command.main(["-vv"], standalone_mode=False, obj=["db", "info", "--db", url])
        )
    texts = [logs.path(tmp_path).read_text(), capsys.readouterr().err, *rows]
    for text in texts:
        assert text.count("***") >= 2
        for secret in (SECRET, "hunter2", "%C3%B6%2F", "%c3%b6%2f"):
            assert secret not in text
    assert "db info --db" in texts[0]
    assert "the command ended unexpectedly" in texts[0]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("connect to postgresql://me:pw@host/x now", "connect to postgresql://me:***@host/x now"),
        ("host=a password=pw user=me", "host=a password=*** user=me"),
        ("password='p w\\'x' user=me", "password=*** user=me"),
        ("{'password': 'pw', 'user': 'me'}", "{'password': ***, 'user': 'me'}"),
        ("sqlite:///a/b.db?x=1 and me@host:5432", "sqlite:///a/b.db?x=1 and me@host:5432"),
        ("https://example.org:80/a", "https://example.org:80/a"),
    ],
)
def test_masked(text: str, expected: str) -> None:
    assert logs.masked(text) == expected


def test_a_short_password_does_not_make_holes_in_words() -> None:
    logs.hide("an", "")
    assert logs.masked("a plan of an ant") == "a plan of an ant"
    assert logs.masked("x://me:an@host") == "x://me:***@host"


def test_a_traceback_is_what_a_database_can_hold(store: Store) -> None:
    text = logs.traceback_text(failure("nul \0, half a pair \udcff, ΔW"))
    assert "nul \\0, half a pair \\udcff, ΔW" in text
    long = logs.traceback_text(failure("x" * 10**6 + "the end"))
    assert logs.LONGEST < len(long) < logs.LONGEST + 100
    assert long.startswith("Traceback")
    assert long.endswith("the end\n")
    for kept in (text, long):
        unit = records.WorkUnit(unit_key="a", kind="measure", status="failed", traceback=kept)
        assert store.put(unit).traceback == kept


def test_importing_configures_nothing_and_loggers_of_others_stay(tmp_path: Path) -> None:
    program = (
        "import logging, sys, lowrank.logs, lowrank.progress, lowrank.store, lowrank.study\n"
        "mine, root = logging.getLogger('lowrank'), logging.getLogger()\n"
        "state = lambda logger: (logger.level, list(logger.handlers), logger.propagate)\n"
        "assert state(mine) == (0, [], True), state(mine)\n"
        "assert 'concurrent_log_handler' not in sys.modules\n"
        "before = {n: state(logging.getLogger(n)) for n in logging.root.manager.loggerDict}\n"
        "before['root'] = state(root)\n"
        "from pathlib import Path\n"
        "lowrank.logs.configure(Path(sys.argv[1]), 2)\n"
        "assert len(mine.handlers) == 2\n"
        "logging.getLogger('lowrank.x').info('a line')\n"
        "logging.getLogger('alembic').info('not ours')\n"
        "for n, was in before.items():\n"
        "    logger = root if n == 'root' else logging.getLogger(n)\n"
        "    assert n == 'lowrank' or state(logger) == was, n\n"
        "lowrank.logs.reset()\n"
        "assert state(mine) == (0, [], True)\n"
        "print(Path(sys.argv[1], 'logs', 'lowrank.log').read_text().count('\\n'))\n"
    )
    call = [sys.executable, "-c", program, str(tmp_path)]
    done = subprocess.run(call, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "1\n"), done.stderr


def test_a_command_within_a_command_leaves_the_outer_one_its_log(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def outer() -> None:
        logs.configure(tmp_path, logs.QUIET)
        assert main.run(["-v", "scales"]) == 0
        log.error("after")
        log.warning("not shown")

    assert main.guarded(outer) == 0
    assert capsys.readouterr().err == "failed: after\n"
    assert [line["text"] for line in written(tmp_path)] == [" after", " not shown"]


def test_a_log_that_cannot_be_written_stops_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "logs").write_text("a file where the folder should be")
    logs.configure(tmp_path, logs.NORMAL)
    log.info("a line")
    err = capsys.readouterr().err
    assert err.startswith(f"note: the log {logs.path(tmp_path)} cannot be written: ")
    (tmp_path / "logs").unlink()
    logs.path(tmp_path).mkdir(parents=True)  # it breaks only when it is written
    logs.configure(tmp_path, logs.NORMAL)
    for _ in range(3):
        log.info("a line")
    assert capsys.readouterr().err.count("cannot be written: Is a directory") == 1


def test_quiet_silences_bars_and_notes_never_rows_or_errors(
    capsys: pytest.CaptureFixture[str],
) -> None:
    @click.command()
    @options.standard_options
    def command() -> None:
        assert list(progress_bar(range(3), desc="bar", disable=False, delay=0)) == [0, 1, 2]
        waiting("measure")(2)
        log.error("an error")
        click.echo("a row")

    for words, told in (([], True), (["-q"], False)):
        assert main.guarded(lambda: command.main(words, standalone_mode=False)) == 0  # noqa: B023
        out, err = capsys.readouterr()
        assert out == "a row\n"
        assert "failed: an error" in err
        assert ("bar" in err) == told
        assert ("measure: 2 units are with other processes; waiting\n" in err) == told


def commands() -> Iterator[tuple[str, click.Command]]:
    """Walk every group and every command."""
    waiting_for: list[tuple[str, click.Command]] = [("lowrank", main.cli)]
    while waiting_for:
        name, command = waiting_for.pop()
        yield name, command
        if isinstance(command, click.Group):
            context = click.Context(command)
            for inner in command.list_commands(context):
                found = command.get_command(context, inner)
                assert found is not None
                waiting_for.append((f"{name} {inner}", found))
    yield "python -m lowrank.train", train_command


def test_every_command_has_the_options() -> None:
    found = dict(commands())
    assert {"lowrank", "lowrank db copy", "lowrank run show", "lowrank study"} < set(found)
    assert len(found) >= 33
    for name, command in found.items():
        by_option: dict[str, list[click.Parameter]] = {}
        for parameter in command.params:
            for option in parameter.opts:
                by_option.setdefault(option, []).append(parameter)
        for option in ("-v", "--verbose", "-q", "--quiet", "-V", "--version"):
            assert len(by_option.get(option, [])) == 1, f"{name} {option}"
        clashing = {option for option, owners in by_option.items() if len(owners) > 1}
        assert not clashing, name


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("db info", 0),
        ("-v db info", 1),
        ("db -v info", 1),
        ("db info -v", 1),
        ("-v db info -v", 2),
        ("db info -vvv", 2),
        ("-q db info", -1),
        ("db info -qq", -1),
    ],
)
def test_the_options_may_stand_anywhere(
    words: str, expected: int, sqlite_store_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[int, list[str]]] = []
    monkeypatch.setattr(
        options.click, "echo", lambda *_, **__: seen.append((logs._State.verbosity, logs.flags()))
    )
    assert main.run([*words.split(), "--db", sqlite_store_url]) == 0
    flags = {-1: ["-q"], 0: [], 1: ["-v"], 2: ["-vv"]}[expected]
    assert seen == [(expected, flags)]
    assert logs._State.verbosity == logs.NORMAL
    assert logging.getLogger("lowrank").handlers == []


def test_more_and_less_at_once_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(["-q", "methods", "-v"]) == 2
    assert "-v asks for more and -q for less" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["-V"], ["--version"], ["query", "-V"], ["run", "show", "-V"]])
def test_the_version(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(words) == 0
    assert re.fullmatch(r"lowrank, version \d+\.\d+\.\d+\n", capsys.readouterr().out)


def test_a_command_logs_how_it_began_and_how_it_failed(
    tmp_path: Path, sqlite_store_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    study = tmp_path / "tiny.yaml"
    study.write_text(f"name: tiny\noutput: {tmp_path}/out\nmethods: [full_rank]\nscales: [nano]\n")
    assert main.run(["-v", "report", str(study), "--db", sqlite_store_url]) == 2
    err = capsys.readouterr().err
    assert err.splitlines()[-1].startswith("Error: ")
    assert err.count("has no study 'tiny'") == 1
    lines = written(tmp_path / "out")
    assert f"lowrank -v report {study} --db {sqlite_store_url}" in lines[0]["text"]
    assert (lines[-1]["level"], "has no study 'tiny'" in lines[-1]["text"]) == ("ERROR", True)


@pytest.fixture
def failed_run(sqlite_store_url: str) -> tuple[str, int]:
    """A store with a run that failed with a traceback: its URL and the run."""
    with Store.open(sqlite_store_url) as store:
        study = store.add(records.Study(name="a", config={}, config_hash="", root="/srv/out"))
        names = {"method": "galore", "scale": "nano", "seed": 0, "data_seed": 0, "init_seed": 0}
        run = store.add(records.Run(study_id=study.id or 0, config_hash="", **names))  # type: ignore[arg-type]
        trace = logs.traceback_text(failure("first\nsecond"))
        store.update(records.Run, run.id, status="failed", error="first", traceback=trace)
    return sqlite_store_url, run.id or 0


def test_run_show_prints_the_traceback_and_the_log(
    failed_run: tuple[str, int], capsys: pytest.CaptureFixture[str]
) -> None:
    url, run_id = failed_run
    assert main.run(["run", "show", str(run_id), "--db", url]) == 0
    out = capsys.readouterr().out
    table, trace = out.split("\n\n")
    assert re.search(r"^log +/srv/out/logs/lowrank.log$", table, re.MULTILINE)
    assert "traceback" not in table
    assert trace.startswith("Traceback (most recent call last):\n")
    assert trace.endswith("ZeroDivisionError: first\nsecond\n")
    assert main.run(["run", "show", str(run_id), "--db", url, "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert (row["traceback"], row["log"]) == (trace, "/srv/out/logs/lowrank.log")
    assert main.run(["run", "list", "--status", "failed", "--db", url, "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert (row["id"], row["error"]) == (run_id, "first")


def test_run_retry_clears_the_traceback(
    failed_run: tuple[str, int], capsys: pytest.CaptureFixture[str]
) -> None:
    url, run_id = failed_run
    assert main.run(["run", "retry", str(run_id), "--db", url]) == 0
    with Store.open(url) as store:
        run = store.get(records.Run, run_id)
    assert (run.status, run.error, run.traceback) == ("planned", "", "")
    assert main.run(["run", "show", str(run_id), "--db", url]) == 0
    assert "Traceback" not in capsys.readouterr().out
