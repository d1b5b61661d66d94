"""The command line: one module a command, imported only when that command runs.

Errors of ours end as one line on standard error and an exit code of their kind;
`--verbose` shows the traceback.
"""

from __future__ import annotations

import importlib
import sys
from typing import Final, NoReturn

import click

from fetcher.version import VERSION
from snapshotter.interrupts import Interrupted

COMMANDS: Final = {
    "cache": "Show, clean and verify the layers that are here.",
    "convert": "Make an image that can be pulled lazily out of any other.",
    "compare": "Say where two images differ: trees, layers, sizes, prefetch.",
    "doctor": "Say whether this host can pull lazily, and what to do if not.",
    "mount": "Mount an image or one layer by hand, without containerd.",
    "mounts": "Show what is mounted by hand.",
    "optimize": "Convert an image with the files that it needs first in front.",
    "pull": "Pull an image through containerd; returns before its layers are here.",
    "record": "Show, export and clear what was recorded of containers.",
    "serve": "Run the snapshotter that containerd talks to.",
    "status": "Show layers, how far they are, and counters.",
    "toc": "Show or verify the tables of contents of an image or one layer.",
    "umount": "Unmount what was mounted by hand.",
}


class _Commands(click.Group):
    """Imports `snapshotter.cli.<name>` for its `command` when it is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command = importlib.import_module(f"snapshotter.cli.{cmd_name}").command
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The list without importing a single command."""
        with formatter.section("Commands"):
            formatter.write_dl(sorted(COMMANDS.items()))


@click.command(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(VERSION, prog_name="layergate", message="%(prog)s %(version)s")
@click.option("--verbose", is_flag=True, help="Show a traceback where a command fails.")
def cli(verbose: bool) -> None:
    """Start containers before their layers are here, and end on native overlayfs."""


def main() -> None:
    """Entry point of `layergate`."""
    run_to_exit(cli, "layergate")


def run_to_exit(command: click.Command, name: str) -> NoReturn:
    """Run a command and end the process with its exit code; `name` begins the line of an error."""
    try:
        result = command.main(standalone_mode=False)
    except click.exceptions.Exit as done:
        sys.exit(done.exit_code)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except Interrupted as ended:
        click.echo(f"{name}: {ended}", err=True)
        sys.exit(128 + ended.number)
    except (click.Abort, KeyboardInterrupt):
        click.echo(f"{name}: interrupted", err=True)
        sys.exit(130)
    except Exception as raised:
        # The one place where errors meet people: ours as a line, anything else as the defect it is.
        # Imported here, as it takes every package's exceptions along, and commands should start fast.
        from snapshotter.cli.exit_codes import exit_code, is_ours, sole_cause

        cause = sole_cause(raised)
        if "--verbose" in sys.argv[1:] or not is_ours(cause):
            raise
        click.echo(f"{name}: {cause}", err=True)
        sys.exit(exit_code(cause))
    sys.exit(result if isinstance(result, int) else 0)


if __name__ == "__main__":
    main()
