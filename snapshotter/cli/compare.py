"""`layergate compare`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import click

from snapshotter.cli.looking import Access, access_options
from snapshotter.cli.options import json_option, verbose_option

if TYPE_CHECKING:
    from snapshotter.inspection.comparing import Comparison

_DIFFERENT: Final = 1


@click.command()
@json_option
@click.option("--read-all", is_flag=True, help="Read the layers' tars, whatever tables of contents say.")
@access_options
@verbose_option
@click.argument("a", metavar="A")
@click.argument("b", metavar="B")
def command(as_json: bool, read_all: bool, access: Access, a: str, b: str) -> int:
    """Compare two images: their trees, layers, sizes, and what is before the landmarks.

    The trees are those that a container would see: names, types, modes, owners, times in seconds, xattrs,
    links, devices, and content by digest. Layers are read whole where they have no table of contents. A and B
    are written like SRC of `layergate toc`.

    \b
    Examples
      layergate compare registry.example/python:3 registry.example/python:3-lazy
      layergate compare --json ./before.tar oci:/srv/images:after

    \b
    Exit codes
    0   the trees are equal
    1   they differ, like diff has it
    2   A, B, --platform or the configuration file cannot be understood
    3   there is no such image, file, tag or platform
    4   the registry does not take our credentials
    5   the registry failed or cannot be reached
    6   a layer is damaged
    9   containerd does not answer
    """
    import anyio

    found = anyio.run(_compare, access, a, b, read_all)
    if as_json:
        from snapshotter.cli.looking import print_json

        print_json(found)
    else:
        from snapshotter.cli.cache_tables import print_out
        from snapshotter.cli.compare_text import comparison

        print_out(comparison(found))
    return 0 if found.equal else _DIFFERENT


async def _compare(access: Access, a: str, b: str, read_all: bool) -> Comparison:
    from anyio import to_thread

    from fetcher.sources import BlobSources
    from snapshotter.cli.looking import shown_reading
    from snapshotter.inspection.comparing import compare_images
    from snapshotter.inspection.reading import read_images

    looking = access.looking()
    async with BlobSources(access.settings()) as registries:
        with shown_reading("reading") as begin:
            ours, theirs = await read_images((a, b), registries, looking, whole=read_all, begin=begin)
    return await to_thread.run_sync(compare_images, ours, theirs)
