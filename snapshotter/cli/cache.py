"""`layergate cache`: ls, clean, verify."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

import click

from snapshotter.cli.options import (
    address_option,
    config_option,
    json_option,
    root_option,
    verbose_option,
)

if TYPE_CHECKING:
    from snapshotter.cache.values import CleanReport, Selection


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def command() -> None:
    """Show, clean and verify the layers that are here.

    It works while `layergate serve` runs, through it, and while none runs. What a snapshot, a mount or a
    pull needs is never removed.

    \b
    Examples
      layergate cache ls --sort size
      layergate cache clean --older-than 7d
      layergate cache verify --repair
    """


@command.command("ls", short_help="List the layers, how large they are, and who uses them.")
@click.option(
    "--sort",
    type=click.Choice(["size", "used"]),
    default="used",
    show_default=True,
    help="Largest first, or last used first.",
)
@json_option
@root_option
@address_option
@verbose_option
def list_command(sort: str, as_json: bool, root: str, address: str) -> None:
    """List the layers that are here, how large they are, and who uses them.

    \b
    complete     every file is here
    incomplete   part of it is here; it streams, or waits for somebody to need it
    damaged      its record cannot be read

    \b
    Examples
      layergate cache ls --sort size
      layergate cache ls --json | jq '.layers[] | select(.used_by == [])'

    \b
    Exit codes
    0   listed
    2   there is no such root
    9   serve has the cache in use, and does not answer
    """
    from snapshotter.cli.cache_client import NodeCache
    from snapshotter.cli.cache_tables import inventory_table, print_out

    inventory = NodeCache(_existing(root), address).inventory()
    layers = sorted(
        inventory.layers,
        key=lambda layer: (-layer.bytes,) if sort == "size" else (not layer.used_by, -layer.last_used),
    )
    if as_json:
        _print_json({**_builtins(inventory), "layers": layers})
    else:
        print_out(inventory_table(inventory, layers))


@command.command("clean", short_help="Remove what nothing uses, and what crashes have left.")
@click.option("--all", "everything", is_flag=True, help="Every layer that is not in use.")
@click.option("--unused", is_flag=True, help="Every layer that nothing uses. The default.")
@click.option("--image", "images", multiple=True, metavar="REF", help="The layers of an image.")
@click.option("--layer", "layers", multiple=True, metavar="DIGEST", help="One layer; a beginning will do.")
@click.option("--older-than", metavar="24h", help="Of the unused: those not used for so long.")
@click.option(
    "--to-size", metavar="20GB", help="Of the unused: the least recently used, until so much is left."
)
@click.option("--dry-run", is_flag=True, help="Say what would be removed, and change nothing.")
@click.option("--yes", is_flag=True, help="Do not ask before --all.")
@json_option
@root_option
@address_option
@verbose_option
def clean_command(
    everything: bool,
    unused: bool,
    images: tuple[str, ...],
    layers: tuple[str, ...],
    older_than: str | None,
    to_size: str | None,
    dry_run: bool,
    yes: bool,
    as_json: bool,
    root: str,
    address: str,
) -> int:
    """Remove layers that nothing uses, and what crashes have left.

    What a snapshot, a mount or a pull needs stays, whatever the options say; where they name it, it is
    said who needs it.

    \b
    Examples
      layergate cache clean                        all that nothing uses
      layergate cache clean --older-than 7d --to-size 20GB
      layergate cache clean --image registry.example/python:3 --dry-run

    \b
    Exit codes
    0   done
    1   no layer here has that name
    2   the options contradict one another, or there is no such root
    7   the local disk refused
    9   serve has the cache in use, and does not answer
    20  done in part: what is in use was left
    """
    from snapshotter.cli.cache_client import NodeCache
    from snapshotter.cli.cache_tables import clean_table, print_out

    selection = _selection(everything, unused, images, layers, older_than, to_size)
    cache = NodeCache(_existing(root), address)
    if everything and not (yes or dry_run) and sys.stdin.isatty():
        print_out(clean_table(cache.clean(selection, dry_run=True)))
        click.confirm("Remove all of this?", abort=True, err=True)
    report = cache.clean(selection, dry_run=dry_run)
    if as_json:
        _print_json(_builtins(report))
    else:
        print_out(clean_table(report))
    return _clean_code(report)


@command.command("verify", short_help="Check every file against its digest, and mend it.")
@click.option("--repair", is_flag=True, help="Fetch again what is wrong, and put it in place.")
@click.argument("digests", metavar="[DIGEST]...", nargs=-1)
@json_option
@root_option
@config_option
@verbose_option
def verify_command(
    repair: bool, digests: tuple[str, ...], as_json: bool, root: str, config_path: str | None
) -> int:
    """Check every file of the named layers, or of all, against the digests that the layer promises.

    A beginning of a digest will do. Repairing changes nothing in place: containers that have a wrong file
    open keep it until they open it again. It needs the registry, and no `layergate serve`.

    \b
    Examples
      layergate cache verify
      layergate cache verify --repair 1f0c3a5e

    \b
    Exit codes
    0      all is as it should be, or is again
    1      no layer here has that name
    2      the configuration file has an error, or there is no such root
    6      something is wrong, and could not be repaired or was not to be
    """
    from fetcher.store import LayerStore
    from snapshotter.cache.inventory import read_layers
    from snapshotter.cache.plan import is_called
    from snapshotter.cli.cache_tables import print_out, shown_verification, verdict_lines
    from snapshotter.cli.cache_verify import verified
    from snapshotter.config import load_config

    store = LayerStore(_existing(root))
    found = read_layers(store, {}, None)
    for digest in digests:
        if not any(is_called(layer, digest) for layer in found):
            raise click.ClickException(f"no layer here is called {digest}: see layergate cache ls")
    keys = [layer.layer for layer in found if not digests or any(is_called(layer, one) for one in digests)]
    config = load_config(config_path)
    with shown_verification(live=sys.stderr.isatty()) as progress:
        verdicts = verified(store, keys, config, repair=repair, progress=progress)
    if as_json:
        _print_json(
            {
                "layers": [_builtins(verdict) for verdict in verdicts],
                "intact": all(v.intact for v in verdicts),
            }
        )
    else:
        print_out(verdict_lines(verdicts))
    return 0 if all(verdict.intact for verdict in verdicts) else 6


def _selection(
    everything: bool,
    unused: bool,
    images: tuple[str, ...],
    layers: tuple[str, ...],
    older_than: str | None,
    to_size: str | None,
) -> Selection:
    """What the options mean; raises UsageError where they contradict one another."""
    from snapshotter.cache.quantities import parse_duration, parse_size
    from snapshotter.cache.values import Selection

    kinds = {"--all": everything, "--unused": unused, "--image": images, "--layer": layers}
    given = [name for name, value in kinds.items() if value]
    if len(given) > 1:
        raise click.UsageError(f"{given[0]} and {given[1]} exclude one another")
    narrowing = [
        name for name, value in (("--older-than", older_than), ("--to-size", to_size)) if value is not None
    ]
    if narrowing and given and given != ["--unused"]:
        raise click.UsageError(f"{narrowing[0]} narrows what is unused; it cannot be given with {given[0]}")
    try:
        return Selection(
            everything=everything,
            images=[_image(image) for image in images],
            layers=list(layers),
            older_than=None if older_than is None else parse_duration(older_than),
            to_size=None if to_size is None else parse_size(to_size),
        )
    except ValueError as error:
        raise click.UsageError(str(error)) from error


def _image(text: str) -> str:
    """An image as the cache knows it: by its full name, or as a layout's or file's path."""
    from fetcher.reference import parse_reference

    return text if text.startswith(("oci:", "/")) else str(parse_reference(text))


def _clean_code(report: CleanReport) -> int:
    from snapshotter.cli.exit_codes import PARTLY

    if report.done:
        return 0
    if report.problems:
        return 7
    return 1 if report.unknown else PARTLY


def _existing(root: str) -> str:
    if not os.path.isdir(root):
        raise click.BadParameter(f"there is no directory {root}.", param_hint="'--root'")
    return root


def _builtins(value: object) -> dict[str, object]:
    import msgspec

    converted = msgspec.to_builtins(value)
    assert isinstance(converted, dict)
    return converted


def _print_json(value: object) -> None:
    import msgspec

    sys.stdout.buffer.write(msgspec.json.encode(value) + b"\n")
