"""The command ``lowrank``: a group that imports a command's module only when the
command is called.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Sequence
from importlib.util import find_spec

import click

import lowrank
from lowrank.errors import LowrankError

from .options import database_option

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
        "Look for what is wrong with environment and store, and mend it.",
    ),
}


class LazyGroup(click.Group):
    """A group over :data:`COMMANDS` whose help imports none of them."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Commands whose module is there, in the order of work."""
        return [
            name
            for name, (target, _) in COMMANDS.items()
            if find_spec(target.partition(":")[0]) is not None
        ]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command, its module imported now."""
        if cmd_name not in self.list_commands(ctx):
            return None
        module, _, attribute = COMMANDS[cmd_name][0].partition(":")
        command: click.Command = getattr(importlib.import_module(module), attribute)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The list of commands in the help, from the table."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, COMMANDS[name][1]) for name in self.list_commands(ctx)])


@click.group(
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)
@click.version_option(lowrank.__version__, prog_name="lowrank")
@database_option
def cli() -> None:
    """Train, measure, evaluate and compare low-rank pre-training methods; every number is a row in
    SQL.

    \b
    Example:
      lowrank study run studies/demo.yaml
      lowrank query perplexity --db sqlite:///outputs/demo/lowrank.db
    """


def main() -> None:
    """Entry of the console script."""
    sys.exit(run(sys.argv[1:]))


def run(arguments: Sequence[str]) -> int:
    """Run one command line of ``lowrank``; the exit status of :func:`guarded`."""
    return guarded(lambda: cli.main(list(arguments), prog_name="lowrank", standalone_mode=False))


def guarded(command: Callable[[], object]) -> int:
    """Run ``command`` and tell its errors; the exit status: 0 done, 1 failed, 2 wrong usage or
    study file, 130 interrupted.
    """
    try:
        result = command()
        sys.stdout.flush()
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except LowrankError as error:
        click.echo(f"Error: {error}", err=True)
        return error.exit_status
    except (click.Abort, KeyboardInterrupt):
        click.echo("Interrupted.", err=True)
        return INTERRUPTED
    except (
        BrokenPipeError
    ):  # the reader of stdout has seen enough, as in: lowrank query runs | head
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    return result if isinstance(result, int) else 0


if __name__ == "__main__":
    main()
