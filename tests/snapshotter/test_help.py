"""What `--help` says of each command: examples, exit codes, and no line that a terminal would break."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Final

import click
import pytest
from click.testing import CliRunner

from snapshotter.cli import cli

WIDTH: Final = 80
COMMANDS: Final = [
    *(["cache", name] for name in ("ls", "clean", "verify")),
    *([name] for name in ("doctor", "mount", "mounts", "pull", "serve", "status", "umount")),
]


def help_of(*command: str) -> str:
    result = CliRunner().invoke(cli, [*command, "--help"], prog_name="layergate", terminal_width=WIDTH)
    assert result.exit_code == 0, result.output
    return result.stdout


@pytest.mark.parametrize("command", [[], ["cache"], *COMMANDS], ids=" ".join)
def test_it_fits_a_terminal(command: list[str]) -> None:
    assert [line for line in help_of(*command).splitlines() if len(line) > WIDTH] == []


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_it_has_examples_defaults_and_exit_codes(command: list[str]) -> None:
    text = help_of(*command)
    assert f"layergate {' '.join(command)}" in text.partition("Examples")[2]
    assert "Exit code" in text
    options = text.partition("Options:")[2]
    assert options.count("[default:") >= sum(name in options for name in ("--root", "--address", "--config"))


@pytest.mark.parametrize("command", [[], ["cache"]], ids=["layergate", "cache"])
def test_no_command_of_a_group_is_cut_short(command: list[str]) -> None:
    assert "..." not in help_of(*command).replace("[ARGS]...", "")


def test_every_option_is_explained() -> None:
    unexplained = []
    for names in COMMANDS:
        command: click.Command | None = cli
        for name in names:
            assert isinstance(command, click.Group)
            command = command.get_command(click.Context(command), name)
        assert command is not None
        unexplained += [
            (names, option.name)
            for option in command.params
            if isinstance(option, click.Option) and not option.help
        ]
    assert unexplained == []


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_is_there_as_the_documentation_has_it(shell: str) -> None:
    program = "import sys; sys.argv[0] = 'layergate'; from snapshotter.cli import main; main()"

    def complete(**environment: str) -> str:
        command = [sys.executable, "-c", program]
        done = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert "_LAYERGATE_COMPLETE" in complete(_LAYERGATE_COMPLETE=f"{shell}_source")
    answer = complete(
        _LAYERGATE_COMPLETE=f"{shell}_complete",
        COMP_WORDS="layergate cache cl",
        COMP_CWORD="cl" if shell == "fish" else "2",
    )
    assert "clean" in answer
