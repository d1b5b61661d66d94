"""What `layergate convert` and `tar2estargz` have in common: running a conversion, and its summary."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, TypeVar

import click

from snapshotter.interrupts import run_to_undo

if TYPE_CHECKING:
    from fetcher.convert import ConvertedLayer, LayerOptions
    from snapshotter.convert.image import ConvertedImage
    from snapshotter.convert.run import Conversion

_F = TypeVar("_F", bound=Callable[..., object])


def layer_options(function: _F) -> _F:
    """`--level`, `--chunk-size`, `--min-chunk-size` and `--jobs`."""
    for option in reversed(
        (
            click.option(
                "--level",
                type=int,
                metavar="N",
                help="Compression: 1 to 12 in estargz, 1 to 22 in zstd:chunked.  [default: 9; 3]",
            ),
            click.option(
                "--chunk-size",
                metavar="SIZE",
                help="Files are cut into chunks of this size, the least that is fetched.  [default: 4MiB]",
            ),
            click.option(
                "--min-chunk-size",
                metavar="SIZE",
                help="Small files are compressed together up to this size.  [default: 0, each by itself]",
            ),
            click.option(
                "--jobs",
                type=click.IntRange(min=1),
                metavar="N",
                help="Processes that compress.  [default: one a processor]",
            ),
        )
    ):
        function = option(function)
    return function


def parsed_options(
    layer_format: str, level: int | None, chunk_size: str | None, min_chunk_size: str | None
) -> LayerOptions:
    """LayerOptions of the command line; raises click.UsageError for what is out of range."""
    from fetcher.convert import CHUNK_SIZE, LayerFormat, LayerOptions
    from snapshotter.cache.quantities import parse_size

    try:
        return LayerOptions(
            format=LayerFormat(layer_format),
            level=level or 0,
            chunk_size=CHUNK_SIZE if chunk_size is None else parse_size(chunk_size),
            min_chunk_size=0 if min_chunk_size is None else parse_size(min_chunk_size),
        )
    except ValueError as error:
        raise click.UsageError(str(error)) from error


def run(conversion: Conversion, *, jobs: int | None, live: bool) -> int:
    """Run it with its progress on standard error and the result on standard output; the exit code.

    SIGTERM and SIGHUP end it like Ctrl-C, and leave nothing behind.
    """
    from fetcher.convert import Compressors, ConvertedLayer
    from snapshotter.cli.convert_progress import shown_conversion
    from snapshotter.convert.run import run_conversion

    begun = time.monotonic()
    with Compressors(jobs) as compressors, shown_conversion(live=live) as progress:
        result = run_to_undo(partial(run_conversion, conversion, compressors=compressors, progress=progress))
    seconds = time.monotonic() - begun
    if isinstance(result, ConvertedLayer):
        click.echo(_layer_summary(result, conversion, seconds))
    else:
        click.echo(_image_summary(result, conversion, seconds))
    return 0


def on_terminal() -> bool:
    """Whether there is one to draw on."""
    return sys.stderr.isatty()


def _image_summary(image: ConvertedImage, conversion: Conversion, seconds: float) -> str:
    from snapshotter.cli.progress import megabytes

    counts = image.layers
    kept = f", {counts.kept} kept" if counts.kept else ""
    return (
        f"{conversion.destination} {image.root.digest}: {counts.converted} layers converted{kept}, "
        f"{megabytes(counts.bytes_before)} to {megabytes(counts.bytes_after)}, {seconds:.1f} s"
    )


def _layer_summary(layer: ConvertedLayer, conversion: Conversion, seconds: float) -> str:
    from snapshotter.cli.progress import megabytes

    return (
        f"{conversion.destination} {layer.digest}: {megabytes(layer.size)}, {seconds:.1f} s\n"
        f"DiffID {layer.diff_id}\nTOC {layer.toc_digest}"
    )
