"""`layergate toc`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import click

from snapshotter.cli.looking import Access, access_options
from snapshotter.cli.options import json_option, verbose_option

if TYPE_CHECKING:
    from snapshotter.inspection.summary import ImageRecord

_DAMAGED: Final = 6


@click.command()
@json_option
@click.option("--tree", "as_tree", is_flag=True, help="List every path: mode, owner, size, time, name, link.")
@click.option("--verify", is_flag=True, help="Read the layers, and verify every chunk, file and digest.")
@click.option("--layer", metavar="N|DIGEST", help="One layer alone: its number, 1 is the lowest, or digest.")
@access_options
@verbose_option
@click.argument("source", metavar="SRC")
def command(
    as_json: bool, as_tree: bool, verify: bool, layer: str | None, access: Access, source: str
) -> int:
    """Show the tables of contents of an image, or of one layer.

    Of each layer: its format, what it holds, and what is fetched before a container starts. Nothing but the
    tables is read, unless by --verify. --json has every entry and chunk, or what --verify found.

    \b
    SRC
      registry.example/python:3      an image in a registry
      oci:DIR  oci:DIR:TAG           an image in an OCI layout
      docker-archive:FILE[:NAME]     a tar by docker save or podman save
      containerd:REF                 an image of containerd
      ./image.tar  ./layer.tar.gz    an archive, or the file of one layer

    \b
    Examples
      layergate toc registry.example/python:3
      layergate toc --tree --layer 2 oci:/srv/images:python
      layergate toc --verify ./layer.tar.gz

    \b
    Exit codes
    0   shown; with --verify, everything is as it should be
    2   SRC, --platform or the configuration file cannot be understood
    3   there is no such image, file, tag or platform
    4   the registry does not take our credentials
    5   the registry failed or cannot be reached
    6   a table of contents, or what --verify read, is damaged; the file is named
    9   containerd does not answer
    13  the image has no such layer
    """
    import anyio

    if as_tree and (as_json or verify):
        raise click.UsageError("--tree stands alone; --json has every entry too")
    record = anyio.run(_read, access, source, layer, as_json or as_tree, verify)
    if as_json:
        from snapshotter.cli.looking import print_json

        print_json(record)
    elif as_tree:
        from snapshotter.cli.toc_text import tree_lines

        for line in tree_lines(record):
            click.echo(line)
    else:
        from snapshotter.cli.cache_tables import print_out
        from snapshotter.cli.toc_text import tables, verdicts

        print_out(verdicts(record) if verify else tables(record))
    return _DAMAGED if any(one.faults for one in record.layers) else 0


async def _read(access: Access, source: str, layer: str | None, entries: bool, verify: bool) -> ImageRecord:
    from fetcher.sources import BlobSources
    from snapshotter.cli.looking import shown_reading
    from snapshotter.inspection.reading import read_tables, verify_tables

    looking = access.looking()
    async with BlobSources(access.settings()) as registries:
        if not verify:
            return await read_tables(source, registries, looking, layer=layer, entries=entries)
        with shown_reading("verifying") as begin:
            return await verify_tables(source, registries, looking, layer=layer, begin=begin)
