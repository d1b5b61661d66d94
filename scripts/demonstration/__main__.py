"""`scripts/demo`: run in namespaces of its own by that script."""

from __future__ import annotations

import sys

import click

from fetcher.errors import FetchError
from scripts.demonstration.acts import perform
from scripts.demonstration.pictures import cached_picture, own_picture
from scripts.demonstration.stage import stage
from scripts.demonstration.telling import Broken, console, heading, tell
from scripts.namespaces import raise_on_termination
from scripts.workplace import Busy
from tests.integration.harness import CommandFailed
from tests.integration.processes import NotReady


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--image", metavar="REF", help="Show an image of your own, in place of the one made here.")
@click.option(
    "--rate",
    default=20.0,
    show_default=True,
    metavar="MB",
    help="MB a second that the local registry's link carries, so that there is something to watch.",
)
@click.argument("command", nargs=-1, metavar="[COMMAND...]")
def main(image: str | None, rate: float, command: tuple[str, ...]) -> None:
    """Pull an image lazily, run it, and see it end on native files.

    COMMAND is what to run in an image of your own; it should print something. Put `--` before it.
    Everything that is started is private to the demonstration and gone afterwards.

    Exit codes: 0 if everything held, 1 if not.
    """
    raise_on_termination()
    try:
        heading(1, "A registry, and containerd with layergate as a snapshotter")
        with stage(int(rate * 1e6)) as parts:
            tell(f"registry {parts.registry.host}, behind a link of {rate:g} MB/s at {parts.throttle.host}")
            tell(f"containerd {parts.containerd.address}")
            picture = own_picture(parts, image, command) if image else cached_picture(parts)
            perform(parts, picture)
            heading(8, "Everything ends")
        tell("Containers, processes, mounts and files of the demonstration are gone.")
    except (Broken, Busy, CommandFailed, FetchError, NotReady) as error:
        console.print(f"\n   [red]failed[/red]  {type(error).__name__}: ", end="")
        console.print(str(error), markup=False)
        sys.exit(1)
    except KeyboardInterrupt:
        console.print("\n   interrupted; everything that was started has been ended")
        sys.exit(130)


if __name__ == "__main__":
    main()
