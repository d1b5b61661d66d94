"""`layergate mounts`."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from snapshotter.cli.options import json_option, root_option, verbose_option

if TYPE_CHECKING:
    from rich.table import Table

    from snapshotter.manual.listing import ListedMount, Listing


@click.command()
@root_option
@json_option
@verbose_option
def command(root: str, as_json: bool) -> None:
    """Show what `layergate mount` has mounted, and how far it is.

    \b
    starting   not mounted yet
    lazy       mounted; the rest is streaming in
    native     complete, and needs no process of ours
    orphaned   its keeper was killed: files that are here can be read; unmount it
               and mount it again

    \b
    Examples
      layergate mounts
      layergate mounts --json | jq '.mounts[].mountpoint'

    Exit code: 0; 1 if the directory of layers cannot be read.
    """
    import msgspec

    from snapshotter.manual.listing import list_mounts

    listing = list_mounts(root)
    if as_json:
        sys.stdout.buffer.write(msgspec.json.format(msgspec.json.encode(listing), indent=2) + b"\n")
    elif listing.mounts:
        from rich.console import Console

        Console().print(render(listing))
    else:
        click.echo("nothing is mounted by hand")


def render(listing: Listing) -> Table:
    """A table that fits 80 columns; long paths go on in the next line."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("MOUNTPOINT", overflow="fold", ratio=5)
    table.add_column("STATE", no_wrap=True)
    table.add_column("", no_wrap=True, justify="right")
    table.add_column("RW", no_wrap=True)
    table.add_column("SOURCE", overflow="fold", ratio=6)
    for mount in listing.mounts:
        table.add_row(
            mount.mountpoint,
            mount.state,
            _share(mount),
            "ro" if mount.rw is None else "rw",
            _what(mount),
        )
    return table


def _share(mount: ListedMount) -> str:
    if mount.state == "native" or not mount.bytes_total:
        return ""
    if mount.waiting is not None:
        return "busy"
    return f"{100 * mount.bytes_done // mount.bytes_total} %"


def _what(mount: ListedMount) -> str:
    if not mount.alone:
        return mount.source
    digest = mount.layers[0].digest.removeprefix("sha256:")[:12] if mount.layers else "?"
    return f"{mount.source} layer {digest}"
