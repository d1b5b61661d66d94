"""`python -m tests.fuzz`: have atheris search for an input that a target raises at."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from typing import Final

import click

from tests.fuzz.targets import TARGETS

_UNITS: Final = re.compile(r"number_of_executed_units: (\d+)")
_TOLD: Final = 4000
"""Characters of the end of what a failed target's run has printed."""


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("targets", nargs=-1, type=click.Choice(sorted(TARGETS)))
@click.option("--seconds", type=click.IntRange(min=1), default=60, show_default=True, help="For each target.")
@click.option("--seed", type=click.IntRange(min=1), default=1, show_default=True, help="Repeat a run.")
@click.option(
    "--corpus", type=click.Path(file_okay=False), help="Directory to keep inputs in, and go on from."
)
def main(targets: tuple[str, ...], seconds: int, seed: int, corpus: str | None) -> None:
    """Fuzz TARGETS, or all. An input that makes one fail is left in the current directory, as crash-*."""
    failed = []
    with tempfile.TemporaryDirectory() as scratch:
        for name in targets or sorted(TARGETS):
            kept = os.path.join(corpus or scratch, name)
            os.makedirs(kept, exist_ok=True)
            code = f"from tests.fuzz.atheris_run import run; run({name!r}, {kept!r}, {seconds}, {seed})"
            done = subprocess.run(
                [sys.executable, "-c", code],
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                check=False,
                text=True,
                errors="replace",
            )
            found = _UNITS.search(done.stdout)
            click.echo(f"{name}: {found[1] if found else 'no'} inputs in {seconds} s")
            if done.returncode:
                click.echo(done.stdout[-_TOLD:])
                failed.append(name)
    if failed:
        raise click.ClickException(f"these failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
