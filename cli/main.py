"""The command ``lowrank``: a group that imports a command's module only when it is called."""

from __future__ import annotations

import importlib
import logging
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec

import click

from lowrank import logs
from lowrank.errors import LowrankError

from .options import NO_BARS, database_option, standard_options

log = logging.getLogger(__name__)
INTERRUPTED = 130
COMMANDS = {  # name: where it is, what it does
    "study": ("lowrank.cli.study:study", "Run a study file, plan it, or see how far it is."),
    "run": ("lowrank.cli.run:run", "List, show, cancel or retry single runs."),
    "measure": ("lowrank.cli.measure:measure", "Compute the metrics that are missing."),
    "evaluate": (
        "lowrank.cli.evaluate:evaluate",
        "Compute the downstream scores that are missing.",
    ),
    "predict": (
        "lowrank.cli.predict:predict",
        "Fit and cross-validate predictors of downstream performance.",
    ),
    "report": ("lowrank.cli.report:report", "Write the report: HTML, tables and figures."),
    "query": ("lowrank.cli.query:query", "Ask the store: a named query or a SELECT."),
    "methods": ("lowrank.cli.catalog:methods", "List the registered methods, or show one in full."),
    "metrics": (
        "lowrank.cli.catalog:metrics",
        "List the registered metrics, or show one in full.",
    ),
    "scales": ("lowrank.cli.catalog:scales", "List the model scales."),
    "checkpoint": (
        "lowrank.cli.checkpoint:checkpoint",
        "List, verify, export or import checkpoints.",
    ),
    "estimate": ("lowrank.cli.estimate:estimate", "Estimate parameters, memory and work of a run."),
    "db": ("lowrank.cli.db:db", "Upgrade, check or copy the database."),
    "doctor": (
        "lowrank.cli.doctor:doctor",
        "Diagnose environment and store, and fix what can be fixed.",
    ),
}


class LazyGroup(click.Group):
    """A group over :data:`COMMANDS` whose help imports none of them."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the installed commands, in the order of a study's work."""
        return [
            name
            for name, (target, _) in COMMANDS.items()
            if find_spec(target.partition(":")[0]) is not None
        ]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import a command's module and return the command."""
        if cmd_name not in self.list_commands(ctx):
            return None
        module, _, attribute = COMMANDS[cmd_name][0].partition(":")
        command: click.Command = getattr(importlib.import_module(module), attribute)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the list of commands for the help text."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, COMMANDS[name][1]) for name in self.list_commands(ctx)])


@click.group(
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)
@database_option
@standard_options
def cli() -> None:
    """Train, measure, evaluate and compare low-rank pre-training methods; every number is a row in
    SQL.

    \b
    Example:
      lowrank study run studies/demo.yaml
      lowrank query perplexity --db sqlite:///outputs/demo/lowrank.db
    """


def main() -> None:
    """Run the console script."""
    sys.exit(run(sys.argv[1:]))


def run(arguments: Sequence[str]) -> int:
    """Run one command line of ``lowrank``; return the exit status of :func:`guarded`."""
    words = list(arguments)
    return guarded(
        lambda: cli.main(list(words), prog_name="lowrank", standalone_mode=False, obj=words)
    )


def guarded(command: Callable[[], object]) -> int:
    """Run ``command``, print and log its error if it raises one, and return the exit status.

    The status is 0 done, 1 failed, 2 wrong usage or study file, 130 interrupted.
    """
    with _logging():
        try:
            result = command()
            sys.stdout.flush()
        except click.ClickException as error:
            error.show()
            return error.exit_code
        except LowrankError as error:
            click.echo(f"Error: {error}", err=True)
            log.error("%s", error, extra=logs.SHOWN)
            return error.exit_status
        except (click.Abort, KeyboardInterrupt):
            click.echo("Interrupted.", err=True)
            log.warning("interrupted", extra=logs.SHOWN)
            return INTERRUPTED
        except (
            BrokenPipeError
        ):  # the reader of stdout has seen enough, as in: lowrank query runs | head
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 0
        except Exception:  # a bug, whose traceback Python shows
            log.critical("the command ended unexpectedly", exc_info=True, extra=logs.SHOWN)
            raise
        return result if isinstance(result, int) else 0


@contextmanager
def _logging() -> Iterator[None]:
    """Log to stderr inside, and leave the process as it was: it may be a program that calls
    :func:`run`.
    """
    before = {name: os.environ.get(name) for name in NO_BARS}
    try:
        with logs.scope():
            logs.configure(None, logs.NORMAL)
            yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


if __name__ == "__main__":
    main()
