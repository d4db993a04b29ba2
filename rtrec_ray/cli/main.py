"""The `rtrec` command: a table of names. A command's module is imported when it is called, so --help takes 0.2 s."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module

import click

from rtrec_ray.errors import DefinitionInvalid, RtrecError

# Where each command lives, and its line in --help: known without importing it.
COMMANDS = {
    "up": ("system", "Start the system, or parts of it, and keep it running."),
    "down": ("system", "Stop everything that `up` started, and only that."),
    "status": ("system", "Show each stage: up, lag, watermark, counts, freshness, models."),
    "doctor": ("system", "Say what this machine lacks."),
    "demo": ("demo", "Run the whole loop in a world whose tastes drift, or on a real click log, and write a report."),
    "replay": ("data", "Write a log of events into Kafka."),
    "features": ("features", "Feature views: list, read, change, fill from the history, verify what was served."),
    "samples": ("data", "Show what became of the impressions, write samples into files."),
    "train": ("models", "Train a base model; run the increments, the gate."),
    "models": ("models", "List and show model versions, promote, roll back."),
    "workflow": ("workflow", "Define, see and steer what runs when, and why."),
    "events": ("events", "Send, list and follow events."),
    "meta": ("meta", "List and show datasets, jobs and runs."),
}


class Commands(click.Group):
    """A group that imports a command's module when the command is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The names, in the order of the flow."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command, imported now."""
        if cmd_name not in COMMANDS:
            return None
        module = import_module(f"rtrec_ray.cli.{COMMANDS[cmd_name][0]}")
        command: click.Command = getattr(module, cmd_name)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The table, without importing anything."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, line) in COMMANDS.items()])


@click.command(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="rtrec-ray", prog_name="rtrec")
def root() -> None:
    """A real-time recommendation system.

    Every command takes --config FILE and --data-dir DIR and finds a running system through them.
    """


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command; an error is one line that names the cause and the mend, each fault of a file of definitions one
    of its own; its traceback comes only with --debug.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        status = root.main(args=words, prog_name="rtrec", standalone_mode=False)
    except click.Abort:
        _end("stopped", status=130)
    except click.ClickException as error:
        _end(f"{error.format_message()} (rtrec --help)", status=error.exit_code)
    except RtrecError as error:
        if "--debug" in words:
            raise
        _end(*_lines(error), status=1)
    except Exception as error:
        if "--debug" in words:
            raise
        _end(f"{type(error).__name__}: {error} (--debug shows where)", status=1)
    else:
        sys.exit(status if isinstance(status, int) else 0)


def _lines(error: RtrecError) -> list[str]:
    return error.line().splitlines() if isinstance(error, DefinitionInvalid) else [error.line()]


def _end(*lines: str, status: int) -> None:
    for line in lines:
        click.echo(f"rtrec: {' '.join(line.split())}", err=True)
    sys.exit(status)
