"""``lowrank db`` and what all commands share: which database, exit statuses, help."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import click
import pytest

from lowrank.cli import main, options
from lowrank.errors import DataError
from lowrank.store import Store, differences, migrate, records


@pytest.fixture(autouse=True)
def no_database_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(options.VARIABLE, raising=False)


def rows(capsys: pytest.CaptureFixture[str], *arguments: str) -> list[dict[str, object]]:
    """Return the rows that a successful command prints with ``--json``."""
    assert main.run([*arguments, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert isinstance(found, list)
    return found


def error(capsys: pytest.CaptureFixture[str], status: int, *arguments: str) -> str:
    """Return the sentence of a command that fails with ``status`` and prints nothing on stdout."""
    assert main.run(arguments) == status
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("Error: ")
    assert len(captured.err.splitlines()) == 1
    return captured.err


def test_upgrade_check_info_downgrade(empty_url: str, capsys: pytest.CaptureFixture[str]) -> None:
    first = rows(capsys, "db", "upgrade", "--db", empty_url)[0]
    assert (first["schema_before"], first["schema"]) == (None, migrate.head())
    assert rows(capsys, "db", "upgrade", "--db", empty_url)[0]["schema_before"] == migrate.head()
    assert rows(capsys, "db", "check", "--db", empty_url)[0]["status"] == "ok"
    info = {row["item"]: row["value"] for row in rows(capsys, "db", "info", "--db", empty_url)}
    assert info["schema"] == info["newest_schema"] == migrate.head()
    assert info["rows of published_value"] > 250  # type: ignore[operator]
    assert info["bytes"] > 10_000  # type: ignore[operator]
    assert rows(capsys, "db", "downgrade", "base", "--db", empty_url)[0]["schema"] is None
    info = {row["item"]: row["value"] for row in rows(capsys, "db", "info", "--db", empty_url)}
    assert info["schema"] is None
    assert "lowrank db upgrade" in error(capsys, 1, "db", "check", "--db", empty_url)


def test_downgrading_a_store_with_rows_needs_confirmation(
    sqlite_store_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with Store.open(sqlite_store_url) as store:
        store.add(records.Study(name="demo", config={}, config_hash=""))
    assert "holds 1 rows that may be lost" in error(
        capsys, 2, "db", "downgrade", "--db", sqlite_store_url
    )
    assert rows(capsys, "db", "downgrade", "--yes", "--db", sqlite_store_url)[0]["schema"] is None


def test_copy_between_databases(
    sqlite_store_url: str,
    postgres_url: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with Store.open(sqlite_store_url) as store:
        store.add(records.Study(name="demo", config={"a": [1]}, config_hash=""))
    counts = {
        row["table"]: row["added"]
        for row in rows(capsys, "db", "copy", sqlite_store_url, postgres_url)
    }
    assert counts["study"] == 1
    with Store.open(sqlite_store_url) as one, Store.open(postgres_url) as two:
        assert differences(one, two, ignore_volatile=False) == []
        two.update(records.Study, 1, config_hash="other")
    assert "--prefer" in error(capsys, 1, "db", "copy", sqlite_store_url, postgres_url)
    assert "no store at" in error(capsys, 1, "db", "copy", "missing.db", postgres_url)


@pytest.mark.parametrize("place", ["--db URL db info", "db --db URL info", "db info --db URL"])
def test_the_database_option_works_on_group_and_command(
    sqlite_store_url: str, place: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert rows(capsys, *place.replace("URL", sqlite_store_url).split())


def test_the_option_wins_over_the_environment(
    sqlite_store_url: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    monkeypatch.setenv(options.VARIABLE, f"sqlite:///{tmp_path}/absent.db")
    assert rows(capsys, "db", "info", "--db", sqlite_store_url)
    assert rows(capsys, "--db", sqlite_store_url, "db", "info")
    assert "absent.db" in error(capsys, 1, "db", "info")
    monkeypatch.setenv(options.VARIABLE, sqlite_store_url)
    assert rows(capsys, "db", "info")


def test_the_error_without_a_database_names_three_ways_to_give_one(
    capsys: pytest.CaptureFixture[str],
) -> None:
    message = error(capsys, 2, "db", "info")
    assert all(way in message for way in ("--db URL", options.VARIABLE, "study file"))


def test_a_study_file_implies_a_database(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    own = f"sqlite:///{tmp_path}/own.db"
    assert options.database_url(own) == own
    with options.open_store(own, create=True) as store:
        assert store.count(records.Study) == 0
    monkeypatch.setenv(options.VARIABLE, "sqlite:///environment.db")
    assert options.database_url(own) == "sqlite:///environment.db"


def test_an_unreachable_server_is_one_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    message = error(capsys, 1, "db", "info", "--db", "postgresql://me:hunter2@127.0.0.1:1/x")
    assert "cannot reach the database postgresql+psycopg://me:***@127.0.0.1:1/x" in message
    assert "hunter2" not in message


def test_exit_statuses(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    raised: dict[str, BaseException] = {}

    @click.command()
    def fail() -> None:
        raise raised["now"]

    monkeypatch.setattr(main.LazyGroup, "get_command", lambda *_: fail)
    for exception, status in (
        (DataError("no text"), 1),
        (click.UsageError("what?"), 2),
        (KeyboardInterrupt(), 130),
    ):
        raised["now"] = exception
        assert main.run(["fail"]) == status
    assert "Error: no text" in capsys.readouterr().err
    raised["now"] = ZeroDivisionError()
    with pytest.raises(ZeroDivisionError):  # a bug keeps its traceback
        main.run(["fail"])


@pytest.mark.parametrize(
    ("arguments", "status"),
    [(["nonsense"], 2), (["db", "nonsense"], 2), (["--help"], 0), (["--version"], 0)],
)
def test_usage(arguments: list[str], status: int, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(arguments) == status


def test_help_lists_the_installed_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(["--help"]) == 0
    shown = capsys.readouterr().out
    present = main.cli.list_commands(click.Context(main.cli))
    assert {"db", "query"} <= set(present) <= set(main.COMMANDS)
    for name in present:
        assert f"  {name} " in shown
        command = main.cli.get_command(click.Context(main.cli), name)
        assert isinstance(command, click.Command)
        assert command.help


def test_help_imports_no_command_and_the_module_runs() -> None:
    program = (
        "import sys\nsys.argv = ['lowrank', '--help']\nfrom lowrank.cli import main\nmain.run(['--help'])\n"
        "print([m for m in ('torch', 'sqlalchemy', 'pandas', 'transformers') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "[]"
    done = subprocess.run(
        [sys.executable, "-m", "lowrank", "query", "--json"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert {"perplexity", "runs"} <= {row["query"] for row in json.loads(done.stdout)}


def test_a_closed_pipe_is_not_an_error(sqlite_store_url: str) -> None:
    command = f'{sys.executable} -m lowrank query --sql "$0" --db {sqlite_store_url} | head -n 1; echo ${{PIPESTATUS[0]}}'
    many = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 50000) SELECT i FROM n"
    done = subprocess.run(["bash", "-c", command, many], capture_output=True, text=True, check=True)
    assert done.stderr == ""
    assert done.stdout.splitlines()[-1] == "0"
